"""Automatic tuning: which values, tried how, and whether they are worth taking.

`space` says what may vary, `study` keeps what was tried, `rules` decide when to stop and what wins, `metrics` draw it.
"""

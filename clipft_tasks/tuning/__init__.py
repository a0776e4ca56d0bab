"""Automatic tuning: which values, tried how, and whether they are worth taking.

`search_space` says what may vary, `study` keeps the `trials`, `stopping` decides when to stop and what wins, `plots` draws it;
`remote_storage` is a study's database over HTTP.
"""

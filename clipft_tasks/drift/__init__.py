"""Drift: what a model was trained to see, what it sees now, how far apart they are, and what to do about it."""

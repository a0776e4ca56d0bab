"""Evaluation: a model, a split and a size become metrics with intervals."""

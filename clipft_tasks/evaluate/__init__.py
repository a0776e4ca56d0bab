"""Evaluation: a model, a split and a size become figures with intervals."""

"""Figures from similarities, and how sure one can be of them."""

from collections.abc import Callable

import numpy as np


def balanced_accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall over the classes that occur in `truth`."""
    return float(np.mean([np.mean(predicted[truth == c] == c) for c in np.unique(truth)]))


def accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean(truth == predicted))


def recall_at(similarity: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """Per query: is one of the `k` most similar items relevant? `similarity` (queries, items), `relevant` bool alike.

    Ties are broken against the query: an item counts only if fewer than `k` others are at least as similar.
    """
    best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
    ahead = (~(similarity < best) & ~relevant).sum(axis=1)  # written so that NaN counts as ahead
    return ((ahead < k) & np.isfinite(best[:, 0])).astype(float)


def bootstrap(figure: Callable[[np.ndarray], float], groups: np.ndarray, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of a figure, resampling whole groups (rows of one patient or module are not independent).

    Args:
        figure: takes row numbers (with repeats), returns the figure on them.
        groups: group of each row; rows with one of their own each are resampled one by one.
    """
    rng = np.random.default_rng(seed)
    _, inverse = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    values = []
    for _ in range(resamples):
        drawn = rng.integers(0, len(members), len(members))
        values.append(figure(np.concatenate([members[i] for i in drawn])))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)

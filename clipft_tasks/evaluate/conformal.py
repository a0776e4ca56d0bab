"""Prediction sets that hold the true class at a chosen rate, also for images of new groups (split conformal prediction).

A row's nonconformity is one minus the probability of its true class (LAC; Sadinle, Lei and Wasserman 2019,
https://arxiv.org/abs/1609.00451). A set holds every class whose nonconformity is at most a limit, and always the likeliest. The limit is
the `group_quantile` of held-out rows.
"""

import numpy as np

from ..model.group_quantile import ROUNDING, Groups, most_coverage

DEFAULT = 0.9  # coverage of sets where nobody asks for another
STEP, LEAST = 0.05, 0.5  # of coverages that are offered instead, where groups are few


def nonconformity(probabilities: np.ndarray) -> np.ndarray:
    """How badly each class fits each row: probabilities (n, c) -> (n, c)."""
    return np.asarray(1 - probabilities)


def default_coverage(groups: Groups) -> float | None:
    """The usual coverage, or the next lower step that the groups allow; None below a half."""
    most = min(DEFAULT, most_coverage(groups))
    step = round(STEP * int((most + ROUNDING) / STEP), 2)
    return step if step >= LEAST else None


def sets(probabilities: np.ndarray, limit: float) -> np.ndarray:
    """Which classes belong to each row's set: probabilities (n, c) -> bool (n, c). No set is empty."""
    inside = nonconformity(probabilities) <= limit + ROUNDING
    inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
    return inside

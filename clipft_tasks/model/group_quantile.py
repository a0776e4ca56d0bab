"""A quantile of held-out rows that also holds for rows of new groups (patients, modules, days).

Rows of one group resemble each other, so the quantile of all rows is too low for a new group. Here groups are left out in turn: the
quantile's level is the lowest at which the *other* groups' quantile covers a group's rows at the wanted rate. With a group for each row that
is the usual quantile of split conformal prediction. From few groups nothing follows about a rare one: `most_coverage` is what they
allow (k exchangeable groups: k / (k + 1); Lee, Barber and Willett 2023, https://arxiv.org/abs/2306.06342).
"""

from collections.abc import Sequence

import numpy as np

ROUNDING = 1e-9

Numbers = Sequence[float] | np.ndarray
Groups = Sequence[int] | Sequence[str] | np.ndarray


def effective_groups(groups: Groups) -> float:
    """How many groups of equal size would tell as much (Kish 1965): one large group among small ones counts for little more than one."""
    sizes = np.unique(np.asarray(groups), return_counts=True)[1].astype(float)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def most_coverage(groups: Groups) -> float:
    """The largest share of the rows of new groups for which these groups can vouch."""
    count = effective_groups(groups)
    return count / (count + 1)


def can_cover(groups: Groups, coverage: float) -> bool:
    """Whether the groups vouch for a coverage; below that a quantile is an estimate."""
    return coverage <= most_coverage(groups) + ROUNDING


def group_quantile(values: Numbers, groups: Groups, coverage: float) -> float | None:
    """The number that a share `coverage` of the rows of new groups do not exceed; None where no number is large enough, or where
    the rows tell no more than one group.

    Whether the groups vouch for it is `can_cover`.

    Args:
        values: of each held-out row, (n,). groups: its group, (n,).
    """
    if effective_groups(groups) < 2 - ROUNDING:
        return None
    values, names = np.asarray(values, dtype=np.float64), np.asarray(groups)
    order = np.argsort(values, kind="stable")
    values, names = values[order], names[order]
    count = len(values)
    parts = [(values[names != name], values[names == name]) for name in np.unique(names)]

    def covered(level: float) -> float:
        """Share of the rows that the quantile of the other groups covers."""
        hits = 0
        for others, own in parts:
            rank = int(np.ceil(level * (len(others) + 1) - ROUNDING))
            hits += len(own) if rank > len(others) else int(np.searchsorted(own, others[max(rank, 1) - 1], side="right"))
        return hits / count

    low, high = 0, count + 1  # ranks: `low` covers too few, `high` enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if covered(middle / (count + 1)) >= coverage - ROUNDING else (middle, high)
    return float(values[high - 1]) if high <= count else None

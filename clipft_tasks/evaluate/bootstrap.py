"""How sure one can be: intervals by the bootstrap, differences by the paired one, and many comparisons at once.

A metric here is a function of sums over rows (an accuracy is hits over rows, a balanced accuracy is hits over rows, class by
class). So a resample is not a new set of rows but a weight for each group, and a thousand of them are one sparse product.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

BLOCK = 4_000_000  # numbers at a time


@dataclass(frozen=True)
class Sums:
    """A metric as a function of sums.

    Args:
        columns: (rows, k), what is summed over rows.
        metric: sums (..., k) -> values (...).
    """

    columns: sparse.csr_array
    metric: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def ratio(cls, part: np.ndarray, whole: np.ndarray) -> "Sums":
        """The sum of `part` over the sum of `whole`, both (rows,); NaN of no rows."""

        def metric(sums: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore", divide="ignore"):
                return sums[..., 0] / sums[..., 1]  # type: ignore[no-any-return]

        return cls(sparse.csr_array(np.stack([part, whole], axis=1).astype(float)), metric)

    @property
    def value(self) -> float:
        """The metric of all rows."""
        return float(self.metric(np.asarray(self.columns.sum(axis=0), dtype=float)))


def resampled(metrics: Sequence[Sums], groups: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Each metric on resamples of whole groups (rows of one patient or module are not independent): (metrics, resamples).

    All metrics see the same resamples, so that differences of two rows are those of a paired bootstrap.

    Args:
        groups: group of each row; rows with one of their own each are resampled one by one.
    """
    _, inverse = np.unique(groups, return_inverse=True)
    members = sparse.csr_array((np.ones(len(groups)), (inverse, np.arange(len(groups)))))
    width = max(f.columns.shape[1] for f in metrics)
    of_groups = [sparse.csc_array(members @ f.columns).T for f in metrics]
    blocks = [
        [f.metric((sums @ weights.T).T) for f, sums in zip(metrics, of_groups, strict=True)]
        for weights in drawn(members.shape[0], resamples, seed, width)
    ]
    return np.array([np.concatenate(values) for values in zip(*blocks, strict=True)])


def drawn(groups: int, resamples: int, seed: int = 0, width: int = 1) -> Iterator[np.ndarray]:
    """How often each group is in each resample, in blocks (some, groups); a row sums to the number of groups.

    Args:
        width: of what the weights are multiplied with, which bounds a block too.
    """
    rng = np.random.default_rng(seed)
    size = max(1, BLOCK // max(groups, width))
    for start in range(0, resamples, size):
        some = min(size, resamples - start)
        numbers = rng.integers(0, groups, (some, groups)) + groups * np.arange(some)[:, None]
        yield np.bincount(numbers.ravel(), minlength=some * groups).reshape(some, groups).astype(float)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile interval of resampled values; those that could not be computed (no row with a label was drawn) do not count."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def p_value(differences: np.ndarray) -> float:
    """Two-sided p of no difference: how rarely resampled differences lie on the other side of zero, at least 1/resamples."""
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return float("nan")
    fewer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (fewer + 1) / (len(differences) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for being many, in the order given; NaN stays and does not count.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    p = np.asarray(p_values, dtype=float)
    out = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p) if not np.isnan(p[i])]
    largest = 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p[i]))
        out[i] = largest
    return [float(x) for x in out]

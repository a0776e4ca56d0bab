"""How sure one can be: intervals and paired tests by a bootstrap of groups, and many comparisons at once.

A metric here is a function of sums over rows (an accuracy is hits over rows, a balanced accuracy is hits over rows, class by
class). So a resample is not a new set of rows but a weight for each group, and a thousand of them are one sparse product.

Resamples give the standard error, and Student's t for the number of groups makes an interval and a p-value of it: percentiles
of resamples alone are far too narrow below about twenty groups (95% intervals of five held the truth in 84% of studies).
`python -m bench.intervals` measures what the ones here hold.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

from ..core.proportions import wilson

BLOCK = 4_000_000  # numbers at a time
IN_COMMON = 0.05  # correlation of rows of one group that is taken for granted; few near-perfect groups show none by chance
NORMAL = float(stats.norm.ppf(0.975))
EQUAL, ROUNDING = 1e-18, 1e-9  # variance of values that differ by rounding alone, and how far it moves one


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


@dataclass(frozen=True)
class Groups:
    """What stands behind a number: rows of one patient, module or day are not independent.

    Args:
        count: how many groups there are.
        effective: how many of equal weight would say as much (Kish 1965): a hundred rows of one patient and one of each of
            four others are hardly more than one patient.
        rows: in all of them.
    """

    count: int
    effective: float
    rows: int

    @classmethod
    def of(cls, groups: np.ndarray, metric: Sums | None = None) -> "Groups":
        """Of the rows' groups. With a metric a group's weight is its mean share of what is summed, else its share of rows."""
        names, inverse = np.unique(groups, return_inverse=True)
        columns = metric.columns if metric else sparse.csr_array(np.ones((len(groups), 1)))
        members = sparse.csr_array((np.ones(len(groups)), (inverse, np.arange(len(groups)))), shape=(len(names), len(groups)))
        size = abs(members @ columns)
        total = np.asarray(size.sum(axis=0)).ravel()
        weight = np.asarray(size @ np.where(total > 0, 1 / np.where(total > 0, total, 1), 0)).ravel()
        effective = weight.sum() ** 2 / (weight**2).sum() if weight.any() else 1.0
        return cls(len(names), float(effective), len(groups))

    @property
    def freedom(self) -> float:
        """Degrees of freedom of Student's t."""
        return max(1.0, self.effective - 1)

    @property
    def independent(self) -> float:
        """How many independent rows would say as much, at most: those of a group have a little in common, whatever is found."""
        return self.rows / (1 + max(0.0, self.rows / self.effective - 1) * IN_COMMON)

    @property
    def quantile(self) -> float:
        """How many standard errors a 95% interval reaches."""
        return float(stats.t.ppf(0.975, self.freedom))

    def standard_error(self, values: np.ndarray) -> float:
        """Of a metric, from its values on resamples; NaN where they say nothing. Those without a value do not count."""
        values = values[~np.isnan(values)]
        if self.count < 2 or self.effective < 1 + ROUNDING or len(values) < 2:
            return float("nan")
        return float(values.std() * np.sqrt(self.effective / (self.effective - 1)))  # resamples of few groups vary too little


def interval(
    value: float, values: np.ndarray, groups: Groups, low: float | None = 0.0, high: float | None = 1.0
) -> tuple[float, float]:
    """95% interval of a metric between `low` and `high` (None: it has no such end), from its values on resamples of groups.

    Between two ends it is Wilson's, of as many independent rows as would have the standard error (Korn & Graubard 1998), so it is
    never empty: where all resamples are equal, as for a perfect score, it is that of as many rows as there are groups. Without
    one of the ends, or where the value is not between them, it is symmetric and may reach beyond.
    """
    if not np.isfinite(value):
        return float("nan"), float("nan")
    error = groups.standard_error(values)
    if low is None or high is None or not low - ROUNDING <= value <= high + ROUNDING:
        reach = groups.quantile * error
        return value - reach, value + reach
    if np.isnan(error):  # of one group nothing is known
        return low, high
    share, known = min(max((value - low) / (high - low), 0.0), 1.0), (error / (high - low)) ** 2
    rows, quantile = share * (1 - share) / known if known > EQUAL else 0.0, groups.quantile
    rows = min(rows, groups.independent)
    if rows <= 0:
        rows, quantile = groups.count, NORMAL
    below, above = wilson(share * rows, rows, quantile)
    return min(value, low + below * (high - low)), max(value, low + above * (high - low))  # rounding puts nothing outside


def gain_interval(value: float, differences: np.ndarray, groups: Groups, span: float | None = 1.0) -> tuple[float, float]:
    """95% interval of a difference of a metric, from its values on the same resamples.

    Where those are all equal, all groups showed one difference; by Wilson's interval of none among them, only so many others may
    show another.

    Args:
        span: from the metric's one end to the other, which a gain cannot exceed; None where there is no such end.
    """
    if not np.isfinite(value):
        return float("nan"), float("nan")
    error, most = groups.standard_error(differences), np.inf if span is None else span
    if np.isnan(error):  # of one group nothing is known
        return -most, most
    reach = groups.quantile * error if error**2 > EQUAL else (span or 0.0) * wilson(0, groups.count, NORMAL)[1]
    return max(value - reach, min(-most, value)), min(value + reach, max(most, value))


def interval_of_rows(
    metric: Callable[[np.ndarray], float], groups: np.ndarray, resamples: int, seed: int = 0
) -> tuple[float, float]:
    """95% interval of any function of rows, symmetric; `resampled` is faster for those of sums.

    Args:
        metric: takes row numbers (with repeats), returns the metric on them.
        groups: group of each row; rows with one of their own each are resampled one by one.
    """
    rng = np.random.default_rng(seed)
    _, inverse = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    draws = (rng.integers(0, len(members), len(members)) for _ in range(resamples))
    values = np.array([metric(np.concatenate([members[i] for i in draw])) for draw in draws])
    return interval(metric(np.arange(len(groups))), values, Groups.of(groups), low=None, high=None)


def p_value(value: float, differences: np.ndarray, groups: Groups) -> float:
    """Two-sided p of no difference by Student's t, of a difference and its values on resamples of groups.

    Where all resamples are equal, it is that of an exact sign test: groups that agree would agree by chance.
    """
    error = groups.standard_error(differences)
    if not np.isfinite(value):
        return float("nan")
    if value == 0 or np.isnan(error):
        return 1.0
    if error**2 <= EQUAL:
        return float(2.0 ** (1 - groups.count))
    return float(2 * stats.t.sf(abs(value) / error, groups.freedom))


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

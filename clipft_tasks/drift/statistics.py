"""Two-sample statistics: how far a window of traffic is from a reference, and whether chance would do that.

All of them are plain numpy on a few hundred rows, so a window costs milliseconds and the server can afford them.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..core.proportions import wilson

Array = NDArray[np.floating]

SAME = 1e-5  # squared distance of points that differ by rounding alone
BINS = 5  # quantile bins of a PSI
CLASS_BINS = 20  # of predicted classes, likewise
ENOUGH = 10  # permutations at least as far apart as what was found, after which a permutation test stops
AT_ONCE = 25  # permutations between two looks at whether that is so


def one_thread() -> AbstractContextManager[object]:
    """numpy and scipy compute in one thread inside the block, whatever else is busy.

    Their matrix products here take a millisecond; several BLAS threads beside PyTorch's wait for one another by spinning, which
    cost 30 times the arithmetic on two busy cores.
    """
    import scipy.linalg  # noqa: F401 - its BLAS must be there to be limited
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController()
    own = [c.filepath for c in found.lib_controllers if c.internal_api == "openblas" and "torch" not in c.filepath]
    limited: AbstractContextManager[object] = found.select(filepath=own).limit(limits=1)
    return limited


@dataclass(frozen=True)
class Projection:
    """The directions in which some embeddings vary most.

    Args:
        mean: (d,); axes: (k, d) orthonormal, the one of most variance first.
    """

    mean: Array
    axes: Array

    @classmethod
    def of(cls, embeddings: Array, width: int) -> "Projection":
        """Principal axes of unit embeddings (n, d); at most `width`, n - 1 and d of them.

        By subspace iteration from random directions (Halko et al. 2011, https://arxiv.org/abs/0909.4061), which is less work than
        all eigenvectors; where variances are close, axes near the last may be mixed with those that come after.
        """
        mean = embeddings.mean(axis=0)
        centered, size = embeddings - mean, embeddings.shape[1]
        kept = min(width, len(embeddings) - 1, size)
        space = np.random.default_rng(0).standard_normal((size, min(kept + 8, size)), dtype=np.float32)
        for _ in range(2):
            space, _ = np.linalg.qr(centered.T @ (centered @ space))
        inside = centered @ space
        _, turn = np.linalg.eigh(inside.T @ inside)
        return cls(mean, (space @ turn[:, ::-1][:, :kept]).T)

    def __call__(self, embeddings: Array) -> Array:
        """Embeddings (n, d) -> (n, k + 1): along the axes, and the length of what they do not explain.

        The rest matters: images of a rare kind often leave the subspace that the others span.
        """
        centered = embeddings - self.mean
        along = centered @ self.axes.T
        rest = np.sqrt(np.maximum((centered**2).sum(axis=1) - (along**2).sum(axis=1), 0.0))
        return np.column_stack([along, rest])


def unit(embeddings: Array) -> Array:
    """Embeddings (n, d) at length one: drift looks at directions, whatever similarity a model compares with."""
    length = np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    scaled: Array = np.divide(embeddings, length)
    return scaled


def median_distance(points: Array) -> float:
    """The median distance between two different points of (n, k): the usual width of a Gaussian kernel; 1 where all are equal."""
    apart = _squared_distances(points, points)[np.triu_indices(len(points), 1)]
    apart = apart[apart > SAME]
    return float(np.sqrt(np.median(apart))) if len(apart) else 1.0


def gaussian(a: Array, b: Array, width: float) -> Array:
    """Gaussian kernel of points (n, k) and (m, k): (n, m), fp32."""
    distances = _squared_distances(a.astype(np.float32), b.astype(np.float32))
    return np.exp(np.divide(distances, np.float32(-2 * width**2)))


def mmd(
    reference: Array,
    window: Array,
    width: float,
    permutations: int = 0,
    seed: int = 0,
    own: Array | None = None,
    beyond: float = -np.inf,
) -> tuple[float, float]:
    """Maximum mean discrepancy, squared and unbiased, with a Gaussian kernel; and the p-value of a permutation test.

    Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html. A permutation is a vector of weights on one kernel matrix, so
    many of them are one matrix product. The test is sequential (Besag & Clifford 1991, https://doi.org/10.1093/biomet/78.2.301): it
    stops when chance has reached the value ENOUGH times, so that only what chance hardly reaches costs all permutations.

    Args:
        reference: (n, k); window: (m, k), m >= 2.
        width: of the kernel.
        permutations: at most; 0 skips the test (p = 1).
        own: the reference's kernel with itself (n, n), where that is known already.
        beyond: what the value must exceed to be tested.
    """
    n, m = len(reference), len(window)
    across_both = gaussian(reference, window, width)
    kernel = np.block([[gaussian(reference, reference, width) if own is None else own, across_both],
                       [across_both.T, gaussian(window, window, width)]])  # fmt: skip
    np.fill_diagonal(kernel, 0.0)
    total = float(kernel.sum(dtype=np.float64))

    def discrepancy(chosen: Array) -> Array:
        inside = chosen @ kernel
        both = (inside * chosen).sum(axis=1)
        across = inside.sum(axis=1) - both
        others = total - both - 2 * across
        found: Array = both / (m * (m - 1)) + others / (n * (n - 1)) - 2 * across / (n * m)
        return found

    value = float(discrepancy(np.r_[np.zeros(n), np.ones(m)][None].astype(np.float32))[0])
    if not permutations or value <= beyond:
        return value, 1.0
    reached = 0
    for start in range(0, permutations, AT_ONCE):
        reaching = discrepancy(_drawn(permutations, n, m, seed)[start : start + AT_ONCE]) >= value
        if reached + reaching.sum() >= ENOUGH:
            return value, ENOUGH / (start + 1 + int(np.flatnonzero(reaching)[ENOUGH - reached - 1]))
        reached += int(reaching.sum())
    return value, (1 + reached) / (1 + permutations)


@lru_cache(maxsize=8)
def _drawn(permutations: int, n: int, m: int, seed: int) -> Array:
    """Which m of n + m points each permutation takes for the window: (permutations, n + m), fp32 zeros and ones."""
    ranks = np.random.default_rng(seed).random((permutations, n + m), dtype=np.float32).argpartition(m - 1, axis=1)[:, :m]
    drawn = np.zeros((permutations, n + m), dtype=np.float32)
    np.put_along_axis(drawn, ranks, 1.0, axis=1)
    return drawn


def classifier_auc(reference: Array, window: Array, folds: int = 5) -> float:
    """How well a linear classifier tells the window's points from the reference's, as held-out area under the ROC curve.

    .5 means that they cannot be told apart, 1 that every one can. Ridge regression on standardized axes, `folds` times
    without a fold, the mean over folds.
    """
    points = np.concatenate([reference, window])
    spread = points.std(axis=0)
    points = np.column_stack([(points - points.mean(axis=0)) / np.where(spread > 0, spread, 1), np.ones(len(points))])
    new = np.r_[np.zeros(len(reference)), np.ones(len(window))]
    weight = np.where(new == 1, 0.5 / len(window), 0.5 / len(reference))
    fold = np.r_[np.arange(len(reference)) % folds, np.arange(len(window)) % folds]
    areas = []
    for i in range(folds):
        train, test = fold != i, fold == i
        weighted = points[train] * weight[train, None]
        gram = weighted.T @ points[train] + 0.01 * np.eye(points.shape[1])
        coefficients = np.linalg.solve(gram, weighted.T @ (2 * new[train] - 1))
        areas.append(area_under_curve(points[test] @ coefficients, new[test] == 1))
    return float(np.mean(areas))


def area_under_curve(scores: Array, positive: NDArray[np.bool_]) -> float:
    """The share of (positive, negative) pairs that the scores rank rightly, ties counted half; .5 when a side is empty."""
    wins, count = int(positive.sum()), len(scores)
    if not 0 < wins < count:
        return 0.5
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - wins * (wins + 1) / 2) / (wins * (count - wins)))


@dataclass(frozen=True)
class Bins:
    """What values were once, as quantile bins: what later values are compared with.

    Args:
        edges: (b - 1,) inner edges; expected: (b,) the share of the values in each bin; count: how many they were.
    """

    edges: Array
    expected: Array
    count: int

    @classmethod
    def of(cls, values: Array, bins: int = BINS) -> "Bins":
        """Bins that hold equal shares of `values`. A value that many share gets a bin of its own.

        So a camera that always gave 300 pixels is told from one that gives more as well as from one that gives fewer.
        """
        edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
        often = edges[[(values == edge).mean() > 1 / bins for edge in edges]]
        edges = np.unique(np.concatenate([edges, np.nextafter(often, np.inf, dtype=often.dtype)]))
        return cls(edges, shares(values, edges), len(values))

    def shift(self, values: Array) -> float:
        """How far other values are from these: their PSI."""
        return psi(self.expected, shares(values, self.edges), self.count, len(values))


def shares(values: Array, edges: Array) -> Array:
    """The share of values in each of the len(edges) + 1 bins."""
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return counts / max(1, len(values))


def class_bins(counts: NDArray[np.integer]) -> NDArray[np.intp]:
    """The bin of each class, of at most CLASS_BINS, for classes that were seen `counts` (k,) times.

    Up to that many classes have a bin each. Of more, the frequent ones do, and the others share bins in turn, about as likely as
    those. Who shares with whom does not depend on what was seen: with more classes than rows, those that were not seen are no
    news, and a bin for them would be full by chance.
    """
    if len(counts) <= CLASS_BINS:
        return np.arange(len(counts))
    share = counts / max(1, counts.sum())
    own = np.argsort(-share, kind="stable")[: CLASS_BINS - 1]
    own = own[share[own] >= 1 / CLASS_BINS]
    shared = int(np.clip(round((1 - share[own].sum()) * CLASS_BINS), 1, CLASS_BINS - len(own)))
    bins = np.full(len(counts), -1)
    bins[own] = np.arange(len(own))
    others = np.flatnonzero(bins < 0)
    bins[others] = len(own) + np.arange(len(others)) % shared
    return bins


def psi(expected: Array, found: Array, n: int, m: int) -> float:
    """Population stability index between two sets of shares, less what chance adds on average at these sample sizes.

    Without the correction a small window always looks shifted: for k bins chance alone gives (k - 1)(1/n + 1/m)
    (Yurdakul 2018, https://scholarworks.wmich.edu/dissertations/3208).

    Args:
        expected, found: shares by bin; n, m: how many values are behind each.
    """
    # Half an observation a bin keeps an empty one finite.
    a = (expected * n + 0.5) / (n + 0.5 * len(expected))
    b = (found * m + 0.5) / (m + 0.5 * len(found))
    raw = float(((b - a) * np.log(b / a)).sum())
    return max(0.0, raw - (len(expected) - 1) * (1 / max(1, n) + 1 / max(1, m)))


def difference(right: int, count: int, right_before: int, count_before: int) -> tuple[float, float]:
    """The 95% interval of one share minus another of other rows (Newcombe 1998, method 10); (-1, 1) without rows."""
    if not (count and count_before):
        return -1.0, 1.0
    now, before = right / count, right_before / count_before
    (low, high), (low_before, high_before) = wilson(right, count), wilson(right_before, count_before)
    below, above = np.hypot(now - low, high_before - before), np.hypot(high - now, before - low_before)
    return float(now - before - below), float(now - before + above)


def calibrated_temperature(similarity: Array, truth: Array) -> float:
    """The softmax temperature of similarities under which held-out rows are likeliest (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""
    choices = np.geomspace(0.002, 1.0, 120)

    def loss(temperature: float) -> float:
        logits = similarity / temperature
        peak = logits.max(axis=1)
        return float(np.mean(peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1)) - logits[np.arange(len(truth)), truth]))

    return float(min(choices, key=loss))


def confidence(similarity: Array, temperature: float) -> float:
    """Mean probability of the best class, of similarities (n, c): the accuracy that a calibrated model expects of itself."""
    logits = similarity / temperature
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return float((odds.max(axis=1) / odds.sum(axis=1)).mean())


def _squared_distances(a: Array, b: Array) -> Array:
    distances: Array = np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T, 0)
    return distances

"""Metrics from scores and embeddings. Arrays in, numbers out; ties and NaN always count against the model.

A metric that cannot be computed on the rows at hand is NaN; `predictions.all_metrics` says why.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from ..contracts.evaluation import ClassErrors, ReliabilityBin

BINS = 15  # of calibration, as in Guo et al. 2017


def ranks(similarity: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Per query (queries,): how many items that are not relevant come before the best relevant one; inf where there is none.

    Args:
        similarity: (queries, items).
        relevant: bool alike.
    """
    best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
    ahead = (~(similarity < best) & ~relevant).sum(axis=1)  # written so that NaN counts as ahead
    return np.where(np.isfinite(best[:, 0]), ahead, np.inf)


def recall_at(similarity: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """Per query: 1.0 where a relevant item is among the `k` most similar."""
    return (ranks(similarity, relevant) < k).astype(float)


def answers(scores: np.ndarray) -> np.ndarray:
    """The class of each row (rows,), the first of equals; -1 where a score (rows, classes) is NaN."""
    return np.where(np.isnan(scores).any(axis=1), -1, np.nan_to_num(scores, nan=-np.inf).argmax(axis=1))


def margins(scores: np.ndarray) -> np.ndarray:
    """Best class score minus the second best (rows,)."""
    best = np.partition(scores, -2, axis=1)[:, -2:]
    return best[:, 1] - best[:, 0]


def balanced_accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall over the classes that occur in `truth`."""
    return float(np.mean([np.mean(predicted[truth == c] == c) for c in np.unique(truth)]))


def classification(truth: np.ndarray, predicted: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Metrics of rows whose class is known.

    Args:
        truth, predicted: class ids (rows,).
        scores: log-probabilities (rows, classes).
    Returns: accuracy, balanced_accuracy, macro_f1, macro_auroc and macro_average_precision (one class against the rest, over
        the classes that occur), top3_accuracy and top5_accuracy (where there are more classes).
    """
    from sklearn import metrics

    found = {"accuracy": float(np.mean(truth == predicted)), "balanced_accuracy": balanced_accuracy(truth, predicted)}
    occurring = np.unique(truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of answers that occur nowhere in the truth: they count as wrong
        found["macro_f1"] = float(metrics.f1_score(truth, predicted, labels=occurring, average="macro"))
    ranked = len(occurring) > 1 and not np.isnan(scores).any()
    one_hot = truth[:, None] == occurring
    for name, function in (
        ("macro_auroc", metrics.roc_auc_score),
        ("macro_average_precision", metrics.average_precision_score),
    ):
        found[name] = float(function(one_hot, scores[:, occurring], average="macro")) if ranked else float("nan")
    ahead = ranks(scores, np.arange(scores.shape[1]) == truth[:, None])
    return found | {f"top{k}_accuracy": float(np.mean(ahead < k)) for k in (3, 5) if scores.shape[1] > k}


def bootstrap(metric: Callable[[np.ndarray], float], groups: np.ndarray, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of any function of rows, resampling whole groups; `predictions.intervals` is faster for those of sums.

    Args:
        metric: takes row numbers (with repeats), returns the metric on them.
        groups: group of each row; rows with one of their own each are resampled one by one.
    """
    rng = np.random.default_rng(seed)
    _, inverse = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    values = []
    for _ in range(resamples):
        drawn = rng.integers(0, len(members), len(members))
        values.append(metric(np.concatenate([members[i] for i in drawn])))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def by_class(truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> list[ClassErrors]:
    """Recall, precision and rows of each class; None where nothing was of it, or nothing was called it."""
    out = []
    for number, name in enumerate(classes):
        of_it, called = truth == number, predicted == number
        hits = int((of_it & called).sum())
        n, answered = int(of_it.sum()), int(called.sum())
        precision = hits / answered if answered else None
        out.append(ClassErrors(name=name, rows=n, recall=hits / n if n else None, precision=precision))
    return out


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes + 1) counts: row is the truth, column the answer, the last column no answer."""
    counts = np.zeros((classes, classes + 1), int)
    np.add.at(counts, (truth, np.where(predicted < 0, classes, predicted)), 1)
    return counts


# Calibration (Guo et al. 2017, https://arxiv.org/abs/1706.04599) -------------------------------------------------------


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities (rows, classes), in float64: a softmax in fp32 would make ties of what is nearly sure."""
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    out: np.ndarray = shifted - np.log(total)
    return out


def reliability(truth: np.ndarray, predicted: np.ndarray, log_probabilities: np.ndarray) -> list[ReliabilityBin]:
    """For each of 15 equal bins of confidence that holds rows: its rows, mean confidence and accuracy."""
    confidence = np.exp(log_probabilities.max(axis=1))
    known = ~np.isnan(confidence)
    place = np.minimum((confidence[known] * BINS).astype(int), BINS - 1)
    right = (truth == predicted)[known]
    out = []
    for number in np.unique(place):
        rows = place == number
        mean_confidence, accuracy = float(confidence[known][rows].mean()), float(right[rows].mean())
        out.append(ReliabilityBin(rows=int(rows.sum()), confidence=mean_confidence, accuracy=accuracy))
    return out


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error of a reliability curve; NaN of an empty one."""
    total = sum(b.rows for b in bins)
    return sum(b.rows * abs(b.accuracy - b.confidence) for b in bins) / total if total else float("nan")


def fitted_scale(truth: np.ndarray, scores: np.ndarray) -> float:
    """The factor on scores (the inverse temperature) at which the classes of `truth` are likeliest; NaN where nothing fits."""
    from scipy.optimize import minimize_scalar

    if not len(truth) or scores.shape[1] < 2 or not np.isfinite(scores).all():
        return float("nan")
    rows = np.arange(len(truth))

    def unlikely(log_scale: float) -> float:
        return float(-log_softmax(np.exp(log_scale) * scores.astype(np.float64))[rows, truth].mean())

    return float(np.exp(minimize_scalar(unlikely, bounds=(np.log(1e-2), np.log(1e4)), method="bounded").x))


# Where embeddings lie -------------------------------------------------------------------------------------------------


def geometry(image: np.ndarray, text: np.ndarray, sample: int = 2000) -> dict[str, float]:
    """How a model uses its space; row i of `text` (n, d) is the caption of row i of `image`.

    Returns: modality_gap, the distance between the mean image and the mean text (Liang et al. 2022,
        https://arxiv.org/abs/2203.02053); alignment, the mean squared distance of pairs, and uniformity of images and of
        texts, the log of the mean Gaussian potential of two of them (Wang & Isola 2020, https://arxiv.org/abs/2005.10242;
        less is better for all three). All on the unit sphere.
    """
    chosen = np.random.default_rng(0).permutation(len(image))[:sample]
    image, text = (unit(x[chosen].astype(np.float64)) for x in (image, text))
    return {
        "modality_gap": float(np.linalg.norm(image.mean(axis=0) - text.mean(axis=0))),
        "alignment": float(np.mean(np.sum((image - text) ** 2, axis=1))),
        "uniformity_image": _uniformity(image),
        "uniformity_text": _uniformity(np.unique(text, axis=0)),  # one a caption, however often it occurs
    }


def _uniformity(points: np.ndarray) -> float:
    if len(points) < 2:
        return float("nan")
    squares = 2 - 2 * (points @ points.T)[np.triu_indices(len(points), 1)]
    return float(np.log(np.mean(np.exp(-2 * squares))))


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length one; a row of zeros stays."""
    lengths = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    out: np.ndarray = x / lengths
    return out

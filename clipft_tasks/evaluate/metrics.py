"""Metrics from scores and embeddings. Arrays in, numbers out; ties and NaN always count against the model.

A metric that cannot be computed on the rows at hand is NaN; `predictions.all_metrics` says why.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from ..contracts.evaluation import ClassErrors, ReliabilityBin
from ..model.group_quantile import effective_groups

BLOCK = 4_000_000  # numbers at a time
BINS = 15  # of calibration, as in Guo et al. 2017
FEW_GROUPS = 3  # of which a temperature is not fitted
FOLDS = 10  # of groups, that the temperature is fitted without in turn


def ranks(similarity: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Per query (queries,): how many items that are not relevant come before the best relevant one; inf where there is none.

    Args:
        similarity: (queries, items).
        relevant: bool alike.
    """
    return ranks_of_pairs(similarity, *np.nonzero(relevant))


def ranks_of_pairs(similarity: np.ndarray, query: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The same, where `item[i]` is relevant to `query[i]` (pairs,), each pair once: nothing as large as the similarities is made
    but one comparison of them."""
    best = np.full(len(similarity), -np.inf, dtype=np.result_type(similarity, np.float16))
    own = similarity[query, item]
    with np.errstate(invalid="ignore"):
        np.maximum.at(best, query, own)
    ahead = np.count_nonzero(~(similarity < best[:, None]), axis=1)  # written so that NaN counts as ahead
    ahead -= np.bincount(query, ~(own < best[query]), minlength=len(best)).astype(int)
    return np.where(np.isfinite(best), ahead, np.inf)


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
    _, inverse, rows = np.unique(truth, return_inverse=True, return_counts=True)
    return float(np.mean(np.bincount(inverse, predicted == truth, minlength=len(rows)) / rows))


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
    auroc, precision = one_against_rest(truth, scores) if ranked else (float("nan"), float("nan"))
    found |= {"macro_auroc": auroc, "macro_average_precision": precision}
    ahead = ranks_of_pairs(scores, np.arange(len(truth)), truth)
    return found | {f"top{k}_accuracy": float(np.mean(ahead < k)) for k in (3, 5) if scores.shape[1] > k}


def one_against_rest(truth: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve and average precision of each class against the rest, both means over the classes that occur.

    Of a class only the rows of it are looked up among all sorted ones, ties counted half in the area and as one threshold in
    the precision, so a thousand classes cost little more than sorting.

    Args:
        truth: class ids (rows,), of at least two classes. scores: (rows, classes), all finite.
    """
    occurring, counts = np.unique(truth, return_counts=True)
    members = np.split(np.argsort(truth, kind="stable"), np.cumsum(counts)[:-1])
    rows, areas, precisions = len(truth), [], []
    for number, of_it in zip(occurring, members, strict=True):
        every, own = np.sort(scores[:, number]), np.sort(scores[of_it, number])
        below, up_to = np.searchsorted(every, own, "left"), np.searchsorted(every, own, "right")
        n = len(own)
        areas.append((((below + up_to) / 2).sum() - n * n / 2) / (n * (rows - n)))  # a pair of its own rows is half won
        precisions.append(np.mean((n - np.searchsorted(own, own, "left")) / (rows - below)))
    return float(np.mean(areas)), float(np.mean(precisions))


def by_class(truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> list[ClassErrors]:
    """Recall, precision and rows of each class; None where nothing was of it, or nothing was called it."""
    each = [truth[truth == predicted], truth, predicted[predicted >= 0]]
    counted = np.stack([np.bincount(ids, minlength=len(classes)) for ids in each], axis=1).tolist()
    return [
        ClassErrors(name=name, rows=n, recall=hits / n if n else None, precision=hits / called if called else None)
        for name, (hits, n, called) in zip(classes, counted, strict=True)
    ]


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> sparse.csr_array:
    """(classes, classes + 1) counts, sparse: row is the truth, column the answer, the last column no answer."""
    answer = np.where(predicted < 0, classes, predicted)
    counts = sparse.csr_array((np.ones(len(truth), int), (truth, answer)), shape=(classes, classes + 1))
    counts.sum_duplicates()
    return counts


# Calibration (Guo et al. 2017, https://arxiv.org/abs/1706.04599) -------------------------------------------------------


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities (rows, classes), in float64: a softmax in fp32 would make ties of what is nearly sure."""
    out: np.ndarray = scores.astype(np.float64)
    for some in np.array_split(out, max(1, out.size // BLOCK)):  # views; in parts, so that no further copy is as large
        some -= some.max(axis=1, keepdims=True)
        some -= np.log(np.exp(some).sum(axis=1, keepdims=True))
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
    """The factor on scores (the inverse temperature) at which the classes of `truth` are likeliest; NaN where nothing fits.

    One more row whose class is any of them keeps the factor finite where every row is right, as Laplace's rule does of a share.
    """
    from scipy.optimize import minimize_scalar

    if not len(truth) or scores.shape[1] < 2 or not np.isfinite(scores).all():
        return float("nan")
    rows = np.arange(len(truth))

    def unlikely(log_scale: float) -> float:
        sure = log_softmax(np.exp(log_scale) * scores.astype(np.float64))
        return -float(sure[rows, truth].sum() + sure.mean()) / (len(rows) + 1)

    return float(np.exp(minimize_scalar(unlikely, bounds=(np.log(1e-2), np.log(1e4)), method="bounded").x))


def can_calibrate(groups: np.ndarray) -> bool:
    """Whether rows of such groups say anything of the temperature."""
    return effective_groups(groups) > FEW_GROUPS


def calibrated_scale(truth: np.ndarray, scores: np.ndarray, groups: np.ndarray, own: float) -> float:
    """The factor on scores at which probabilities are right for new groups; NaN where nothing fits.

    It is the fitted one, moved towards the model's own as far as groups disagree: three modules that happen to be hard say little of the
    next (James and Stein 1961, with the variance of a jackknife of groups, which few of them underrate). Three groups or fewer say nothing.

    Args:
        groups: of each row (n,).
        own: the factor that the model learned.
    """
    fitted = fitted_scale(truth, scores)
    if not np.isfinite(fitted):
        return fitted
    if not can_calibrate(groups):
        return own
    fold = np.unique(groups, return_inverse=True)[1] % FOLDS
    count = int(fold.max()) + 1
    without = np.log([fitted_scale(truth[fold != one], scores[fold != one]) for one in range(count)])
    variance = (count - 1) / count * float(((without - without.mean()) ** 2).sum())
    moved = float(np.log(fitted / own))
    kept = max(0.0, 1 - (count - 1) / (count - FEW_GROUPS) * variance / moved**2) if moved else 0.0
    return float(own * np.exp(kept * moved))


# Where embeddings lie -------------------------------------------------------------------------------------------------


def geometry(image: np.ndarray, text: np.ndarray, own: np.ndarray | None = None, sample: int = 2000) -> dict[str, float]:
    """How a model uses its space; row `own[i]` of `text` (m, d) is the caption of row i of `image` (n, d), without `own` row i.

    Returns: modality_gap, the distance between the mean image and the mean text (Liang et al. 2022,
        https://arxiv.org/abs/2203.02053); alignment, the mean squared distance of pairs, and uniformity of images and of
        texts, the log of the mean Gaussian potential of two of them (Wang & Isola 2020, https://arxiv.org/abs/2005.10242;
        less is better for all three). All on the unit sphere.
    """
    chosen = np.random.default_rng(0).permutation(len(image))[:sample]
    image, text = image[chosen], text[chosen if own is None else own[chosen]]
    image, text = (unit(x.astype(np.float64)) for x in (image, text))
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

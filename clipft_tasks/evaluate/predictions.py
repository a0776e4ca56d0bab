"""What a model said of each row of a split, and every metric, interval and paired test that follows from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy import sparse

from ..contracts.evaluation import AnswerShares, Comparison, DoubtedLabels, Interval, MetricInfo, Opponent, PairedGain
from ..core.errors import ClipftError
from ..spec.metric_catalog import INTERVALS, METRICS, is_custom
from . import custom_metric
from . import metrics as m
from .bootstrap import Groups, Sums, gain_interval, holm, interval, p_value, resampled
from .label_errors import contradicted

__all__ = ["Predictions"]


@dataclass(frozen=True)
class Predictions:
    """What a model said of each row. Every metric is computed from this, those of your own too."""

    keys: np.ndarray  # (rows,) the rows' keys in the manifest
    groups: np.ndarray  # (rows,) what bootstrap resamples as a whole
    truth: np.ndarray  # (rows,) class id, -1 where unknown
    predicted: np.ndarray  # (rows,) class id, -1 where a score is NaN
    margin: np.ndarray  # (rows,) best class similarity minus the second best
    scores: np.ndarray  # (rows, classes) similarities; no columns with fewer than two classes
    image_rank: np.ndarray  # (rows,) captions of other images that come before the best of its own
    text_rank: np.ndarray  # (rows,) other captions' images that come before the best of its caption's
    image_weight: np.ndarray  # (rows,) one over the rows of its image: an image with five captions is one query, not five
    image: np.ndarray  # (rows, d) embeddings
    scale: float  # the model's inverse temperature
    seconds: float  # in the model per image, median over the batches that ran
    geometry: dict[str, float]  # where embeddings lie (metrics.geometry)

    def take(self, rows: np.ndarray) -> "Predictions":
        """The same model on some of the rows."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: x[rows] for name, x in arrays.items() if isinstance(x, np.ndarray)})

    def sums(self, metric: str) -> Sums:
        """A metric as a function of sums over rows. Raises ClipftError with those that can be written so."""
        if metric in _RECALL_AT:
            query, k = _RECALL_AT[metric]
            weight = self.image_weight if query == "image" else np.ones(len(self.image_weight))
            return Sums.ratio(weight * (getattr(self, f"{query}_rank") < k), weight)
        known = self.truth >= 0
        if metric == "accuracy":
            return Sums.ratio(known & (self.truth == self.predicted), known)
        if metric in _PER_CLASS:
            return self._per_class(_PER_CLASS[metric])
        own = custom_metric.REGISTRY.load(metric)().sums(self) if is_custom(metric) else None
        if own is None:
            raise ClipftError(
                f"metric {metric!r}", "it has no interval", f"Choose one of {', '.join(INTERVALS)}.", code="metric.no_interval"
            )
        return own

    def _per_class(self, of: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Sums:
        """The mean over classes that occur of a function of rows of it, hits, and rows called it."""
        classes = np.unique(self.truth[self.truth >= 0])
        shape = (len(self.truth), 3 * len(classes))
        pieces = [np.where(self.truth == self.predicted, self.truth, -1), self.predicted]
        rows, columns = [], []
        for place, ids in enumerate([self.truth, *pieces]):
            chosen = np.flatnonzero((self.truth >= 0) & np.isin(ids, classes))
            rows.append(chosen)
            columns.append(np.searchsorted(classes, ids[chosen]) + place * len(classes))
        at = (np.concatenate(rows), np.concatenate(columns))

        def value_of(sums: np.ndarray) -> np.ndarray:
            n, hits, called = (sums[..., i * len(classes) : (i + 1) * len(classes)] for i in range(3))
            there = n > 0
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.where(there, of(n, hits, called), 0).sum(axis=-1) / there.sum(axis=-1)  # type: ignore[no-any-return]

        return Sums(sparse.csr_array((np.ones(len(at[0])), at), shape=shape), value_of)


_RECALL_AT = {f"{q}_to_{i}_r{k}": (q, k) for q, i in (("image", "text"), ("text", "image")) for k in (1, 5, 10)}
_PER_CLASS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "balanced_accuracy": lambda n, hits, called: hits / n,
    "macro_f1": lambda n, hits, called: 2 * hits / (n + called),
}


# Values ---------------------------------------------------------------------------------------------------------------


def all_metrics(predictions: Predictions) -> tuple[dict[str, float], dict[str, str]]:
    """Every metric of a model by name, and for those that cannot be computed the reason."""
    found: dict[str, float] = {}
    absent: dict[str, str] = {}
    known = predictions.truth >= 0
    if predictions.scores.shape[1] < 2:
        absent["classification"] = "the data set has fewer than two classes"
    elif not known.any():
        absent["classification"] = "no row of the split has a label"
    else:
        truth, predicted = predictions.truth[known], predictions.predicted[known]
        log_probabilities = m.log_softmax(predictions.scale * predictions.scores[known])
        found |= m.classification(truth, predicted, log_probabilities)
        found["calibration_error"] = m.calibration_error(m.reliability(truth, predicted, log_probabilities))
        if len(np.unique(truth)) < 2:
            absent["macro_auroc"] = absent["macro_average_precision"] = "the rows are all of one class"
    for name in _RECALL_AT:
        found[name] = predictions.sums(name).value
    found["image_to_text_median_rank"] = 1 + _median(predictions.image_rank, predictions.image_weight)
    found["text_to_image_median_rank"] = 1 + _median(predictions.text_rank, np.ones(len(predictions.text_rank)))
    found |= predictions.geometry | {"milliseconds_per_image": predictions.seconds * 1000}
    for name, value in found.items():
        if not np.isfinite(value):
            nan = np.isnan(predictions.scores).any()
            absent.setdefault(name, "the model's scores are not all numbers" if nan else "too few rows")
    return {name: value for name, value in found.items() if np.isfinite(value)}, absent


def answer_shares(predictions: Predictions, classes: Sequence[str]) -> AnswerShares | None:
    """Which class a model names most often, and how often that is right; None without labels."""
    known = predictions.truth >= 0
    if predictions.scores.shape[1] < 2 or not known.any():
        return None
    truth, predicted = predictions.truth[known], predictions.predicted[known]
    commonest = int(np.argmax(np.bincount(predicted + 1))) - 1  # -1 where there is no answer
    return AnswerShares(
        commonest=classes[commonest] if commonest >= 0 else "",
        share=float(np.mean(predicted == commonest)),
        expected=float(np.mean(truth == commonest)),
        chance=1 / len(np.unique(truth)),
    )


def doubted_labels(one: Predictions, other: Predictions) -> DoubtedLabels | None:
    """Rows that `one` gets wrong, and those among them whose label both contradict alike; None without labels."""
    known = (one.truth >= 0) & (one.predicted >= 0) & (other.predicted >= 0)
    if one.scores.shape[1] < 2 or not known.any():
        return None
    truth = one.truth[known]
    said = [contradicted(np.exp(m.log_softmax(each.scale * each.scores[known])), truth) for each in (one, other)]
    alike = (said[0] >= 0) & (said[0] == said[1])
    return DoubtedLabels(errors=int(np.sum(one.predicted[known] != truth)), doubted=int(np.sum(alike)))


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(np.mean([values[order][np.searchsorted(reached, half)] for half in (0.5 - 1e-9, 0.5 + 1e-9)]))


def calibration(test: Predictions, val: Predictions) -> dict[str, float]:
    """The temperature that the validation rows ask for, and what is left of the calibration error with it; {} without labels."""
    labeled, known = val.truth >= 0, test.truth >= 0
    scale = m.calibrated_scale(val.truth[labeled], val.scores[labeled], val.groups[labeled], test.scale)
    if not np.isfinite(scale) or not known.any() or np.isnan(test.scores).any():
        return {}
    log_probabilities = m.log_softmax(scale * test.scores[known])
    error = m.calibration_error(m.reliability(test.truth[known], test.predicted[known], log_probabilities))
    return {"temperature": 1 / test.scale, "fitted_temperature": 1 / scale, "fitted_calibration_error": error}


# Intervals and paired tests -------------------------------------------------------------------------------------------


def intervals(predictions: Predictions, names: Sequence[str], resamples: int) -> dict[str, Interval]:
    """Each metric's value and 95% interval."""
    sums = [predictions.sums(name) for name in names]
    values = resampled(sums, predictions.groups, resamples)
    return {name: _interval(name, s, v, predictions.groups) for name, s, v in zip(names, sums, values, strict=True)}


def paired_gain(new: Predictions, old: Predictions, metric: str, resamples: int) -> PairedGain:
    """new minus old on the same rows, with the 95% interval and the two-sided p of a paired test by group.

    Raises: ClipftError when the two were scored on different rows.
    """
    return _paired_gains(new, [old], [metric], resamples)[0][0]


def comparisons(
    new: Predictions, others: Mapping[Opponent, Predictions], names: Sequence[str], resamples: int
) -> list[Comparison]:
    """new minus each other in each metric, on the same rows and the same resamples; p is corrected for their number (Holm).

    Raises: ClipftError when two were scored on different rows.
    """
    gains = _paired_gains(new, list(others.values()), names, resamples)
    found = [(name, who, gain) for who, row in zip(others, gains, strict=True) for name, gain in zip(names, row, strict=True)]
    corrected = holm([gain.p for _, _, gain in found])
    return [
        Comparison(metric=name, against=who, p_holm=p, **dict(gain))
        for (name, who, gain), p in zip(found, corrected, strict=True)
    ]


def _paired_gains(
    new: Predictions, others: Sequence[Predictions], names: Sequence[str], resamples: int
) -> list[list[PairedGain]]:
    """By other and name."""
    for old in others:
        if not np.array_equal(new.keys, old.keys):
            both = len(np.intersect1d(new.keys, old.keys))
            raise ClipftError(
                "a comparison of two models",
                f"they were scored on different test rows ({len(new.keys)} and {len(old.keys)}, {both} of them shared)",
                "Evaluate both on the same dataset version and split.",
                code="compare.different_rows",
            )
    everyone = [new, *others]
    sums = [[predictions.sums(name) for name in names] for predictions in everyone]
    values = resampled([s for each in sums for s in each], new.groups, resamples).reshape(len(everyone), len(names), -1)

    def gain(other: int, name: int) -> PairedGain:
        value, differences = sums[0][name].value - sums[other][name].value, values[0, name] - values[other, name]
        info, groups = _info(names[name]), Groups.of(new.groups, sums[0][name])
        span = None if info.low is None or info.high is None else info.high - info.low
        low, high = gain_interval(value, differences, groups, span)
        return PairedGain(value=value, low=low, high=high, groups=groups.count, p=p_value(value, differences, groups))

    return [[gain(other, name) for name in range(len(names))] for other in range(1, len(everyone))]


def _interval(name: str, metric: Sums, values: np.ndarray, of_rows: np.ndarray) -> Interval:
    info, groups = _info(name), Groups.of(of_rows, metric)
    low, high = interval(metric.value, values, groups, info.low, info.high)
    return Interval(value=metric.value, low=low, high=high, groups=groups.count)


def _info(name: str) -> MetricInfo:
    return custom_metric.REGISTRY.load(name).info if is_custom(name) else METRICS[name]

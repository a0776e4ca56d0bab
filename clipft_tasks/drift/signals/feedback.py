"""The signal of feedback: how often answers are right."""

from collections.abc import Mapping

from ...core.proportions import wilson
from ..reference import Reference
from ..thresholds import ACCURACY_DROP, MIN_JUDGED
from .base import CONCEPT, SampleComparison, Signal, Statistic, WindowMetric


class Performance(Signal):
    name, rows, cause, fixed_limit, fewest_rows = "performance", "feedback", CONCEPT, ACCURACY_DROP, MIN_JUDGED
    description = "answers with feedback: even the upper end of their interval is below the accuracy at training"
    metrics = (
        WindowMetric("accuracy", "live_accuracy_ratio", "Share of answers with feedback that were right.", "feedback"),
        WindowMetric("accuracy_low", "live_accuracy_low_ratio", "Lower end of its 95% interval.", None),
        WindowMetric("accuracy_high", "live_accuracy_high_ratio", "Upper end of its 95% interval.", None),
    )

    def applies(self, reference: Reference) -> bool:
        return reference.facts.baseline.rows > 0

    def measure(self, samples: SampleComparison) -> Statistic:
        _, high = wilson(samples.window.right, samples.window.feedback)
        return Statistic(samples.reference.facts.baseline.value - high)  # only what even the upper end misses is a loss

    def values(self, samples: SampleComparison, found: Statistic | None) -> Mapping[str, float]:
        right, count = samples.window.right, samples.window.feedback
        return {"accuracy": right / count, **interval(right, count)} if count else {}


def interval(right: int, count: int) -> dict[str, float]:
    """The 95% interval of the accuracy, as metrics."""
    low, high = wilson(right, count)
    return {"accuracy_low": float(low), "accuracy_high": float(high)}

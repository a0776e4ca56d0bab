"""A metric of your own: a class, named in `evaluate.metrics` or in a gate rule.

    class TopTwo(Metric):
        info = MetricInfo(description="the right class among the best two", needs_labels=True)

        def value(self, predictions):
            known = predictions.truth >= 0
            best = predictions.scores[known].argsort(axis=1)[:, -2:]
            return float((best == predictions.truth[known, None]).any(axis=1).mean())

It is known as `module:Class`, or by the name of an entry point of the group `clipft.metrics`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..contracts.evaluation import MetricInfo
from ..core.errors import ClipftError
from ..core.plugins import classes, source_digest
from .bootstrap import Sums

if TYPE_CHECKING:
    from .predictions import Predictions

__all__ = ["Metric", "MetricInfo", "Sums"]


class Metric(ABC):
    """What a metric of your own gives. `info` says what it is; with `interval` in it, `sums` must be given too."""

    info: ClassVar[MetricInfo]

    @abstractmethod
    def value(self, predictions: "Predictions") -> float:
        """The metric on these rows, all of them or a slice; NaN where they do not allow it."""

    def sums(self, predictions: "Predictions") -> Sums | None:
        """The metric as a function of sums over rows, which gives it an interval and a paired test."""
        return None


REGISTRY = classes("metric", Metric, {})  # type: ignore[type-abstract]  # only subclasses are made


def load(names: Iterable[str]) -> dict[str, Metric]:
    """One of each. Raises ClipftError for a name that there is not, or a class that is not whole."""
    found = {}
    for name in names:
        kind = REGISTRY.load(name)
        if not isinstance(getattr(kind, "info", None), MetricInfo):
            raise ClipftError(
                f"metric {name!r}",
                "it does not say what it is",
                "Give its class an `info = MetricInfo(…)`.",
                code="metric.incomplete",
            )
        if kind.info.interval and kind.sums is Metric.sums:
            raise ClipftError(
                f"metric {name!r}",
                "its `info` says `interval`, and it has no `sums`",
                "Add one, or leave that out.",
                code="metric.incomplete",
            )
        found[name] = kind()
    return found


def code_of(names: Iterable[str]) -> dict[str, str]:
    """A digest of each one's source, by name: an edited metric is evaluated anew."""
    return {name: source_digest(REGISTRY.load(name)) for name in names}


def measure(metrics: dict[str, Metric], predictions: "Predictions") -> tuple[dict[str, float], dict[str, str]]:
    """Each metric on these rows, and for those that cannot be computed the reason. No metric hides the others."""
    found: dict[str, float] = {}
    absent: dict[str, str] = {}
    known = bool((predictions.truth >= 0).any()) and predictions.scores.shape[1] > 1
    for name, metric in metrics.items():
        if metric.info.needs_labels and not known:
            continue  # why is said once, for all of them
        try:
            value = float(metric.value(predictions))
        except Exception as error:  # code of a person's own may raise anything
            absent[name] = f"it raised {type(error).__name__}: {error}"
            continue
        if np.isfinite(value):
            found[name] = value
        else:
            absent[name] = "it gave no finite number on these rows"
    return found, absent

"""The catalog of drift signals: those that ship, and those that other packages or the settings add.

A signal is one class (see `Signal`) and one line here. Windows, limits of references, diagnosis, the server's metrics and
Grafana's panels read this catalog; Prometheus' rules are checked against it.
"""

from functools import cache

from ...core.errors import ClipftError
from ...core.plugins import classes
from ...core.settings import settings
from ..thresholds import SIGNIFICANCE
from .base import (
    ROW_KINDS,
    UNKNOWN,
    Cause,
    MetricSource,
    RowKind,
    SampleComparison,
    Signal,
    Statistic,
    WindowMetric,
)
from .feedback import Performance
from .images import OF_IMAGES, EstimatedAccuracy, OutOfRange, two_sample_auc
from .texts import Alignment, ModalityGap, TextEmbeddings

SHIPPED: tuple[Signal, ...] = (*OF_IMAGES, TextEmbeddings(), Alignment(), Performance())
OTHER_METRICS: tuple[MetricSource, ...] = (OutOfRange(), EstimatedAccuracy(), ModalityGap())
REGISTRY = classes("drift_signal", Signal, {})  # type: ignore[type-abstract]  # only subclasses are made


@cache
def signals() -> dict[str, Signal]:
    """Every signal by name, in the order of reports.

    Raises: ClipftError where one from outside cannot be loaded, or is called like another.
    """
    named = [name.strip() for name in settings().drift_signals.split(",") if name.strip()]
    found = {signal.name: signal for signal in SHIPPED}
    for kind in [*REGISTRY.offered(), *map(REGISTRY.load, named)]:
        signal = kind()
        if signal.name in found:
            what = f"drift signal {kind.__module__}:{kind.__name__}"
            raise ClipftError(what, f"there is one called {signal.name!r} already", "Call it otherwise.")
        found[signal.name] = signal
    return found


@cache
def sources() -> tuple[MetricSource, ...]:
    """Everything that publishes metrics of a window."""
    return (*signals().values(), *OTHER_METRICS)


@cache
def window_metrics() -> dict[str, WindowMetric]:
    """Every metric that a window may publish, by name."""
    return {metric.name: metric for source in sources() for metric in source.metrics}


def ratio(found: Statistic, limit: float) -> float:
    """A statistic over its limit; one that chance explains is never over it."""
    over = max(0.0, found.value / limit)
    return float(min(over, 1.0) if found.p_value > SIGNIFICANCE else over)


def ratios(samples: SampleComparison, kind: RowKind = "images", embedded: bool = True) -> dict[str, float]:
    """Every signal of a kind over its limit, by name.

    Args:
        embedded: False where the window holds image statistics alone.
    """
    measurable = [s for s in signals().values() if s.rows == kind and (embedded or not s.needs_embeddings)]
    limits = [(s, limit) for s in measurable if (limit := s.limit(samples.reference)) is not None]
    return {s.name: ratio(s.measure(samples), limit) for s, limit in limits}


def cause_of(name: str) -> Cause:
    """What a signal speaks for, whoever knows it."""
    return signals()[name].cause if name in signals() else UNKNOWN


__all__ = [
    "ROW_KINDS",
    "Cause",
    "MetricSource",
    "RowKind",
    "SampleComparison",
    "Signal",
    "Statistic",
    "WindowMetric",
    "cause_of",
    "ratio",
    "ratios",
    "signals",
    "sources",
    "two_sample_auc",
    "window_metrics",
]

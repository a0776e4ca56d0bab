"""The catalog of drift signals: those that ship, and those that other packages or the settings add.

A signal is one class (see `Signal`) and one line here. Windows, limits of references, diagnosis, the server's metrics and
Grafana's panels read this catalog; Prometheus' rules are checked against it.
"""

import math
from collections.abc import Mapping
from functools import cache

from ...contracts.drift import ERRORS
from ...core.console import say
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
        _check(signal, found)
        found[signal.name] = signal
    return found


def _check(signal: Signal, known: Mapping[str, Signal]) -> None:
    what = f"drift signal {type(signal).__module__}:{type(signal).__name__}"
    if missing := [name for name in ("name", "rows", "description", "cause") if not hasattr(signal, name)]:
        raise ClipftError(what, f"it has no {', '.join(missing)}", "Give the class these attributes.", code="signal.incomplete")
    if signal.name in known or signal.name == ERRORS:
        raise ClipftError(what, f"there is one called {signal.name!r} already", "Call it otherwise.", code="signal.name_taken")
    if signal.rows not in ROW_KINDS:
        raise ClipftError(what, f"rows is {signal.rows!r}", f"It is one of {', '.join(ROW_KINDS)}.", code="signal.unknown_rows")
    if signal.rows == "feedback" and signal.fixed_limit is None:
        raise ClipftError(
            what, "a reference holds no feedback to simulate its limit on", "Give it a fixed_limit.", code="signal.no_limit"
        )


@cache
def sources() -> tuple[MetricSource, ...]:
    """Everything that publishes metrics of a window."""
    return (*signals().values(), *OTHER_METRICS)


@cache
def window_metrics() -> dict[str, WindowMetric]:
    """Every metric that a window may publish, by name."""
    return {metric.name: metric for source in sources() for metric in source.metrics}


def measure(signal: Signal, samples: SampleComparison) -> Statistic | None:
    """What a signal finds; None, with a line in the log, where one from outside raises or finds no finite number."""
    if signal in SHIPPED:
        return signal.measure(samples)
    try:
        found = signal.measure(samples)
        if not math.isfinite(found.value):
            raise ValueError(f"it found {found.value}")
    except Exception as error:  # somebody else's code must not end the measuring of the others
        _log(f"The drift signal {signal.name} is left out: {error!r}")
        return None
    return found


def values(source: MetricSource, samples: SampleComparison, found: Statistic | None) -> dict[str, float]:
    """The metrics of a source, likewise."""
    try:
        return {name: float(value) for name, value in source.values(samples, found).items()}
    except Exception as error:
        if source in SHIPPED or source in OTHER_METRICS:
            raise
        _log(f"The metrics of {type(source).__name__} are left out: {error!r}")
        return {}


@cache
def _log(line: str) -> None:
    """Once a process: a window is measured every few seconds."""
    say(line)


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
    return {s.name: ratio(found, limit) for s, limit in limits if (found := measure(s, samples)) is not None}


def describe(name: str) -> str:
    """What a signal measures; "" for one that this release does not know."""
    return signals()[name].description if name in signals() else ""


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
    "describe",
    "measure",
    "ratio",
    "ratios",
    "signals",
    "sources",
    "two_sample_auc",
    "values",
    "window_metrics",
]

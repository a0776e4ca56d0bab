"""The page of a comparison: one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jinja2
import numpy as np

from ..contracts.comparison import ChangedRow, DomainComparison, ModelComparison
from ..contracts.evaluation import of_groups
from ..spec.metric_catalog import METRICS
from .compare import SURE

COLORS = ("#1769aa", "#d9682b", "#2e8b57", "#8a5cc2", "#b8860b", "#c2185b", "#00838f", "#6d7682")
DASHES = ("", "7 4", "2 4", "9 3 2 3")
SHOWN_IMAGES = 8  # of each direction
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 1e9)  # of an axis
Change = tuple[str, str, Literal["fixed", "broken"]]  # old model, new model, direction


@dataclass(frozen=True)
class ChangedImage:
    """A row that one model names right and the other wrong: `image` is a small copy as a data URI."""

    image: str
    row: ChangedRow


@dataclass(frozen=True)
class CurvePoint:
    """A point and the ends of its interval, in the drawing's coordinates."""

    x: float
    y: float
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Curve:
    """Coordinates of the metric over image size: one line a model with its intervals, and the axes."""

    width: int
    height: int
    left: int
    right: int
    bottom: int
    x_ticks: Sequence[tuple[float, int]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Mapping[str, Sequence[CurvePoint]]


def page(comparison: ModelComparison, images: Mapping[Change, Sequence[ChangedImage]]) -> str:
    """The report as HTML with everything inside: no request leaves the page."""
    template = Path(__file__).with_name("compare.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "cell": _cell,
        "duration": _duration,
        "of_groups": of_groups,
        "words": lambda text: str(text).replace("_", " "),
    }
    names = [model.name for model in comparison.models]
    style = {name: {"color": COLORS[i % len(COLORS)], "dash": DASHES[i % len(DASHES)]} for i, name in enumerate(names)}
    return environment.from_string(template).render(
        found=comparison,
        names=names,
        style=style,
        curves=[curve(group) for group in comparison.groups],
        images=images,
        infos=METRICS,
        sure=SURE,
    )


def curve(group: DomainComparison, width: int = 560, height: int = 250) -> Curve:
    """The metric of each model by image size."""
    found = {name: [by_size[size][group.metric] for size in group.sizes] for name, by_size in group.metrics.items()}
    ends = np.array([[f.low, f.high, f.value] for values in found.values() for f in values], dtype=float)
    ends = ends[np.isfinite(ends)]
    low, high = (float(ends.min()), float(ends.max())) if len(ends) else (0.0, 1.0)
    step = next(s for s in STEPS if (high - low) / s <= 5)
    low, high = step * np.floor(low / step), step * np.ceil(high / step) if high > low else low + step
    high = high if high > low else low + step
    left, right, top, bottom = 52, width - 24, 12, height - 34
    first, last = group.sizes[0], group.sizes[-1]

    def x(size: float) -> float:
        return (left + right) / 2 if first == last else left + (right - left) * (size - first) / (last - first)

    def y(value: float) -> float:
        return float(bottom - (bottom - top) * (value - low) / (high - low))

    lines = {}
    for i, (name, values) in enumerate(found.items()):
        shift = 3.0 * (i - (len(found) - 1) / 2)  # intervals of several models must not hide one another
        lines[name] = [
            CurvePoint(x(size) + shift, y(f.value), y(f.low), y(f.high), f"{f.value:.3f}")
            for size, f in zip(group.sizes, values, strict=True)
            if f.low is not None and f.high is not None and np.isfinite([f.value, f.low, f.high]).all()
        ]
    ticks = [(y(value), f"{value:.2f}") for value in np.arange(low, high + step / 2, step)]
    return Curve(width, height, left, right, bottom, [(x(size), size) for size in group.sizes], ticks, lines)


def _cell(value: float | None, form: str = "%.3f") -> str:
    """A number for a table, a dash for none."""
    return "–" if value is None or value != value else form % value


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"

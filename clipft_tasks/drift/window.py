"""The window: what one version saw lately, and how far that is from its reference."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .reference import ImageRows, Reference, Sample
from .signals import (
    ROW_KINDS,
    MetricSource,
    RowKind,
    SampleComparison,
    Signal,
    Statistic,
    measure,
    ratio,
    signals,
    sources,
    values,
    window_metrics,
)
from .signals.feedback import interval
from .statistics import Array, unit
from .thresholds import WINDOW_MIN_ROWS, WINDOW_ROWS, WINDOW_SECONDS

PERMUTATIONS = 250


class Mark(NamedTuple):
    """Which row of a window it is, counted from its beginning, and the answer that it came with ("" where that is not known)."""

    number: int
    answer: str


@dataclass(frozen=True)
class WindowRow:
    """A row of a window, as it is kept. `values`: of an image embedding, image statistics and similarities; else one array."""

    kind: RowKind
    at: float
    mark: Mark
    values: tuple[Array, ...]


@dataclass(frozen=True)
class DriftMetrics:
    """What a window says.

    Attributes:
        drift: signal -> statistic over its limit; above 1 is drift. "performance" is there once feedback came.
        values: further metrics by name, in their own units.
        images, texts, feedback, pairs: how many the window holds.
        rows: signal -> rows that it was measured on: the whole window's, or only its newest where those drift more.
    """

    drift: dict[str, float]
    values: dict[str, float]
    images: int
    texts: int
    feedback: int
    rows: dict[str, int] = field(default_factory=dict)
    pairs: int = 0

    @property
    def worst(self) -> tuple[str, float]:
        """The signal that drifts most."""
        return max(self.drift.items(), key=lambda kv: kv[1], default=("", 0.0))

    def count(self, kind: RowKind) -> int:
        """How many rows of a kind the window holds."""
        return int(getattr(self, kind))


def pooled(windows: Sequence[DriftMetrics]) -> DriftMetrics:
    """Several replicas' windows of one version, as one: each counts by the rows that speak for it, as in Prometheus' rules.

    Intervals are those of all answers with feedback together. A p-value belongs to one window, so several have none.
    """
    if len(windows) == 1:
        return windows[0]

    def mean(found: list[tuple[float, int]]) -> float:
        weight = sum(rows for _, rows in found)
        return sum(value * rows for value, rows in found) / weight if weight else 0.0

    names = dict.fromkeys(name for w in windows for name in w.drift)
    drift = {name: mean([(w.drift[name], w.rows[name]) for w in windows if name in w.drift]) for name in names}
    rows = {name: sum(w.rows[name] for w in windows if name in w.drift) for name in names}
    weights = {name: metric.pooled_by for name, metric in window_metrics().items() if metric.pooled_by}
    means = {
        name: mean([(w.values[name], w.count(kind)) for w in windows if name in w.values])
        for name, kind in weights.items()
        if any(name in w.values for w in windows)
    }
    counts = {kind: sum(w.count(kind) for w in windows) for kind in ROW_KINDS}
    if "accuracy" in means:
        means |= interval(round(means["accuracy"] * counts["feedback"]), counts["feedback"])
    return DriftMetrics(drift, means, rows=rows, **counts)


@dataclass
class Window:
    """The last images and texts of one model version. Not for several threads at once; the server guards it.

    Images arrive one request at a time and leave when `size` newer ones came or `seconds` went by.
    """

    reference: Reference
    size: int = WINDOW_ROWS
    least: int = WINDOW_MIN_ROWS
    seconds: float = WINDOW_SECONDS
    seen: int = 0  # images since the beginning
    changes: int = 0  # rows of any kind since the beginning
    _images: deque[tuple[float, Mark, Array, Array, Array]] = field(default_factory=deque)
    _texts: deque[tuple[float, Mark, Array]] = field(default_factory=deque)
    _paired: deque[tuple[float, Mark, float]] = field(default_factory=deque)
    _feedback: deque[tuple[float, Mark, bool]] = field(default_factory=deque)
    _marked: int = 0

    def __post_init__(self) -> None:
        for name in ("_images", "_texts", "_paired", "_feedback"):
            setattr(self, name, deque(maxlen=self.size))

    def add_images(self, image: Array, appearance: Array, similarity: Array, answer: str = "") -> None:
        """Images of one request: embeddings (n, d), image statistics (n, 5), similarity with the model's own classes (n, c) or (n, 0).

        Rows that are not finite are counted but not kept. `answer` names the request's answer, by which `forget` finds them.
        """
        now = time.time()
        self.seen += len(image)
        self.changes += len(image)
        whole = np.isfinite(image).all(axis=1) & np.isfinite(appearance).all(axis=1)
        self._images.extend(
            (now, self._mark(answer), *parts)
            for parts in zip(unit(image[whole]), appearance[whole], similarity[whole], strict=True)
        )

    def add_texts(self, text: Array, answer: str = "") -> None:
        now = time.time()
        self.changes += len(text)
        self._texts.extend((now, self._mark(answer), row) for row in unit(text) if np.isfinite(row).all())

    def add_pairs(self, similarity: Sequence[float], answer: str = "") -> None:
        """Similarity of images with the text that belongs to each, as the client says."""
        now = time.time()
        self.changes += len(similarity)
        self._paired.extend((now, self._mark(answer), float(s)) for s in similarity if np.isfinite(s))

    def add_feedback(self, right: bool, answer: str = "") -> None:
        self.changes += 1
        self._feedback.append((time.time(), self._mark(answer), right))

    def forget(self, answer: str) -> int:
        """Drop every row of an answer; returns how many there were."""
        found = 0
        for queue in self._queues.values():
            kept = [row for row in queue if row[1].answer != answer]
            found += len(queue) - len(kept)
            queue.clear()
            queue.extend(kept)
        self.changes += found
        return found

    def kept(self, after: int = 0) -> list[WindowRow]:
        """Its rows beyond a number, to be kept elsewhere."""
        return [
            WindowRow(kind, at, mark, tuple(np.asarray(value) for value in values))
            for kind, queue in self._queues.items()
            for at, mark, *values in queue
            if mark.number > after
        ]

    def oldest(self) -> int:
        """The number of its oldest row; beyond the last where it is empty."""
        return min((queue[0][1].number for queue in self._queues.values() if queue), default=self._marked + 1)

    def restore(self, rows: Sequence[WindowRow]) -> None:
        """Take up rows that were kept, in their order. Raises ValueError for what is no row of this window."""
        width, classes = self.reference.rows.image.shape[1], self.reference.rows.similarity.shape[1]
        wanted = {"images": [(width,), self.reference.rows.appearance.shape[1:], (classes,)], "texts": [(width,)]}
        for row in rows:
            if [value.shape for value in row.values] != wanted.get(row.kind, [()]):
                raise ValueError(f"a row of {row.kind} of another shape")
        for row in sorted(rows, key=lambda row: row.mark.number):
            single = row.values[0] if row.kind in wanted else row.values[0].item()
            self._queues[row.kind].append((row.at, row.mark, *(row.values if row.kind == "images" else (single,))))
            self._marked = max(self._marked, row.mark.number)
        self.seen += sum(row.kind == "images" for row in rows)
        self.changes += len(rows)

    def rows(self) -> ImageRows:
        """The images that are in the window now."""
        self._expire()
        if not self._images:
            return self.reference.rows.take(np.arange(0))
        _, _, *columns = zip(*self._images, strict=True)
        return ImageRows(*(np.stack(c) for c in columns))

    def copy(self) -> "Window":
        """A snapshot, to be measured while the original goes on filling."""
        out = Window(self.reference, self.size, self.least, self.seconds, self.seen)
        for name in ("_images", "_texts", "_paired", "_feedback"):
            getattr(out, name).extend(getattr(self, name))
        return out

    def sample(self) -> Sample:
        """Everything that is in the window now."""
        rows = self.rows()  # drops what is too old
        text = np.stack([row for *_, row in self._texts]) if self._texts else np.zeros((0, 1))
        paired = np.array([s for *_, s in self._paired])
        return Sample(rows, text, paired, len(self._feedback), sum(right for *_, right in self._feedback))

    def measure(self, permutations: int = PERMUTATIONS) -> DriftMetrics:
        """Everything that the window says; a signal is left out while fewer than `least` rows speak for it."""
        sample, reference = self.sample(), self.reference
        whole = SampleComparison(reference, reference.sample, sample, self.least, permutations)
        newest = self._newest(whole)
        drift: dict[str, float] = {}
        rows: dict[str, int] = {}
        found: dict[MetricSource, Statistic] = {}
        for signal in signals().values():
            limit = signal.limit(reference)
            if limit is None or sample.count(signal.rows) < self._fewest(signal):
                continue
            if (statistic := measure(signal, whole)) is None:
                continue
            found[signal] = statistic
            drift[signal.name], rows[signal.name] = ratio(statistic, limit), sample.count(signal.rows)
            # The newest images' p-value is not published, so it is computed only where it could decide something.
            last = measure(signal, newest(limit)) if newest and signal.rows == "images" else None
            if last is not None and (changed := ratio(last, limit)) > drift[signal.name]:
                drift[signal.name], rows[signal.name] = changed, self.least
        published: dict[str, float] = {}
        for source in sources():
            published |= values(source, whole, found.get(source))
        counts = {kind: sample.count(kind) for kind in ROW_KINDS}
        return DriftMetrics(drift, published, rows=rows, **counts)

    def _fewest(self, signal: Signal) -> int:
        return self.least if signal.fewest_rows is None else signal.fewest_rows

    def _newest(self, whole: SampleComparison) -> Callable[[float], SampleComparison] | None:
        """The newest images alone, which show a change long before the whole window is full of it, by what is tested above."""
        images = whole.window.images
        if len(images) <= self.least:
            return None
        last = replace(whole.window, images=images.take(np.arange(len(images) - self.least, len(images))))
        return lambda limit: replace(whole, window=last, tested_above=limit)

    @property
    def _queues(self) -> dict[RowKind, deque[Any]]:  # of rows that begin with a time and a mark
        return {"images": self._images, "texts": self._texts, "pairs": self._paired, "feedback": self._feedback}

    def _mark(self, answer: str) -> Mark:
        self._marked += 1
        return Mark(self._marked, answer)

    def _expire(self) -> None:
        oldest = time.time() - self.seconds
        for queue in self._queues.values():
            while queue and queue[0][0] < oldest:
                queue.popleft()

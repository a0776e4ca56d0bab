"""The window: what one version saw lately, and how far that is from its reference."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import reference as references
from .reference import Reference, Rows
from .statistics import Array, unit, wilson

SIZE = 256  # images, and texts, that a window holds
LEAST = 64  # below this nothing is said: chance would speak
SECONDS = 3600.0  # what is older has left the window
PERMUTATIONS = 250
SIGNIFICANT = 0.005  # p-value above which no distance between embeddings counts
JUDGED = 20  # answers below which nothing is said about performance
DROP = 0.05  # of accuracy below what was promised, that performance may lose before it counts as drift


@dataclass(frozen=True)
class DriftMetrics:
    """What a window says.

    Attributes:
        drift: signal -> metric over its limit; above 1 is drift. "performance" is there once feedback came.
        values: further metrics by name, in their own units.
        images, texts, feedback, pairs: how many the window holds.
        behind: signal -> rows that it was measured on: the whole window's, or only its newest where those drift more.
    """

    drift: dict[str, float]
    values: dict[str, float]
    images: int
    texts: int
    feedback: int
    behind: dict[str, int] = field(default_factory=dict)
    pairs: int = 0

    @property
    def worst(self) -> tuple[str, float]:
        """The signal that drifts most."""
        return max(self.drift.items(), key=lambda kv: kv[1], default=("", 0.0))


def pooled(windows: Sequence[DriftMetrics]) -> DriftMetrics:
    """Several replicas' windows of one version, as one: each counts by the rows that speak for it, as in Prometheus' rules.

    Intervals are those of all judged answers together. A p-value belongs to one window, so several have none.
    """
    if len(windows) == 1:
        return windows[0]

    def mean(found: list[tuple[float, int]]) -> float:
        weight = sum(rows for _, rows in found)
        return sum(value * rows for value, rows in found) / weight if weight else 0.0

    signals = dict.fromkeys(name for w in windows for name in w.drift)
    drift = {name: mean([(w.drift[name], w.behind[name]) for w in windows if name in w.drift]) for name in signals}
    behind = {name: sum(w.behind[name] for w in windows if name in w.drift) for name in signals}
    values: dict[str, float] = {}
    for name in dict.fromkeys(name for w in windows for name in w.values if not name.endswith("_p")):
        kind = "texts" if name.startswith("text_") else {"alignment": "pairs", "accuracy": "feedback"}.get(name, "images")
        values[name] = mean([(w.values[name], getattr(w, kind)) for w in windows if name in w.values])
    images, texts, feedback, pairs = (sum(getattr(w, k) for w in windows) for k in ("images", "texts", "feedback", "pairs"))
    if "accuracy" in values:
        values["accuracy_low"], values["accuracy_high"] = map(float, wilson(round(values["accuracy"] * feedback), feedback))
    return DriftMetrics(drift, values, images, texts, feedback, behind, pairs)


@dataclass
class Window:
    """The last images and texts of one model version. Not for several threads at once; the server guards it.

    Images arrive one request at a time and leave when SIZE newer ones came or SECONDS went by.
    """

    reference: Reference
    size: int = SIZE
    least: int = LEAST
    seconds: float = SECONDS
    seen: int = 0  # images since the beginning
    changes: int = 0  # rows of any kind since the beginning
    _images: deque[tuple[float, Array, Array, Array]] = field(default_factory=deque)
    _texts: deque[tuple[float, Array]] = field(default_factory=deque)
    _paired: deque[tuple[float, float]] = field(default_factory=deque)
    _feedback: deque[tuple[float, bool]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        for name in ("_images", "_texts", "_paired", "_feedback"):
            setattr(self, name, deque(maxlen=self.size))

    def add_images(self, image: Array, appearance: Array, similarity: Array) -> None:
        """Images of one request: embeddings (n, d), appearance (n, 5), similarity with the model's own classes (n, c) or (n, 0).

        Rows that are no numbers are counted but not kept.
        """
        now = time.time()
        self.seen += len(image)
        self.changes += len(image)
        whole = np.isfinite(image).all(axis=1) & np.isfinite(appearance).all(axis=1)
        self._images.extend(
            (now, *parts) for parts in zip(unit(image[whole]), appearance[whole], similarity[whole], strict=True)
        )

    def add_texts(self, text: Array) -> None:
        now = time.time()
        self.changes += len(text)
        self._texts.extend((now, row) for row in unit(text) if np.isfinite(row).all())

    def add_pairs(self, similarity: Sequence[float]) -> None:
        """Similarity of images with the text that belongs to each, as the client says."""
        now = time.time()
        self.changes += len(similarity)
        self._paired.extend((now, float(s)) for s in similarity if np.isfinite(s))

    def add_feedback(self, right: bool) -> None:
        self.changes += 1
        self._feedback.append((time.time(), right))

    def rows(self) -> Rows:
        """The images that are in the window now."""
        self._expire()
        columns = list(zip(*self._images, strict=True))[1:] if self._images else []
        if not columns:
            ref = self.reference.rows
            return Rows(ref.image[:0], ref.appearance[:0], ref.similarity[:0])
        return Rows(*(np.stack(c) for c in columns))

    def copy(self) -> "Window":
        """A snapshot, to be measured while the original goes on filling."""
        out = Window(self.reference, self.size, self.least, self.seconds, self.seen)
        for name in ("_images", "_texts", "_paired", "_feedback"):
            getattr(out, name).extend(getattr(self, name))
        return out

    def measure(self, permutations: int = PERMUTATIONS) -> DriftMetrics:
        """Everything that the window says; a signal is left out while fewer than `least` rows speak for it."""
        ref, rows = self.reference, self.rows()
        drift: dict[str, float] = {}
        behind: dict[str, int] = {}
        values: dict[str, Any] = {}
        limits = ref.limits
        if len(rows) >= self.least:
            drift, values["image_mmd"], values["image_p"] = self._ratios(rows, permutations)
            values["image_auc"] = references.told_apart(ref.rows.image, rows.image)
            behind = dict.fromkeys(drift, len(rows))
            if len(rows) > self.least:
                # The newest rows alone show a change long before the whole window is full of it.
                # Their p-value is not published, so it is computed only where it could decide something.
                last = rows.take(np.arange(len(rows) - self.least, len(rows)))
                newest, _, _ = self._ratios(last, permutations, beyond=limits["image"])
                for name, ratio in newest.items():
                    if ratio > drift[name]:
                        drift[name], behind[name] = ratio, self.least
            low, high = (np.array(ref.facts["range"][side]) for side in ("low", "high"))
            outside = ((rows.appearance < low) | (rows.appearance > high)).any(axis=1)
            values["out_of_range"] = float(outside.mean())
            values |= self._confidence(rows)
        text = np.stack([row for _, row in self._texts]) if self._texts else np.zeros((0, 1))
        if len(text) >= self.least and "text" in limits:
            values["text_mmd"], values["text_p"] = references.text_signal(ref, text, permutations)
            drift["text"] = max(0.0, values["text_mmd"] / limits["text"])
            if values["text_p"] > SIGNIFICANT:
                drift["text"] = min(drift["text"], 1.0)
            behind["text"] = len(text)
            values["text_auc"] = references.told_apart(ref.text, text)
            if len(rows) >= self.least:
                values["modality_gap"] = _gap(rows.image, text)
                values["reference_gap"] = _gap(ref.rows.image, ref.text)
        if self._paired:
            paired = np.array([s for _, s in self._paired])
            values["alignment"] = float(paired.mean())
            if len(paired) >= self.least and "alignment" in limits:
                drift["alignment"] = references.alignment_signal(ref, paired) / limits["alignment"]
                behind["alignment"] = len(paired)
        count, right = len(self._feedback), sum(right for _, right in self._feedback)
        if count:
            values["accuracy"] = right / count
            values["accuracy_low"], values["accuracy_high"] = wilson(right, count)
            if ref.facts["promised"]["rows"] and count >= JUDGED:
                # Only what even the upper end of the interval misses is a loss.
                missed = ref.facts["promised"]["value"] - values["accuracy_high"]
                drift["performance"], behind["performance"] = max(0.0, missed / DROP), count
        ratios, others = ({k: float(v) for k, v in found.items()} for found in (drift, values))
        return DriftMetrics(ratios, others, len(rows), len(text), count, behind, len(self._paired))

    def _ratios(self, rows: Rows, permutations: int, beyond: float = -np.inf) -> tuple[dict[str, float], float, float]:
        """Signals over their limits, the MMD, and its p-value; a distance that chance explains is never over its limit."""
        signals, p = references.signals(self.reference, rows, permutations=permutations, beyond=beyond)
        ratios = {name: max(0.0, value / self.reference.limits[name]) for name, value in signals.items()}
        if p > SIGNIFICANT:
            ratios["image"] = min(ratios["image"], 1.0)
        return ratios, signals["image"], p

    def _confidence(self, rows: Rows) -> dict[str, float]:
        """Accuracy as calibrated confidence would have it."""
        if rows.similarity.shape[1] < 2:
            return {}
        return {"accuracy_estimate": references.confidence(rows.similarity, self.reference.facts["temperature"])}

    def _expire(self) -> None:
        oldest = time.time() - self.seconds
        for queue in (self._images, self._texts, self._paired, self._feedback):
            while queue and queue[0][0] < oldest:  # type: ignore[index]
                queue.popleft()  # type: ignore[attr-defined]


def _gap(image: Array, text: Array) -> float:
    """How far the mean image is from the mean text."""
    return float(np.linalg.norm(image.mean(axis=0) - text.mean(axis=0)))

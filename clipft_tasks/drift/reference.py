"""The reference: what a model was made for, kept in its package, small enough to travel with it everywhere.

It is measured once, on images of the training and validation splits, in the model's own embedding space. Beside each metric
stands its **limit**: what chance alone does not reach, and what the reference's own groups (patients, modules, days) usually do
not reach among themselves. Drift is a metric over its limit, so 1 means the same for every signal and every domain.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ..core.errors import ClipftError
from .image_statistics import STATISTICS
from .statistics import Array, Bins, Projection, classifier_auc, gaussian, median_distance, mmd, one_thread, psi, unit, wilson

TENSORS, FACTS = "reference.safetensors", "reference.json"
ROWS = 512  # of images, at most
AXES = 32
WINDOW = 64  # rows of the windows that limits are measured with; larger ones vary less
CHANCE, GROUPED = 200, 200  # simulated windows
MARGIN = 1.3  # over the largest metric that chance reached
TYPICAL = 0.93  # share of such halves that differ by less than the limit
FORMAT = 1
NEEDED = {"weights", "classes", "limits", "range", "width", "text_width", "apart", "promised", "temperature"}


@dataclass(frozen=True)
class Rows:
    """What a model says about some images; a reference is made of such rows, and so is a window of traffic.

    Args:
        image: (n, d) unit embeddings; appearance: (n, 5), see `appearance`.
        similarity: (n, c) similarity with the classes; (n, 0) for a model without classes.
    """

    image: Array
    appearance: Array
    similarity: Array

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: NDArray[np.intp]) -> "Rows":
        return Rows(self.image[rows], self.appearance[rows], self.similarity[rows])

    @cached_property
    def ranked(self) -> tuple[Array, Array, Array]:
        """Best similarity, its margin over the second best, and the best class, (n,) each; empty without two classes."""
        if self.similarity.shape[1] < 2:
            none = np.zeros(0)
            return none, none, none.astype(int)
        best = np.sort(self.similarity, axis=1)
        return best[:, -1], best[:, -1] - best[:, -2], self.similarity.argmax(axis=1)

    @cached_property
    def bins(self) -> dict[str, Bins]:
        """What a window is compared with, signal by signal: what images look like, and how sure the model is of them."""
        found = {name: Bins.of(self.appearance[:, i]) for i, name in enumerate(STATISTICS)}
        if len(self.ranked[0]):
            found |= {"similarity": Bins.of(self.ranked[0]), "margin": Bins.of(self.ranked[1])}
        return found


@dataclass(frozen=True)
class Reference:
    """A model's reference.

    Attributes:
        rows: a sample of the images.
        text: (m, d) unit embeddings of captions.
        paired: (n,) similarity of each image with its own caption; (0,) where none was measured.
        facts: limits by signal, classes, promised accuracy, temperature of calibrated confidence, what it was made from.
    """

    rows: Rows
    text: Array
    facts: dict[str, Any] = field(default_factory=dict)
    paired: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def limits(self) -> dict[str, float]:
        return dict(self.facts["limits"])

    @property
    def classes(self) -> list[str]:
        return list(self.facts["classes"])

    @cached_property
    def own_kernel(self) -> Array:
        """The kernel of the reference's images among themselves, (n, n): the same for every window."""
        return gaussian(self.rows.image, self.rows.image, self.facts["width"])

    @cached_property
    def own_text_kernel(self) -> Array:
        """Likewise of its texts."""
        return gaussian(self.text, self.text, self.facts["text_width"])

    @cached_property
    def aligned(self) -> Bins:
        """Similarity of its images with their own captions."""
        return Bins.of(self.paired)

    def novelty(self, image: Array) -> Array:
        """How far embeddings (n, d) lie from the nearest image of the sample, over what 99% of the sample itself shows: (n,)."""
        return (1 - (unit(image) @ self.rows.image.T).max(axis=1)) / self.facts["apart"]

    @cached_property
    def unsure_below(self) -> float:
        """A tenth of the reference's own images have a smaller margin between best and second class."""
        margin = self.rows.ranked[1]
        return float(np.quantile(margin, 0.1)) if len(margin) else 0.0

    def save(self, folder: Path) -> None:
        """Two files: tensors in half precision, facts as JSON."""
        half = {"image": self.rows.image, "text": self.text, "similarity": self.rows.similarity}
        full = {"appearance": self.rows.appearance, "paired": self.paired}
        tensors = {k: np.ascontiguousarray(v, dtype=np.float16) for k, v in half.items()}
        tensors |= {k: np.ascontiguousarray(v, dtype=np.float32) for k, v in full.items()}
        save_file(tensors, folder / TENSORS)
        (folder / FACTS).write_text(json.dumps(self.facts, indent=1, sort_keys=True))

    @classmethod
    def load(cls, folder: Path, weights: str = "") -> "Reference":
        """Read a package's reference.

        Args:
            weights: digest of the model's weights; a reference of another embedding space is refused.
        Raises:
            ClipftError: there is none, it is damaged, or it belongs to other weights.
        """
        what, fix = f"the reference in {folder}", "Register the model again; drift cannot be measured without it."
        try:
            facts = json.loads((folder / FACTS).read_text())
            if facts.get("format") != FORMAT:
                raise ClipftError(what, f"its format is {facts.get('format')}, not {FORMAT}", fix)
            missing = NEEDED - facts.keys()
            limits = [float(limit) for limit in facts.get("limits", {}).values()]
            tensors = {k: v.astype(np.float32) for k, v in load_file(folder / TENSORS).items()}
            rows, text = Rows(tensors["image"], tensors["appearance"], tensors["similarity"]), tensors["text"]
            paired = tensors.get("paired", np.zeros(0, np.float32))  # packages of before have none, and no signal of it
        except ClipftError:
            raise
        except Exception as error:  # safetensors raises its own; whatever is wrong, it is no reference
            raise ClipftError(what, f"it cannot be read ({error!r})", fix) from error
        if missing:
            raise ClipftError(what, f"it lacks {', '.join(sorted(missing))}", fix)
        if weights and facts["weights"] != weights:
            raise ClipftError(what, "it was measured in the embedding space of other weights", fix)
        if not np.isfinite(limits).all():
            raise ClipftError(what, "it holds numbers that are none, among its limits", fix)
        if not all(np.isfinite(v).all() for v in tensors.values()):
            raise ClipftError(what, "it holds numbers that are none", fix)
        return cls(rows, text, facts, paired)


def sample(groups: Sequence[str], most: int = ROWS, seed: int = 0) -> np.ndarray:
    """Row numbers of a sample that takes from every group in turn, so that none dominates."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(groups))
    turn: dict[str, int] = {}
    rank = np.zeros(len(groups), dtype=int)
    for i in order:
        group = groups[i] or f"row {i}"
        rank[i] = turn[group] = turn.get(group, -1) + 1
    return np.sort(order[np.argsort(rank[order], kind="stable")][:most])


def measure(
    rows: Rows,
    text: Array,
    groups: Sequence[str],
    classes: Sequence[str],
    held_out: tuple[Array, Array],
    scale: float,
    weights: str,
    tolerance: float = 1.0,
    paired: Array | None = None,
    images: Sequence[str] = (),
) -> Reference:
    """Make a reference.

    Args:
        rows: images of the training and validation splits, in the model's space, at the size that is served.
        text: embeddings of their captions.
        groups: of each row; "" where a row stands for itself.
        held_out: similarities (n, c) and class numbers (n,) of validation rows: what accuracy is promised and confidence calibrated by.
        scale: the model's learned inverse temperature.
        weights: digest of the model's weights.
        tolerance: the domain's factor on every limit.
        paired: similarity (n,) of each image with its own caption.
        images: sha256 of each, so that a report can show what the reference was made from.
    """
    facts: dict[str, Any] = {"format": FORMAT, "weights": weights, "classes": list(classes), "rows": len(rows)}
    facts["images"] = list(images)
    facts["groups"] = len({g or f"row {i}" for i, g in enumerate(groups)})
    facts["width"], facts["text_width"] = median_distance(rows.image), median_distance(text)
    near = rows.image @ rows.image.T - 2 * np.eye(len(rows))
    facts["apart"] = max(1e-4, float(np.quantile(1 - near.max(axis=1), 0.99)))
    low, high = rows.appearance.min(axis=0), rows.appearance.max(axis=0)
    slack = 0.1 * (high - low) + 0.05
    facts["range"] = {"low": (low - slack).tolist(), "high": (high + slack).tolist()}
    facts["promised"] = _promised(*held_out)
    facts["temperature"] = calibrated_temperature(*held_out) if len(held_out[1]) else 1 / scale
    made = Reference(rows, text, facts, np.zeros(0, np.float32) if paired is None else paired)
    with one_thread():
        facts["limits"] = {name: tolerance * limit for name, limit in _limits(made, groups).items()}
    return made


def _promised(similarity: Array, truth: Array) -> dict[str, float]:
    right = int((similarity.argmax(axis=1) == truth).sum()) if len(truth) else 0
    low, high = wilson(right, len(truth))
    return {"value": right / len(truth) if len(truth) else 0.0, "low": low, "high": high, "rows": len(truth)}


def calibrated_temperature(similarity: Array, truth: Array) -> float:
    """The softmax temperature of similarities under which held-out rows are likeliest (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""
    choices = np.geomspace(0.002, 1.0, 120)

    def loss(temperature: float) -> float:
        logits = similarity / temperature
        peak = logits.max(axis=1)
        return float(np.mean(peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1)) - logits[np.arange(len(truth)), truth]))

    return float(min(choices, key=loss))


def confidence(similarity: Array, temperature: float) -> float:
    """Mean probability of the best class, of similarities (n, c): the accuracy that a calibrated model expects of itself."""
    logits = similarity / temperature
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return float((odds.max(axis=1) / odds.sum(axis=1)).mean())


def signals(
    reference: Reference, window: Rows, base: Rows | None = None, permutations: int = 0, beyond: float = -np.inf
) -> tuple[dict[str, float], float]:
    """Every metric of a window of images (image, predictions, appearance), and the p-value of its MMD.

    Args:
        base: what the window is compared with; the reference's own rows unless others are given.
        permutations, beyond: see `mmd`.
    """
    own = reference.own_kernel if base is None else None
    base = reference.rows if base is None else base
    distance, p = mmd(base.image, window.image, reference.facts["width"], permutations, own=own, beyond=beyond)
    return {"image": distance, **_quick_signals(base, window)}, p


def told_apart(base: Array, new: Array) -> float:
    """How well a classifier tells a window's embeddings (m, d) from the reference's (n, d): .5 is not at all."""
    # Axes of both together: those of the reference alone would fit its own rows better than any new ones.
    along = Projection.of(np.concatenate([base, new]), AXES)
    return classifier_auc(along(base), along(new))


def _quick_signals(base: Rows, window: Rows) -> dict[str, float]:
    found: dict[str, float] = {}
    top, margin, best = window.ranked
    if len(top):
        count = base.similarity.shape[1]
        before, now = (np.bincount(b, minlength=count) / len(b) for b in (base.ranked[2], best))
        found["prediction"] = psi(before, now, len(base), len(window))
        found["similarity"] = base.bins["similarity"].shift(top)
        found["margin"] = base.bins["margin"].shift(margin)
    return found | looks_signals(base, window.appearance)


def looks_signals(base: Rows, looks: Array) -> dict[str, float]:
    """What images look like before any model, (m, 5), beside the reference's."""
    return {name: base.bins[name].shift(looks[:, i]) for i, name in enumerate(STATISTICS)}


def text_signal(reference: Reference, text: Array, permutations: int = 0) -> tuple[float, float]:
    """MMD of texts beside the reference's captions, and its p-value."""
    return mmd(reference.text, text, reference.facts["text_width"], permutations, own=reference.own_text_kernel)


def alignment_signal(reference: Reference, paired: Array) -> float:
    """PSI of the similarity of images with their own texts, (m,), beside the reference's pairs."""
    return reference.aligned.shift(paired)


def _limits(reference: Reference, groups: Sequence[str]) -> dict[str, float]:
    """Each signal's limit, from simulated windows: rows drawn by chance, and halves of the groups."""
    rows, rng = reference.rows, np.random.default_rng(0)
    names = np.array([g or f"row {i}" for i, g in enumerate(groups)])
    every = np.unique(names)
    size = min(WINDOW, max(2, len(rows) // 4))

    def simulate(inside: np.ndarray) -> dict[str, float]:
        window, rest = rng.permutation(np.flatnonzero(inside))[:size], np.flatnonzero(~inside)
        found = signals(reference, rows.take(window), rows.take(rest))[0]
        if len(reference.paired):
            found["alignment"] = Bins.of(reference.paired[rest]).shift(reference.paired[window])
        return found

    def chance() -> np.ndarray:
        inside = np.zeros(len(rows), dtype=bool)
        inside[rng.permutation(len(rows))[:size]] = True
        return inside

    by_chance = [simulate(chance()) for _ in range(CHANCE)]
    limits = {name: MARGIN * max(w[name] for w in by_chance) for name in by_chance[0]}
    if 4 <= len(every) < len(rows):
        halves = [np.isin(names, rng.permutation(every)[: len(every) // 2]) for _ in range(GROUPED)]
        grouped = [simulate(h) for h in halves if 2 <= h.sum() < len(rows)]
        for name in limits:
            limits[name] = max(limits[name], float(np.quantile([w[name] for w in grouped], TYPICAL)))
    text = reference.text
    if len(text) >= 4:
        draws = [rng.integers(0, len(text), min(WINDOW, len(text))) for _ in range(CHANCE)]
        limits["text"] = MARGIN * max(text_signal(reference, text[d])[0] for d in draws)
    return {name: max(float(limit), 0.02 if name not in ("image", "text") else 1e-3) for name, limit in limits.items()}

"""A world with three kinds of things and a camera of 300 pixels, and references of it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from clipft_tasks.drift.reference import (
    Reference,
    Rows,
    measure,
    signals,
)

CLASSES = ["cat", "dog", "fox"]
PICTURES = {"image", "brightness", "contrast", "sharpness", "side", "aspect"}
PREDICTIONS = {"prediction", "similarity", "margin"}
SEEN = 320


def unit(points: np.ndarray) -> np.ndarray:
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def centres(dims: int = 48) -> np.ndarray:
    """Unit vectors of three classes, as close together as those of a real model."""
    rng = np.random.default_rng(99)
    return unit(rng.normal(size=dims) + 0.7 * rng.normal(size=(3, dims)))


def embedded(labels: np.ndarray, seed: int, dims: int = 48, strange: float = 0.0) -> np.ndarray:
    """Embeddings about their class: most of what varies lies in a few directions, as in a real model.

    Args:
        strange: how far they have moved, all of them in one direction.
    """
    rng, size = np.random.default_rng(seed), np.arange(1, dims + 1) ** -0.5
    noise = 0.6 * rng.normal(size=(len(labels), dims)) * size / np.linalg.norm(size)
    away = unit(np.random.default_rng(98).normal(size=(1, dims)))
    return unit(centres(dims)[labels] + noise + strange * away)


def looked(
    count: int, seed: int, *, classes: int = 3, dims: int = 48, strange: float = 0.0, share: Sequence[float] = ()
) -> Rows:
    """What a model says about `count` pictures of a world with three kinds of things and a camera of 300 pixels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, count, p=share or None)
    image = embedded(labels, seed + 10**6, dims, strange)
    varied = rng.normal([0.5, 0.2, 1.0], [0.08, 0.03, 0.4], (count, 3))
    always = np.tile([np.log2(300), 0.0], (count, 1))
    return Rows(image, np.column_stack([varied, always]).astype(np.float32), image @ centres(dims)[:classes].T)


def brighter(rows: Rows, by: float = 0.2) -> Rows:
    return replace(rows, appearance=rows.appearance + np.array([by, 0, 0, 0, 0], np.float32))


def captions(count: int, seed: int, strange: float = 0.0, dims: int = 48) -> np.ndarray:
    return embedded(np.random.default_rng(seed).integers(0, 3, count), seed + 2 * 10**6, dims, strange)


def told(rows: Rows, **changes: object) -> Reference:
    """The reference of such rows, every one a group of its own."""
    of_classes = rows.similarity.shape[1]
    given = {
        "text": captions(len(rows), 3, dims=rows.image.shape[1]),
        "groups": [""] * len(rows),
        "classes": CLASSES[:of_classes],
        "held_out": (rows.similarity, rows.similarity.argmax(axis=1))
        if of_classes
        else (rows.similarity[:0], np.zeros(0, int)),
        "scale": 20.0,
        "weights": "w" * 64,
    }
    return measure(rows, **(given | changes))


@cache
def a_reference(classes: int = 3) -> Reference:
    """Measured once; tests take care not to change it."""
    return told(looked(SEEN, 0, classes=classes))


def ratios(reference: Reference, window: Rows) -> dict[str, float]:
    return {name: value / reference.limits[name] for name, value in signals(reference, window)[0].items()}

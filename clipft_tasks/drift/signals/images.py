"""Signals of images: where their embeddings lie, what the model makes of them, and what they look like before any model."""

from collections.abc import Mapping

import numpy as np

from ...core.proportions import wilson
from ..image_statistics import IMAGE_STATISTICS, STATISTICS
from ..reference import Reference
from ..statistics import Array, Projection, class_bins, classifier_auc, confidence, mmd, psi
from ..thresholds import MOST_NONE_OF_THESE
from .base import (
    CAMERA,
    CERTAINTY,
    NEW_IMAGES,
    PRIOR,
    MetricSource,
    SampleComparison,
    Signal,
    Statistic,
    WindowMetric,
)

AXES = 32  # of the projection that a classifier sees


def two_sample_auc(base: Array, window: Array) -> float:
    """Classifier two-sample test: how well a classifier tells embeddings (m, d) from others (n, d); .5 is not at all."""
    # Axes of both together: those of one alone would fit its own rows better than any others.
    along = Projection.of(np.concatenate([base, window]), AXES)
    return classifier_auc(along(base), along(window))


class ImageEmbeddings(Signal):
    name, rows, cause, smallest_limit = "image", "images", NEW_IMAGES, 1e-3
    description = "embeddings of images (maximum mean discrepancy with a permutation test)"
    metrics = (
        WindowMetric(
            "image_mmd", "image_drift_mmd", "Squared maximum mean discrepancy of images from the reference.", "images"
        ),
        WindowMetric("image_p", "image_drift_p_value", "Permutation p-value of the images' discrepancy.", None),
        WindowMetric(
            "image_auc",
            "image_drift_auc",
            "How well a classifier tells the window's images from the reference's; .5 is not at all.",
            "images",
        ),
    )

    def measure(self, samples: SampleComparison) -> Statistic:
        reference, base = samples.reference, samples.base
        own = reference.image_kernel if base is reference.sample else None
        width, window = reference.facts.kernel_width, samples.window.images.image
        value, p = mmd(base.images.image, window, width, samples.permutations, own=own, beyond=samples.tested_above)
        return Statistic(value, p if samples.permutations else 0.0)

    def values(self, samples: SampleComparison, found: Statistic | None) -> Mapping[str, float]:
        if found is None:
            return {}
        auc = two_sample_auc(samples.base.images.image, samples.window.images.image)
        return {"image_mmd": found.value, "image_p": found.p_value, "image_auc": auc}


class NoneOfThese(Signal):
    """Images that lie farther from the reference's than held-out groups do among themselves."""

    name, rows, cause, fixed_limit = "none_of_these", "images", NEW_IMAGES, MOST_NONE_OF_THESE
    description = "the share of images of another kind: even the lower end of its interval is above what held-out groups show"
    metrics = (
        WindowMetric(
            "none_of_these",
            "none_of_these_ratio",
            "Share of images of another kind than those that the model was made for.",
            "images",
        ),
    )

    def applies(self, reference: Reference) -> bool:
        return reference.facts.novelty_limit is not None and super().applies(reference)

    def limit(self, reference: Reference) -> float | None:
        found, usual = super().limit(reference), reference.facts.novelty_limit
        return None if found is None or usual is None else max(found, usual.most_of_group)

    def measure(self, samples: SampleComparison) -> Statistic:
        low, _ = wilson(samples.none_of_these, len(samples.window.images))
        return Statistic(low)  # only what even the lower end exceeds is a change

    def values(self, samples: SampleComparison, found: Statistic | None) -> Mapping[str, float]:
        return {} if found is None else {"none_of_these": samples.none_of_these / len(samples.window.images)}


class _OfClasses(Signal):
    """What the model makes of images, where it has classes."""

    def applies(self, reference: Reference) -> bool:
        return bool(reference.rows.similarity.shape[1] >= 2)


class PredictedClasses(_OfClasses):
    name, rows, cause = "prediction", "images", PRIOR
    description = "the mix of predicted classes (population stability index)"

    def measure(self, samples: SampleComparison) -> Statistic:
        base, window = samples.base.images, samples.window.images
        before, now = (np.bincount(rows.ranked[2], minlength=base.similarity.shape[1]) for rows in (base, window))
        bins = class_bins(before)
        expected, found = (np.bincount(bins, counts) / counts.sum() for counts in (before, now))
        return Statistic(psi(expected, found, len(base), len(window)))


class BestSimilarity(_OfClasses):
    name, rows, cause = "similarity", "images", CERTAINTY
    description = "how sure the model is: similarity of the best class (population stability index)"

    def measure(self, samples: SampleComparison) -> Statistic:
        return Statistic(samples.base.images.bins["similarity"].shift(samples.window.images.ranked[0]))


class Margin(_OfClasses):
    name, rows, cause = "margin", "images", CERTAINTY
    description = "how sure the model is: lead of the best class over the second (population stability index)"

    def measure(self, samples: SampleComparison) -> Statistic:
        return Statistic(samples.base.images.bins["margin"].shift(samples.window.images.ranked[1]))


class ImageStatisticShift(Signal):
    """One of the image statistics; the catalog holds one of these for each."""

    rows, cause, needs_embeddings = "images", CAMERA, False

    def __init__(self, name: str, description: str) -> None:
        self.name, self.description = name, f"{description}, before any model (population stability index)"
        self.column = STATISTICS.index(name)

    def measure(self, samples: SampleComparison) -> Statistic:
        return Statistic(samples.base.images.bins[self.name].shift(samples.window.images.appearance[:, self.column]))


class OutOfRange(MetricSource):
    metrics = (
        WindowMetric(
            "out_of_range",
            "out_of_range_ratio",
            "Share of images whose statistics lie outside the reference's range.",
            "images",
        ),
    )

    def values(self, samples: SampleComparison, found: Statistic | None) -> Mapping[str, float]:
        if not samples.enough("images"):
            return {}
        expected, seen = samples.reference.facts.expected_range, samples.window.images.appearance
        outside = (seen < np.array(expected.low)) | (seen > np.array(expected.high))
        return {"out_of_range": float(outside.any(axis=1).mean())}


class EstimatedAccuracy(MetricSource):
    metrics = (
        WindowMetric(
            "accuracy_estimate",
            "estimated_accuracy_ratio",
            "Accuracy as calibrated confidence has it: an estimate, without labels.",
            "images",
        ),
    )

    def values(self, samples: SampleComparison, found: Statistic | None) -> Mapping[str, float]:
        similarity = samples.window.images.similarity
        if not samples.enough("images") or similarity.shape[1] < 2:
            return {}
        return {"accuracy_estimate": confidence(similarity, samples.reference.facts.temperature)}


OF_IMAGES: tuple[Signal, ...] = (
    ImageEmbeddings(),
    NoneOfThese(),
    PredictedClasses(),
    BestSimilarity(),
    Margin(),
    *(ImageStatisticShift(s.name, s.description) for s in IMAGE_STATISTICS),
)

"""Signals of texts, and of images with the texts that belong to them."""

from collections.abc import Mapping

import numpy as np

from ..statistics import mmd
from .base import ALIGNMENT, TEXTS, MetricSource, SampleComparison, Signal, Statistic, WindowMetric
from .images import two_sample_auc


class TextEmbeddings(Signal):
    name, rows, cause, smallest_limit = "text", "texts", TEXTS, 1e-3
    description = "embeddings of texts: another language, other words (maximum mean discrepancy with a permutation test)"
    metrics = (
        WindowMetric("text_mmd", "text_drift_mmd", "Squared maximum mean discrepancy of texts from the reference.", "texts"),
        WindowMetric("text_p", "text_drift_p_value", "Permutation p-value of the texts' discrepancy.", None),
        WindowMetric(
            "text_auc",
            "text_drift_auc",
            "How well a classifier tells the window's texts from the reference's; .5 is not at all.",
            "texts",
        ),
    )

    def measure(self, samples: SampleComparison) -> Statistic:
        reference, base = samples.reference, samples.base
        own = reference.text_kernel if base.text is reference.text else None
        width = reference.facts.text_kernel_width
        value, p = mmd(base.text, samples.window.text, width, samples.permutations, own=own, beyond=samples.tested_above)
        return Statistic(value, p if samples.permutations else 0.0)

    def values(self, samples: SampleComparison, found: Statistic | None) -> Mapping[str, float]:
        if found is None:
            return {}
        auc = two_sample_auc(samples.base.text, samples.window.text)
        return {"text_mmd": found.value, "text_p": found.p_value, "text_auc": auc}


class Alignment(Signal):
    name, rows, cause = "alignment", "pairs", ALIGNMENT
    description = "how well images agree with the text that belongs to each (population stability index)"
    metrics = (
        WindowMetric(
            "alignment", "alignment_similarity", "Mean similarity of images with the text that belongs to them.", "pairs"
        ),
    )

    def measure(self, samples: SampleComparison) -> Statistic:
        return Statistic(samples.base.paired_bins.shift(samples.window.paired))

    def values(self, samples: SampleComparison, found: Statistic | None) -> Mapping[str, float]:
        paired = samples.window.paired
        return {"alignment": float(paired.mean())} if len(paired) else {}


class ModalityGap(MetricSource):
    metrics = (
        WindowMetric("modality_gap", "modality_gap", "Distance between the mean image and the mean text.", "images"),
        WindowMetric("reference_gap", "reference_modality_gap", "The same distance in the reference.", "images"),
    )

    def values(self, samples: SampleComparison, found: Statistic | None) -> Mapping[str, float]:
        if not (samples.enough("images") and samples.enough("texts") and "text" in samples.reference.limits):
            return {}

        def gap(image: np.ndarray, text: np.ndarray) -> float:
            return float(np.linalg.norm(image.mean(axis=0) - text.mean(axis=0)))

        window, base = samples.window, samples.base
        return {"modality_gap": gap(window.images.image, window.text), "reference_gap": gap(base.images.image, base.text)}

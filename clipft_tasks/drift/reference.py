"""The reference: what a model was made for, kept in its package, small enough to travel with it everywhere.

It is measured once (`measure_reference`), on images of the training and validation splits, in the model's own embedding space.
Each signal has a **limit** there: what chance alone does not reach, and what the reference's own groups (patients, modules, days)
usually do not reach among themselves. Drift is a statistic over its limit, so 1 means the same for every signal and every domain.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat
from safetensors.numpy import load_file, save_file

from ..contracts.base import Record, VersionedRecord
from ..contracts.drift import BaselineAccuracy
from ..core.errors import ClipftError
from .image_statistics import STATISTICS
from .statistics import Array, Bins, gaussian, unit

TENSORS, FACTS = "reference.safetensors", "reference.json"
RENAMED = {  # in format 2
    "pictures": "images",
    "width": "kernel_width",
    "text_width": "text_kernel_width",
    "apart": "novelty_scale",
    "promised": "baseline",
    "range": "expected_range",
}


class ExpectedRange(Record):
    """Between which image statistics of the reference lie, (5,) each, with some slack."""

    low: list[FiniteFloat]
    high: list[FiniteFloat]


class NoveltyLimit(Record):
    """From how far off an image is none of the model's, measured on validation rows against the images of other groups.

    Attributes:
        distance: to the nearest image of the sample.
        false_alarms: share of the rows of new groups that are farther off; None where there are too few groups to tell.
        most_of_group: the largest share of one held-out group of ten rows or more that is; 0 where there is none.
        rows: of the validation split. groups: of equal size, that would tell as much as theirs.
    """

    distance: FiniteFloat
    false_alarms: float | None
    most_of_group: float
    rows: int
    groups: float


class ReferenceFacts(VersionedRecord):
    """What a reference knows beside its tensors.

    Attributes:
        weights: digest of the model's weights, whose embedding space this is.
        rows, groups: how many it was measured on. images: sha256 of each; [] in packages of before.
        kernel_width, text_kernel_width: of Gaussian kernels on embeddings of images and of texts.
        novelty_scale: distance to the nearest other image that 99% of the sample show.
        novelty_limit: from held-out rows; None in packages of before, and without validation rows.
        temperature: of similarities, under which confidence is calibrated.
        limits: by signal.
    """

    FORMAT: ClassVar[int] = 3
    WHAT: ClassVar[str] = "the reference"

    weights: str
    classes: list[str]
    rows: int = 0
    groups: int = 0
    images: list[str] = []
    kernel_width: FiniteFloat
    text_kernel_width: FiniteFloat
    novelty_scale: FiniteFloat
    novelty_limit: NoveltyLimit | None = None
    expected_range: ExpectedRange
    baseline: BaselineAccuracy
    temperature: FiniteFloat
    limits: dict[str, FiniteFloat]

    @classmethod
    def upgraded(cls, data: dict[str, Any], written: int) -> dict[str, Any]:
        if written == 0:
            raise ClipftError(cls.WHAT, "its format 0 was never written", "Make it again.", code="record.invalid")
        return {RENAMED.get(k, k): v for k, v in data.items()} if written == 1 else data


@dataclass(frozen=True)
class ImageRows:
    """What a model says about some images; a reference is made of such rows, and so is a window of traffic.

    Args:
        image: (n, d) unit embeddings; appearance: (n, 5), their image statistics.
        similarity: (n, c) similarity with the classes; (n, 0) for a model without classes.
    """

    image: Array
    appearance: Array
    similarity: Array

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: NDArray[np.intp]) -> "ImageRows":
        some = ImageRows(self.image[rows], self.appearance[rows], self.similarity[rows])
        if "ranked" in self.__dict__:  # with many classes most of the work; a part needs no second look at them
            some.__dict__["ranked"] = tuple(column[rows] for column in self.ranked)
        return some

    @cached_property
    def ranked(self) -> tuple[Array, Array, Array]:
        """Best similarity, its margin over the second best, and the best class, (n,) each; empty without two classes."""
        if self.similarity.shape[1] < 2:
            none = np.zeros(0)
            return none, none, none.astype(int)
        best = np.partition(self.similarity, -2, axis=1)[:, -2:]
        return best[:, -1], best[:, -1] - best[:, -2], self.similarity.argmax(axis=1)

    @cached_property
    def bins(self) -> dict[str, Bins]:
        """What a window is compared with: image statistics by name, and how sure the model is (`similarity`, `margin`)."""
        found = {name: Bins.of(self.appearance[:, i]) for i, name in enumerate(STATISTICS)}
        if len(self.ranked[0]):
            found |= {"similarity": Bins.of(self.ranked[0]), "margin": Bins.of(self.ranked[1])}
        return found


@dataclass(frozen=True)
class Sample:
    """One side of a comparison: rows of a reference, or of a window.

    Args:
        text: (m, d) unit embeddings; paired: (p,) similarity of images with their own text.
        feedback, right: answers whose true label is known, and those of them that were right.
    """

    images: ImageRows
    text: Array
    paired: Array
    feedback: int = 0
    right: int = 0

    def count(self, kind: str) -> int:
        """How many rows of a kind there are: images, texts, pairs or feedback."""
        return {"images": len(self.images), "texts": len(self.text), "pairs": len(self.paired), "feedback": self.feedback}[kind]

    @cached_property
    def paired_bins(self) -> Bins:
        return Bins.of(self.paired)


@dataclass(frozen=True)
class Reference:
    """A model's reference.

    Attributes:
        rows: a sample of the images.
        text: (m, d) unit embeddings of captions.
        paired: (n,) similarity of each image with its own caption; (0,) where none was measured.
    """

    rows: ImageRows
    text: Array
    facts: ReferenceFacts
    paired: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def limits(self) -> dict[str, float]:
        return dict(self.facts.limits)

    @property
    def classes(self) -> list[str]:
        return list(self.facts.classes)

    @cached_property
    def sample(self) -> Sample:
        """Its rows, as windows are compared with them."""
        return Sample(self.rows, self.text, self.paired)

    @cached_property
    def image_kernel(self) -> Array:
        """The kernel of the reference's images among themselves, (n, n): the same for every window."""
        return gaussian(self.rows.image, self.rows.image, self.facts.kernel_width)

    @cached_property
    def text_kernel(self) -> Array:
        """Likewise of its texts."""
        return gaussian(self.text, self.text, self.facts.text_kernel_width)

    def novelty(self, image: Array) -> Array:
        """How far embeddings (n, d) lie from the nearest image of the sample, over the limit (`NoveltyLimit`; in packages of before,
        what 99% of the sample itself shows): (n,). Above 1 they are of another kind."""
        limit, distance = self.facts.novelty_limit, 1 - (unit(image) @ self.rows.image.T).max(axis=1)
        return np.asarray(distance / (limit.distance if limit else self.facts.novelty_scale))

    @cached_property
    def uncertainty_threshold(self) -> float:
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
        (folder / FACTS).write_text(json.dumps(self.facts.to_json(), indent=1, sort_keys=True))

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
            facts = ReferenceFacts.from_json(json.loads((folder / FACTS).read_text()))
            tensors = {k: v.astype(np.float32) for k, v in load_file(folder / TENSORS).items()}
            rows, text = ImageRows(tensors["image"], tensors["appearance"], tensors["similarity"]), tensors["text"]
            paired = tensors.get("paired", np.zeros(0, np.float32))  # packages of before have none, and no signal of it
        except ClipftError as error:
            raise ClipftError(what, f"it cannot be read ({error.why})", fix, code="reference.unreadable") from None
        except Exception as error:  # safetensors raises its own; whatever is wrong, it is no reference
            raise ClipftError(what, f"it cannot be read ({error!r})", fix, code="reference.unreadable") from error
        if weights and facts.weights != weights:
            raise ClipftError(
                what, "it was measured in the embedding space of other weights", fix, code="reference.other_weights"
            )
        if not all(np.isfinite(v).all() for v in tensors.values()):
            raise ClipftError(what, "its tensors hold NaN or infinity", fix, code="reference.not_finite")
        return cls(rows, text, facts, paired)

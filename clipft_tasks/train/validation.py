"""What models of one run are chosen by, on the validation split. Tuning, the choice of an epoch and blending share it.

The test split is for the report alone: nothing here reads a row of it, not even the names of its classes.
"""

import base64
import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ..core.errors import ClipftError
from ..data.decoded_cache import decoded
from ..data.versioning import Dataset
from ..domains import Domain
from ..evaluate import zero_shot
from ..evaluate.metrics import balanced_accuracy
from ..model.clip import Clip
from ..spec.metric_catalog import METRICS

SPLIT = "val"
ROWS = 512  # of the split that are asked about, at most: standard error of 2 points, and seconds even on a CPU


@dataclass(frozen=True)
class ValidationRows:
    """The rows that models are judged on, and how.

    Attributes:
        metric: balanced_accuracy (zero-shot) where the gate looks at classes and there are some, else image_to_text_r1.
        at: (rows,) their numbers in the split.
        truth: (rows,) class id, -1 where unknown; 0 everywhere where nothing is classified.
        groups: (rows,) what bootstrap resamples as a whole.
        classes: names, by id.
        is_informative: whether a model could be wrong: not where every row has the same caption and none a class.
    """

    metric: str
    at: np.ndarray
    truth: np.ndarray
    groups: np.ndarray
    classes: list[str]
    is_informative: bool

    @classmethod
    def of(cls, frame: pd.DataFrame, limit: int = ROWS, metric: str = "balanced_accuracy") -> "ValidationRows":
        """Those of a manifest. Only the training and validation rows say which classes there are.

        Args:
            limit: most rows, the same ones each time: as many of one class as of another, of as many groups as there are.
            metric: what the domain's gate looks at; where that is retrieval, classes are not asked about.
        """
        classes = sorted(set(frame.loc[frame["split"].isin(("train", SPLIT)), "label"]) - {""})
        held = frame[frame["split"] == SPLIT].reset_index(drop=True)
        # Rows of one class cannot show that a model calls everything by its name.
        if not METRICS[metric].needs_labels or held.loc[held["label"] != "", "label"].nunique() < 2:
            classes = []
        if not classes:  # an image is asked about once, however many captions it has
            held = held[~held["sha256"].duplicated()]
        at = _spread(held, limit, bool(classes))
        held = held.loc[at]
        groups = np.array([g or k for g, k in zip(held["group"], held["key"], strict=True)])
        if not classes:
            return cls("image_to_text_r1", at, np.zeros(len(held), int), groups, [], held["caption"].nunique() > 1)
        truth = np.array([classes.index(x) if x else -1 for x in held["label"]])
        return cls("balanced_accuracy", at, truth, groups, classes, True)

    def score(self, right: np.ndarray, rows: np.ndarray | None = None) -> float:
        """The metric, from what a model got right, on all rows or on some (row numbers, repeats allowed)."""
        rows = np.arange(len(self.truth)) if rows is None else rows
        known = rows[self.truth[rows] >= 0]
        if not len(known):
            return float("nan")
        # Mean recall over the classes; with one class it is the plain mean.
        return balanced_accuracy(self.truth[known], np.where(right[known], self.truth[known], -1))


@dataclass(frozen=True)
class ValidationResult:
    """What a model got right of the validation rows: `right` (rows,) bool, `score` 0..1."""

    rows: ValidationRows
    right: np.ndarray

    @property
    def score(self) -> float:
        return self.rows.score(self.right)

    def __str__(self) -> str:
        return f"{self.rows.metric} {self.score:.4f} on {len(self.right)} validation rows"


def _spread(held: pd.DataFrame, limit: int, classified: bool) -> np.ndarray:
    """At most `limit` rows of a split, by number: the first of each group before the second of any, the classes in turn."""
    if len(held) <= limit:
        every: np.ndarray = held.index.to_numpy()
        return every
    if classified:
        held = held[held["label"] != ""]
    held = held.assign(order=[hashlib.sha256(k.encode()).hexdigest() for k in held["key"]]).sort_values("order")
    held = held.assign(turn=held.groupby(held["group"].where(held["group"] != "", held["key"])).cumcount())
    held = held.sort_values("turn", kind="stable")
    if classified:
        held = held.assign(turn=held.groupby("label").cumcount()).sort_values("turn", kind="stable")
    return np.sort(held.index.to_numpy()[:limit])


def evaluate_on_validation(
    clip: Clip,
    dataset: Dataset,
    side: int,
    batch: int,
    limit: int = ROWS,
    metric: str = "balanced_accuracy",
) -> ValidationResult:
    """Ask a model about the validation split, on plain images of the size that it is for.

    The model stays in the mode (training or not) that it is in; put it into `eval()` first.

    Args:
        side: of the images, pixels.
        batch: images per forward pass.
        limit: most rows that it is asked about.
        metric: see `ValidationRows.of`.
    """
    rows = ValidationRows.of(dataset.frame, limit, metric)
    frame = dataset.split(SPLIT)
    cache = decoded(dataset, frame, side, SPLIT, gray_bits=clip.prepared().gray_bits, aspect=clip.aspect)
    with torch.no_grad():  # not inference mode: a tower may keep what it computes and train with it later
        images = torch.cat([clip.encode_images(cache.take(rows.at[i : i + batch])) for i in range(0, len(rows.at), batch)])
        if rows.classes:
            texts = clip.class_embeddings(rows.classes)
            asked = np.flatnonzero(rows.truth >= 0)
            own = rows.truth[asked]
        else:
            asked, own, captions = _captions_of(frame, rows.at)
            texts = torch.cat([clip.encode_texts(captions[i : i + 256]) for i in range(0, len(captions), 256)])
    shape = len(images), len(texts)
    rank = zero_shot.ranked(asked, own, shape, lambda some: zero_shot.similarities(clip, images[some], texts))
    return ValidationResult(rows, rank < 1)


def _captions_of(frame: pd.DataFrame, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pairs of some rows' images, by their place in `at`, and captions that these images have; and every such caption."""
    place = {image: i for i, image in enumerate(frame["sha256"].iloc[at])}
    theirs = frame[frame["sha256"].isin(place)]
    own, captions = pd.factorize(theirs["caption"], sort=True)
    return theirs["sha256"].map(place).to_numpy(), own, list(captions)


def require_general_set(domain: Domain) -> str:
    """The name of the images and words that a domain's models must not forget. Raises ClipftError where they are not installed."""
    from ..evaluate import forgetting

    if forgetting.general_set(domain.general_set) is None:
        raise ClipftError(
            f"the general set {domain.general_set!r}",
            "it is not installed, so what was forgotten cannot be measured",
            "Install `clipft[demo]`, or set blend.points to 0 and train.max_forgetting to 1.",
            code="domain.no_general_set",
        )
    return domain.general_set


def general_score(clip: Clip, domain: Domain, side: int) -> float:
    """How much a model knows of the half of its domain's general set that models are chosen by, 0..1.

    Raises: ClipftError where the set is not installed.
    """
    from ..evaluate import forgetting

    found = forgetting.score(clip, side, require_general_set(domain), "selection")
    assert found is not None  # its set is installed
    return found.value


def pack(right: np.ndarray) -> str:
    """`ValidationResult.right` as text, eight rows a byte."""
    return base64.b64encode(np.packbits(right.astype(bool)).tobytes()).decode()


def unpack(text: str, rows: int) -> np.ndarray:
    """What `pack` packed."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=rows).astype(bool)

"""The figure that models of one run are chosen by, on the validation split. Tuning and the choice of a checkpoint share it.

The test split is for the report alone: nothing here reads a row of it, not even the names of its classes.
"""

import base64
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ..data.decoded import decoded
from ..data.versioning import Dataset
from ..domains import Domain
from ..evaluate.metrics import balanced_accuracy
from ..model.clip import Clip

SPLIT = "val"
BLOCK = 1024  # rows of the similarity matrix at a time


@dataclass(frozen=True)
class Rows:
    """The rows that models are judged on, and how.

    Attributes:
        metric: balanced_accuracy (zero-shot) where there are classes, else image_to_text_r1.
        truth: (rows,) class id, -1 where unknown; 0 everywhere where nothing is classified.
        groups: (rows,) what bootstrap resamples as a whole.
        classes: names, by id.
    """

    metric: str
    truth: np.ndarray
    groups: np.ndarray
    classes: list[str]

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "Rows":
        """Those of a manifest. Only the training and validation rows say which classes there are."""
        classes = sorted(set(frame.loc[frame["split"].isin(("train", SPLIT)), "label"]) - {""})
        held = frame[frame["split"] == SPLIT]
        groups = np.array([g or k for g, k in zip(held["group"], held["key"], strict=True)])
        if len(classes) < 2 or not (held["label"] != "").any():
            return cls("image_to_text_r1", np.zeros(len(held), int), groups, [])
        truth = np.array([classes.index(x) if x else -1 for x in held["label"]])
        return cls("balanced_accuracy", truth, groups, classes)

    def score(self, right: np.ndarray, rows: np.ndarray | None = None) -> float:
        """The metric, from what a model got right, on all rows or on some (row numbers, repeats allowed)."""
        rows = np.arange(len(self.truth)) if rows is None else rows
        known = rows[self.truth[rows] >= 0]
        if not len(known):
            return float("nan")
        # Mean recall over the classes; with one class it is the plain mean.
        return balanced_accuracy(self.truth[known], np.where(right[known], self.truth[known], -1))


@dataclass(frozen=True)
class Judged:
    """What a model got right of the validation rows: `right` (rows,) bool, `score` 0..1."""

    rows: Rows
    right: np.ndarray

    @property
    def score(self) -> float:
        return self.rows.score(self.right)


def judge(clip: Clip, dataset: Dataset, domain: Domain, side: int, batch: int) -> Judged:
    """Ask a model about the validation split, on plain pictures of the size that it is for.

    The model stays in the mode (training or not) that it is in; put it into `eval()` first.

    Args:
        side: of the pictures, pixels.
        batch: pictures per forward pass.
    """
    rows = Rows.of(dataset.frame)
    frame = dataset.split(SPLIT)
    pictures = decoded(dataset, frame, side, SPLIT, aspect=clip.aspect)
    with torch.no_grad():  # not inference mode: a tower may keep what it computes and train with it later
        images = torch.cat(
            [clip.encode_images(pictures.take(np.arange(i, min(i + batch, len(frame))))) for i in range(0, len(frame), batch)]
        )
        if rows.classes:
            texts = clip.class_embeddings(rows.classes, domain.prompts)
            own = torch.from_numpy(rows.truth)
        else:
            captions = sorted(frame["caption"].unique())
            texts = torch.cat([clip.encode_texts(captions[i : i + 256]) for i in range(0, len(captions), 256)])
            own = torch.tensor([captions.index(c) for c in frame["caption"]])
        right = [
            _finds(clip.similarity(images[i : i + BLOCK], texts), own[i : i + BLOCK].to(images.device))
            for i in range(0, len(images), BLOCK)
        ]
    return Judged(rows, torch.cat(right).cpu().numpy())


def validation_score(clip: Clip, dataset: Dataset, domain: Domain, side: int, batch: int) -> float:
    """How good a model is at the domain, 0..1, on the validation split."""
    return judge(clip, dataset, domain, side, batch).score


def _finds(similarity: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Whether each row's own column is the single best of all (k,), bool; what is not a number finds nothing."""
    mine = similarity.gather(1, own.clamp(min=0)[:, None])
    return ((similarity < mine).sum(dim=1) == similarity.shape[1] - 1) & (own >= 0)


def pack(right: np.ndarray) -> str:
    """`Judged.right` as text, eight rows a byte."""
    return base64.b64encode(np.packbits(right.astype(bool)).tobytes()).decode()


def unpack(text: str, rows: int) -> np.ndarray:
    """What `pack` packed."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=rows).astype(bool)

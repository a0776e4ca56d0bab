"""The rows of a dataset version by how wrong their labels look, to one model's embeddings."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..data.decoded_cache import decoded
from ..data.versioning import Dataset, read_decisions
from ..model.clip import Clip
from . import label_errors, zero_shot
from .metrics import log_softmax, unit

NEAREST = 3  # rows of other groups that a page shows beside one
OWN_CAPTIONS = 0.5  # share of rows with a caption that no other image has, from which on captions say something of images


@dataclass(frozen=True)
class Embedded:
    """A version's labeled rows as one model sees them.

    Attributes:
        frame: the rows, as in the manifest. classes: their labels, by id. labels: (rows,) ids. groups: (rows,) names.
        embeddings: (rows, d) of length one: `image`, and `caption` where captions say something of images.
        said: (rows, classes) zero-shot shares: `prompts`.
    """

    frame: pd.DataFrame
    classes: list[str]
    labels: np.ndarray
    groups: np.ndarray
    embeddings: dict[str, np.ndarray]
    said: dict[str, np.ndarray]


@dataclass(frozen=True)
class Doubtful:
    """Labeled rows with how doubtful they are.

    Attributes:
        rows: they, as the model sees them. doubts: what was found, by row.
        order: rows, the most doubtful first, without those that people decided already: `settled`.
        model: whose embeddings.
    """

    rows: Embedded
    doubts: label_errors.LabelDoubts
    order: np.ndarray
    settled: int
    model: str

    @property
    def wrong(self) -> int:
        return self.doubts.wrong

    @property
    def sentence(self) -> str:
        """How many labels look wrong."""
        rows = len(self.rows.frame)
        share = self.wrong / rows
        found = f"{self.wrong:,} of {rows:,} labels look wrong ({share:.1%})."
        alone = int(np.isnan(self.doubts.own).sum())
        if alone:
            found += f" {alone:,} cannot be judged: no other group has their class."
        return found

    def nearest(self, row: int) -> list[int]:
        """The most similar rows of other groups, of other images."""
        image, groups = self.rows.embeddings["image"], self.rows.groups
        near = image @ image[row]
        near[groups == groups[row]] = -np.inf
        return [int(i) for i in np.argsort(-near, kind="stable")[:NEAREST] if np.isfinite(near[i])]


def embedded(dataset: Dataset, clip: Clip, side: int, batch: int) -> Embedded:
    """Embed a version's labeled images and captions.

    Args:
        side: of the images, pixels.
    Raises: ClipftError where there is nothing to compare.
    """
    every = dataset.frame
    frame = every[every["label"] != ""].reset_index(drop=True)
    classes, labels = np.unique(frame["label"].to_numpy(dtype=str), return_inverse=True)
    groups = np.where(frame["group"] != "", "group " + frame["group"], frame["sha256"]).astype(str)
    label_errors.require_two(labels, groups)
    images = decoded(dataset, frame, side, "labeled", gray_bits=clip.prepared().gray_bits, aspect=clip.aspect)
    image, _ = zero_shot.embed_images(clip, images.take, frame, zero_shot.Task(dataset, side, batch))
    texts = zero_shot.TextEmbeddings.of(clip, frame, list(classes))
    embeddings = {"image": unit(image.numpy())}
    if own_captions(frame) >= OWN_CAPTIONS:
        embeddings["caption"] = unit(texts.captions.numpy())[texts.own]
    assert texts.classes is not None  # there are two
    scores = zero_shot.similarities(clip, image, texts.classes)
    prompts = np.exp(log_softmax(float(clip.model.logit_scale.detach().exp()) * scores))
    return Embedded(frame, list(classes), labels, groups, embeddings, {"prompts": prompts})


def doubtful(dataset: Dataset, clip: Clip, side: int, batch: int) -> Doubtful:
    """Rank a version's labels by the embeddings of a model.

    It should not have been trained on these labels: what it learned of a wrong one would vouch for it.

    Raises: ClipftError as `embedded`.
    """
    seen = embedded(dataset, clip, side, batch)
    doubts = label_errors.assess(seen.labels, seen.groups, seen.embeddings, seen.said)
    settled = np.array(read_decisions(dataset.version).settled(seen.frame), dtype=bool)
    return Doubtful(seen, doubts, doubts.order[~settled[doubts.order]], int(settled.sum()), clip.source)


def own_captions(frame: pd.DataFrame) -> float:
    """The share of rows whose caption no other image has: such captions are no mere repetition of the class."""
    return float((frame.groupby("caption")["sha256"].transform("nunique") == 1).mean())

"""Zero-shot classification and retrieval of one model on one split at one size."""

import copy
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch

from ..data.decoded import decoded
from ..data.versioning import Dataset
from ..domains import Domain
from ..model.clip import Clip
from ..progress import progress
from .metrics import accuracy, balanced_accuracy, bootstrap, recall_at


@dataclass(frozen=True)
class Scored:
    """What a model said about each row of a split; every figure, and every comparison, is computed from this."""

    groups: np.ndarray  # (rows,) what bootstrap resamples as a whole
    truth: np.ndarray  # (rows,) class id, -1 where unknown
    predicted: np.ndarray  # (rows,)
    margin: np.ndarray  # (rows,) best class similarity minus the second best
    image_to_text: np.ndarray  # (rows,) 1 where the own caption ranks first
    text_to_image: np.ndarray  # (rows,) 1 where the caption's first picture is one of its own

    def figure(self, metric: str, rows: np.ndarray) -> float:
        """A metric on some rows (row numbers, repeats allowed)."""
        if metric == "image_to_text_r1":
            return float(self.image_to_text[rows].mean())
        if metric == "text_to_image_r1":
            return float(self.text_to_image[rows].mean())
        known = rows[self.truth[rows] >= 0]
        if not len(known):
            return float("nan")
        function = balanced_accuracy if metric == "balanced_accuracy" else accuracy
        return function(self.truth[known], self.predicted[known])


def metrics(dataset: Dataset) -> list[str]:
    """The figures that make sense for a data set: no accuracies without at least two classes."""
    labelled = ["balanced_accuracy", "accuracy"] if len(dataset.classes) > 1 else []
    return [*labelled, "image_to_text_r1", "text_to_image_r1"]


def score(clip: Clip, dataset: Dataset, domain: Domain, split: str, side: int, batch: int) -> Scored:
    """Run a model over a split at a picture size; its weights and preprocessing stay as they are."""
    frame = dataset.split(split)
    pictures = decoded(dataset, frame, side, split, aspect=clip.aspect)
    with torch.inference_mode():
        images = torch.cat(
            [
                clip.encode_images(pictures.take(np.arange(i, min(i + batch, len(frame))))).cpu()
                for i in progress(range(0, len(frame), batch), f"batches at {side} px", -(-len(frame) // batch))
            ]
        )
        captions = sorted(frame["caption"].unique())
        texts = torch.cat([clip.encode_texts(captions[i : i + 256]).cpu() for i in range(0, len(captions), 256)])
        classes = dataset.classes
        class_texts = clip.class_embeddings(classes, domain.prompts).cpu() if len(classes) > 1 else None

    position = {caption: i for i, caption in enumerate(captions)}
    own = np.array([position[c] for c in frame["caption"]])
    compare = copy.deepcopy(clip.similarity).cpu()
    similarity = compare.compare(images.numpy(), texts.numpy())
    relevant = np.zeros_like(similarity, dtype=bool)
    relevant[np.arange(len(frame)), own] = True
    per_caption = recall_at(similarity.T, relevant.T, 1)

    truth = np.array([classes.index(x) if x else -1 for x in frame["label"]])
    if class_texts is None:
        predicted, margin = np.zeros(len(frame), int), np.zeros(len(frame))
    else:
        best = torch.from_numpy(compare.compare(images.numpy(), class_texts.numpy())).topk(2, dim=1)
        predicted, margin = best.indices[:, 0].numpy(), (best.values[:, 0] - best.values[:, 1]).numpy()
    groups = np.array([g or k for g, k in zip(frame["group"], frame["key"], strict=True)])
    return Scored(groups, truth, predicted, margin, recall_at(similarity, relevant, 1), per_caption[own])


def summary(scored: Scored, names: list[str], resamples: int) -> dict[str, dict[str, float]]:
    """Each metric's value and 95% interval."""
    rows = np.arange(len(scored.truth))
    out = {}
    for name in names:
        low, high = bootstrap(partial(scored.figure, name), scored.groups, resamples)
        out[name] = {"value": scored.figure(name, rows), "low": low, "high": high}
    return out


def only(scored: Scored, rows: np.ndarray) -> Scored:
    """The same model on some of the rows."""
    return Scored(*(getattr(scored, field.name)[rows] for field in fields(Scored)))


def difference(new: Scored, old: Scored, metric: str, resamples: int) -> dict[str, float]:
    """new minus old on the same rows, with the 95% interval of a paired bootstrap."""
    rows = np.arange(len(new.truth))
    low, high = bootstrap(lambda d: new.figure(metric, d) - old.figure(metric, d), new.groups, resamples)
    return {"value": new.figure(metric, rows) - old.figure(metric, rows), "low": low, "high": high}

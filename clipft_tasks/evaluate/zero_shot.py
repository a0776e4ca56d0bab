"""Zero-shot classification and retrieval of one model on one split at one size: embedded once, then compared."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ..core.console import progress
from ..core.errors import ClipftError
from ..data.decoded_cache import decoded
from ..data.versioning import Dataset
from ..model.clip import Clip
from ..spec.metric_catalog import HEADLINES, METRICS
from . import metrics as m
from .predictions import Predictions

BLOCK = 16_000_000  # similarities at a time


@dataclass(frozen=True)
class Task:
    """What models are asked about.

    Args:
        size: of the images, pixels.
        batch: images per forward pass.
    """

    dataset: Dataset
    size: int
    batch: int


@dataclass(frozen=True)
class TextEmbeddings:
    """A model's embeddings of the texts of some rows; they are the same at every image size."""

    captions: torch.Tensor  # (different captions, d)
    own: np.ndarray  # (rows,) which of them
    classes: torch.Tensor | None  # (classes, d), with at least two classes

    @classmethod
    def of(cls, clip: Clip, frame: pd.DataFrame, classes: Sequence[str]) -> "TextEmbeddings":
        """Embed each different caption of a frame once, and the classes in the words of the model's prompts."""
        own, captions = pd.factorize(frame["caption"], sort=True)
        with torch.inference_mode():
            texts = torch.cat([clip.encode_texts(list(captions[i : i + 256])).cpu() for i in range(0, len(captions), 256)])
            known = clip.class_embeddings(classes).cpu() if len(classes) > 1 else None
        return cls(texts, own, known)


def headlines(dataset: Dataset) -> list[str]:
    """The headline metrics that a data set's test rows allow, the most telling first.

    Raises: ClipftError when there is nothing that a model could tell apart.
    """
    test = dataset.split("test")
    labeled = len(dataset.classes) > 1 and bool((test["label"] != "").any())
    retrieval = test["caption"].nunique() > 1
    if not labeled and not retrieval:
        why = "have one caption, and fewer than two classes are known" if len(test) else "are none"
        raise ClipftError(
            f"the test rows of {dataset.version.tag}",
            f"they {why}: nothing can be told apart",
            "Add labels or captions.",
            code="evaluate.nothing_to_tell_apart",
        )
    return [name for name in HEADLINES if (labeled if METRICS[name].needs_labels else retrieval)]


def predict(clip: Clip, task: Task, split: str = "test", limit: int = 0) -> Predictions:
    """Run a model over a split; its weights and preprocessing stay as they are.

    Args:
        limit: most rows to look at, spread over the split; 0 for all.
    Raises: ClipftError when the split is empty.
    """
    dataset = task.dataset
    every = dataset.split(split)
    if not len(every):
        raise ClipftError(
            f"the {split} rows of {dataset.version.tag}",
            "there are none",
            "Choose larger shares for the splits.",
            code="evaluate.empty_split",
        )
    frame, rows = sample(every, limit)
    images = decoded(dataset, every, task.size, split, gray_bits=clip.prepared().gray_bits, aspect=clip.aspect)
    texts = TextEmbeddings.of(clip, frame, dataset.classes)
    embeddings, seconds = embed_images(clip, lambda some: images.take(rows[some]), frame, task)
    return predictions_of(clip, embeddings, texts, frame, dataset.classes, seconds=seconds)


def sample(frame: pd.DataFrame, limit: int) -> tuple[pd.DataFrame, np.ndarray]:
    """At most `limit` rows spread over a frame (0: all), and which they are."""
    rows = np.arange(len(frame))
    if limit and limit < len(frame):
        rows = np.linspace(0, len(frame) - 1, limit).astype(int)
    return frame.iloc[rows].reset_index(drop=True), rows


def embed_images(
    clip: Clip, take: Callable[[np.ndarray], torch.Tensor], frame: pd.DataFrame, task: Task, *, quiet: bool = False
) -> tuple[torch.Tensor, float]:
    """Embeddings of the rows' images (rows, d), each different image once, and the median seconds per image.

    Args:
        take: row numbers of the frame -> uint8 images (k, 3, size, size).
        quiet: without progress.
    """
    codes, different = pd.factorize(frame["sha256"])
    first = np.flatnonzero(~frame["sha256"].duplicated().to_numpy())
    found, seconds = [], []
    with torch.inference_mode():
        starts = range(0, len(different), task.batch)
        for start in starts if quiet else progress(starts, f"batches at {task.size} px", len(starts)):
            images = take(first[start : start + task.batch])
            began = time.perf_counter()
            found.append(clip.encode_images(images).cpu())
            seconds.append((time.perf_counter() - began) / len(images))
    # The first batch also pays for allocations, kernels and caches; a last one that is not full is slower per image.
    steady = seconds[1:-1] or seconds[-1:]
    return torch.cat(found)[torch.from_numpy(codes)], float(np.median(steady))


def predictions_of(
    clip: Clip,
    image: torch.Tensor,
    texts: TextEmbeddings,
    frame: pd.DataFrame,
    classes: Sequence[str],
    *,
    seconds: float = float("nan"),
) -> Predictions:
    """What a model says of images whose embeddings `image` (rows, d) are known."""
    codes, _ = pd.factorize(frame["sha256"])
    first = np.flatnonzero(~frame["sha256"].duplicated().to_numpy())
    images, captions = image if len(first) == len(image) else image[first], texts.captions
    image_rank = ranked(codes, texts.own, (len(images), len(captions)), lambda some: similarities(clip, images[some], captions))
    text_rank = ranked(
        texts.own, codes, (len(captions), len(images)), lambda some: similarities(clip, images, captions[some]).T
    )

    number = {name: i for i, name in enumerate(classes)}
    truth = np.array([number.get(name, -1) for name in frame["label"]])
    if texts.classes is None:
        scores, predicted, margin = np.zeros((len(frame), 0), np.float32), np.zeros(len(frame), int), np.zeros(len(frame))
    else:
        scores = similarities(clip, image, texts.classes)
        predicted, margin = m.answers(scores), m.margins(scores)
    names = ("group", "sha256", "key")
    group, image_id, keys = (frame[name].to_numpy(dtype=str) for name in names)
    return Predictions(
        keys=keys,
        groups=np.where(group != "", group, image_id),
        truth=truth,
        predicted=predicted,
        margin=margin,
        scores=scores,
        image_rank=image_rank[codes],
        text_rank=text_rank[texts.own],
        image_weight=1 / np.bincount(codes)[codes],
        image=image.numpy(),
        scale=float(clip.model.logit_scale.detach().exp()),
        seconds=seconds,
        geometry=m.geometry(image.numpy(), texts.captions.numpy(), texts.own),
    )


def similarities(clip: Clip, image: torch.Tensor, text: torch.Tensor) -> np.ndarray:
    """Similarities of images (k, d) and texts (m, d): (k, m)."""
    with torch.inference_mode():
        return clip.similarity(image.to(clip.device), text.to(clip.device)).float().cpu().numpy()


def ranked(
    query: np.ndarray, item: np.ndarray, shape: tuple[int, int], similarity: Callable[[slice], np.ndarray]
) -> np.ndarray:
    """Ranks of many queries (metrics.ranks) without the whole matrix of similarities at once, nor one of what belongs together.

    Args:
        query, item: what belongs together, pair by pair.
        shape: how many queries and items there are.
        similarity: some of the queries -> (some, items).
    """
    query, item = np.divmod(np.unique(query.astype(np.int64) * shape[1] + item), shape[1])
    block, found = max(1, BLOCK // max(1, shape[1])), [np.zeros(0)]
    for start in range(0, shape[0], block):
        some = slice(start, start + block)
        own = slice(*np.searchsorted(query, (start, start + block)))
        found.append(m.ranks_of_pairs(similarity(some), query[own] - start, item[own]))
    return np.concatenate(found)

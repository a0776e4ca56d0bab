"""Zero-shot classification and retrieval of one model on one split at one size: embedded once, then every metric."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from ..core.console import progress
from ..core.errors import ClipftError
from ..data.decoded_cache import decoded
from ..data.versioning import Dataset
from ..model.clip import Clip
from . import metrics as m
from .bootstrap import Sums, holm, interval, p_value, resampled

LABELED = ("balanced_accuracy", "accuracy")
RETRIEVAL = ("image_to_text_r1", "text_to_image_r1")
BLOCK = 1024  # queries ranked at a time


@dataclass(frozen=True)
class Scored:
    """What a model said about each row of a split; every metric, and every comparison, is computed from this."""

    keys: np.ndarray  # (rows,) the rows' keys in the manifest
    groups: np.ndarray  # (rows,) what bootstrap resamples as a whole
    truth: np.ndarray  # (rows,) class id, -1 where unknown
    predicted: np.ndarray  # (rows,) class id, -1 where a score is no number
    margin: np.ndarray  # (rows,) best class similarity minus the second best
    scores: np.ndarray  # (rows, classes) similarities; no columns with fewer than two classes
    image_rank: np.ndarray  # (rows,) captions of other images that come before the best of its own
    text_rank: np.ndarray  # (rows,) other captions' images that come before the best of its caption's
    share: np.ndarray  # (rows,) one over the rows of its image: an image with five captions is one query, not five
    image: np.ndarray  # (rows, d) embeddings
    scale: float  # the model's inverse temperature
    seconds: float  # in the model per image, median over the batches that ran
    space: dict[str, float]  # where embeddings lie (metrics.geometry)

    def sums(self, metric: str) -> Sums:
        """A metric as a function of sums over rows. Raises ClipftError with those that there are."""
        if metric in _AT:
            query, k = _AT[metric]
            weight = self.share if query == "image" else np.ones(len(self.share))
            return Sums.ratio(weight * (getattr(self, f"{query}_rank") < k), weight)
        known = self.truth >= 0
        if metric == "accuracy":
            return Sums.ratio(known & (self.truth == self.predicted), known)
        if metric in _PER_CLASS:
            return self._per_class(_PER_CLASS[metric])
        raise ClipftError(f"metric {metric!r}", "it has no interval", f"Choose one of {', '.join(SUMMED)}.")

    def _per_class(self, of: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Sums:
        """The mean over classes that occur of a function of rows of it, hits, and rows called it."""
        classes = np.unique(self.truth[self.truth >= 0])
        shape = (len(self.truth), 3 * len(classes))
        pieces = [np.where(self.truth == self.predicted, self.truth, -1), self.predicted]
        rows, columns = [], []
        for place, ids in enumerate([self.truth, *pieces]):
            chosen = np.flatnonzero((self.truth >= 0) & np.isin(ids, classes))
            rows.append(chosen)
            columns.append(np.searchsorted(classes, ids[chosen]) + place * len(classes))
        at = (np.concatenate(rows), np.concatenate(columns))

        def value_of(sums: np.ndarray) -> np.ndarray:
            n, hits, called = (sums[..., i * len(classes) : (i + 1) * len(classes)] for i in range(3))
            there = n > 0
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.where(there, of(n, hits, called), 0).sum(axis=-1) / there.sum(axis=-1)  # type: ignore[no-any-return]

        return Sums(sparse.csr_array((np.ones(len(at[0])), at), shape=shape), value_of)


_AT = {f"{q}_to_{i}_r{k}": (q, k) for q, i in (("image", "text"), ("text", "image")) for k in (1, 5, 10)}
_PER_CLASS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "balanced_accuracy": lambda n, hits, called: hits / n,
    "macro_f1": lambda n, hits, called: 2 * hits / (n + called),
}
SUMMED = ("accuracy", *_PER_CLASS, *_AT)  # metrics that can have an interval


# A model looks at a split ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """A model's embeddings of the words of some rows; they are the same at every image size."""

    captions: torch.Tensor  # (different captions, d)
    own: np.ndarray  # (rows,) which of them
    classes: torch.Tensor | None  # (classes, d), with at least two classes

    @classmethod
    def of(cls, clip: Clip, frame: pd.DataFrame, classes: Sequence[str]) -> "Words":
        own, captions = pd.factorize(frame["caption"], sort=True)
        with torch.inference_mode():
            texts = torch.cat([clip.encode_texts(list(captions[i : i + 256])).cpu() for i in range(0, len(captions), 256)])
            known = clip.class_embeddings(classes).cpu() if len(classes) > 1 else None
        return cls(texts, own, known)


def metrics(dataset: Dataset) -> list[str]:
    """The metrics with intervals that make sense for a data set's test rows, the most telling first.

    Raises: ClipftError when there is nothing that a model could tell apart.
    """
    test = dataset.split("test")
    labeled = LABELED if len(dataset.classes) > 1 and (test["label"] != "").any() else ()
    retrieval = RETRIEVAL if test["caption"].nunique() > 1 else ()
    if not labeled and not retrieval:
        why = "have one caption, and fewer than two classes are known" if len(test) else "are none"
        raise ClipftError(
            f"the test rows of {dataset.version.tag}", f"they {why}: nothing can be told apart", "Add labels or captions."
        )
    return [*labeled, *retrieval]


def score(clip: Clip, dataset: Dataset, split: str, side: int, batch: int, limit: int = 0) -> Scored:
    """Run a model over a split at an image size; its weights and preprocessing stay as they are.

    Args:
        limit: most rows to look at, spread over the split; 0 for all.
    Raises: ClipftError when the split is empty.
    """
    every = dataset.split(split)
    if not len(every):
        raise ClipftError(
            f"the {split} rows of {dataset.version.tag}", "there are none", "Choose larger shares for the splits."
        )
    frame, rows = sample(every, limit)
    images = decoded(dataset, every, side, split, gray_bits=clip.prepared().gray_bits, aspect=clip.aspect)
    words = Words.of(clip, frame, dataset.classes)
    image, seconds = look(clip, lambda some: images.take(rows[some]), frame, batch, side)
    return judge(clip, image, words, frame, dataset.classes, seconds)


def sample(frame: pd.DataFrame, limit: int) -> tuple[pd.DataFrame, np.ndarray]:
    """At most `limit` rows spread over a frame (0: all), and which they are."""
    rows = np.arange(len(frame))
    if limit and limit < len(frame):
        rows = np.linspace(0, len(frame) - 1, limit).astype(int)
    return frame.iloc[rows].reset_index(drop=True), rows


def look(
    clip: Clip, take: Callable[[np.ndarray], torch.Tensor], frame: pd.DataFrame, batch: int, side: int, quiet: bool = False
) -> tuple[torch.Tensor, float]:
    """Embeddings of the rows' images (rows, d), each different image once, and the median seconds per image.

    Args:
        take: row numbers of the frame -> uint8 images (k, 3, side, side).
        quiet: without progress.
    """
    codes, different = pd.factorize(frame["sha256"])
    first = np.flatnonzero(~frame["sha256"].duplicated().to_numpy())
    found, seconds = [], []
    with torch.inference_mode():
        starts = range(0, len(different), batch)
        for start in starts if quiet else progress(starts, f"batches at {side} px", len(starts)):
            images = take(first[start : start + batch])
            began = time.perf_counter()
            found.append(clip.encode_images(images).cpu())
            seconds.append((time.perf_counter() - began) / len(images))
    # The first batch also pays for allocations, kernels and caches; a last one that is not full is slower per image.
    steady = seconds[1:-1] or seconds[-1:]
    return torch.cat(found)[torch.from_numpy(codes)], float(np.median(steady))


def judge(
    clip: Clip, image: torch.Tensor, words: Words, frame: pd.DataFrame, classes: Sequence[str], seconds: float = float("nan")
) -> Scored:
    """What a model says of images that it has looked at: `image` (rows, d) are their embeddings."""
    codes, different = pd.factorize(frame["sha256"])
    first = np.flatnonzero(~frame["sha256"].duplicated().to_numpy())
    belongs = np.zeros((len(different), len(words.captions)), dtype=bool)
    belongs[codes, words.own] = True
    image_rank = _ranked(belongs, lambda some: compare(clip, image[first[some]], words.captions))
    text_rank = _ranked(belongs.T, lambda some: compare(clip, image[first], words.captions[some]).T)

    number = {name: i for i, name in enumerate(classes)}
    truth = np.array([number.get(name, -1) for name in frame["label"]])
    if words.classes is None:
        scores, predicted, margin = np.zeros((len(frame), 0), np.float32), np.zeros(len(frame), int), np.zeros(len(frame))
    else:
        scores = compare(clip, image, words.classes)
        predicted, margin = m.answers(scores), m.margins(scores)
    names = ("group", "sha256", "key")
    group, image_id, keys = (frame[name].to_numpy(dtype=str) for name in names)
    return Scored(
        keys=keys,
        groups=np.where(group != "", group, image_id),
        truth=truth,
        predicted=predicted,
        margin=margin,
        scores=scores,
        image_rank=image_rank[codes],
        text_rank=text_rank[words.own],
        share=1 / np.bincount(codes)[codes],
        image=image.numpy(),
        scale=float(clip.model.logit_scale.detach().exp()),
        seconds=seconds,
        space=m.geometry(image.numpy(), words.captions[torch.from_numpy(words.own)].numpy()),
    )


def compare(clip: Clip, image: torch.Tensor, text: torch.Tensor) -> np.ndarray:
    """Similarities of images (k, d) and texts (m, d): (k, m)."""
    with torch.inference_mode():
        return clip.similarity(image.to(clip.device), text.to(clip.device)).cpu().numpy()  # type: ignore[no-any-return]


def _ranked(relevant: np.ndarray, similarity: Callable[[slice], np.ndarray]) -> np.ndarray:
    """Ranks of many queries without the whole matrix of similarities at once."""
    parts = [slice(i, i + BLOCK) for i in range(0, len(relevant), BLOCK)]
    return np.concatenate([m.ranks(similarity(part), relevant[part]) for part in parts])


def only(scored: Scored, rows: np.ndarray) -> Scored:
    """The same model on some of the rows."""
    values = {field.name: getattr(scored, field.name) for field in fields(Scored)}
    return replace(scored, **{name: x[rows] for name, x in values.items() if isinstance(x, np.ndarray)})


# Metrics --------------------------------------------------------------------------------------------------------------


def summary(scored: Scored, names: Sequence[str], resamples: int) -> dict[str, dict[str, float]]:
    """Each metric's value and 95% interval."""
    sums = [scored.sums(name) for name in names]
    values = resampled(sums, scored.groups, resamples)
    return {
        name: dict(zip(("value", "low", "high"), (s.value, *interval(v)), strict=True))
        for name, s, v in zip(names, sums, values, strict=True)
    }


def difference(new: Scored, old: Scored, metric: str, resamples: int) -> dict[str, float]:
    """new minus old on the same rows, with the 95% interval and the two-sided p of a paired bootstrap.

    Raises: ClipftError when the two were scored on different rows.
    """
    found = comparisons(new, {"": old}, [metric], resamples)[0]
    return {name: found[name] for name in ("value", "low", "high", "p")}


def comparisons(new: Scored, others: dict[str, Scored], names: Sequence[str], resamples: int) -> list[dict[str, Any]]:
    """new minus each other in each metric, on the same rows and the same resamples.

    Returns: metric, against, value, low, high (95%), p (two-sided), p_holm (corrected for the number of comparisons).
    Raises: ClipftError when two were scored on different rows.
    """
    for old in others.values():
        if not np.array_equal(new.keys, old.keys):
            both = len(np.intersect1d(new.keys, old.keys))
            raise ClipftError(
                "a comparison of two models",
                f"they were scored on different test rows ({len(new.keys)} and {len(old.keys)}, {both} of them shared)",
                "Evaluate both on the same dataset version and split.",
            )
    everyone = [new, *others.values()]
    sums = [[scored.sums(name) for name in names] for scored in everyone]
    drawn = resampled([s for each in sums for s in each], new.groups, resamples).reshape(len(everyone), len(names), -1)
    out: list[dict[str, Any]] = []
    for against, old_sums, old_drawn in zip(others, sums[1:], drawn[1:], strict=True):
        for i, name in enumerate(names):
            gained = drawn[0, i] - old_drawn[i]
            low, high = interval(gained)
            value = sums[0][i].value - old_sums[i].value
            out.append({"metric": name, "against": against, "value": value, "low": low, "high": high, "p": p_value(gained)})
    return [c | {"p_holm": p} for c, p in zip(out, holm([c["p"] for c in out]), strict=True)]


def all_metrics(scored: Scored) -> tuple[dict[str, float], dict[str, str]]:
    """Every metric of a model by name, and for those that cannot be computed the reason."""
    found: dict[str, float] = {}
    absent: dict[str, str] = {}
    known = scored.truth >= 0
    if scored.scores.shape[1] < 2:
        absent["classification"] = "the data set has fewer than two classes"
    elif not known.any():
        absent["classification"] = "no row of the split has a label"
    else:
        truth, predicted, sure = (
            scored.truth[known],
            scored.predicted[known],
            m.log_softmax(scored.scale * scored.scores[known]),
        )
        found |= m.classification(truth, predicted, sure)
        found["calibration_error"] = m.calibration_error(m.reliability(truth, predicted, sure))
        if len(np.unique(truth)) < 2:
            absent["macro_auroc"] = absent["macro_average_precision"] = "the rows are all of one class"
    for name in _AT:
        found[name] = scored.sums(name).value
    found["image_to_text_median_rank"] = 1 + _median(scored.image_rank, scored.share)
    found["text_to_image_median_rank"] = 1 + _median(scored.text_rank, np.ones(len(scored.text_rank)))
    found |= scored.space | {"milliseconds_per_image": scored.seconds * 1000}
    for name, value in found.items():
        if not np.isfinite(value):
            absent.setdefault(
                name, "the model's scores are not all numbers" if np.isnan(scored.scores).any() else "too few rows"
            )
    return {name: value for name, value in found.items() if np.isfinite(value)}, absent


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(np.mean([values[order][np.searchsorted(reached, half)] for half in (0.5 - 1e-9, 0.5 + 1e-9)]))


def calibrated(test: Scored, val: Scored) -> dict[str, float]:
    """The temperature that fits the validation rows best, and what is left of the calibration error with it; {} without labels."""
    labeled, known = val.truth >= 0, test.truth >= 0
    scale = m.fitted_scale(val.truth[labeled], val.scores[labeled])
    if not np.isfinite(scale) or not known.any() or np.isnan(test.scores).any():
        return {}
    sure = m.log_softmax(scale * test.scores[known])
    error = m.calibration_error(m.reliability(test.truth[known], test.predicted[known], sure))
    return {"temperature": 1 / test.scale, "fitted_temperature": 1 / scale, "fitted_calibration_error": error}

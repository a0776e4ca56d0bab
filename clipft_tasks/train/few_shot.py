"""A model for classes of which there are a few images: its towers stay, or train briefly, whichever held-out images prefer."""

import hashlib
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from ..contracts.few_shot import FewShot
from ..core.console import say
from ..core.errors import ClipftError
from ..data.decoded_cache import decoded
from ..data.versioning import Dataset
from ..devices.hardware import use_threads
from ..evaluate.zero_shot import Task, embed_images
from ..model import build
from ..model.clip import Clip
from . import launch
from .class_heads import Shots
from .few_shot_choice import HEADS, HeldOutFolds, choose

BATCH = 64  # images a pass
MANY = 16  # images of a class: with more, the recipe is usually worth its time
TRAINS_FROM = 8  # images of the rarest class, from which on short trainings are tried
MOST_PAIRS = 12_000  # that all trainings of a choice may see together: minutes on two cores
RECIPES: dict[str, dict[str, object]] = {"lora": {"train.lora_rank": 16}, "recipe": {}}


def fit(job: launch.Job, clip: Clip, dataset: Dataset) -> tuple[dict[str, float], FewShot]:
    """Fit a prepared start model to the labeled training rows, in place.

    Returns: metrics as a training's, and what was chosen and why.
    Raises: ClipftError where nothing can be told apart, or the model does not compare by cosines.
    """
    frame = labeled_rows(dataset)
    if clip.similarity.name != "cosine":
        why = f"it compares by {clip.similarity.name}, and a class fitted to images is compared by cosines"
        raise ClipftError(f"start model {clip.source}", why, "Use train.method=recipe.", code="shots.not_cosine")
    use_threads(job.plan.threads.value)
    clip.to(job.plan.device.value).model.eval()
    shots = embedded(clip, dataset, frame, job.spec.resolution.side, dataset.classes)
    groups = groups_of(frame)
    counts = np.bincount(shots.labels.numpy(), minlength=len(dataset.classes))
    if missing := [name for name, count in zip(dataset.classes, counts, strict=True) if not count]:
        say(f"No training image of {', '.join(missing)}: they stay as their prompts say.")
    if counts.max() > MANY:
        say(f"Up to {counts.max()} images a class: train.method=recipe usually makes more of so many.")
    training = _Trainings(job, dataset, frame, shots)
    chosen = choose(shots, groups, job.spec.train.seed, training.ways(counts))
    say(f"Few-shot: {chosen.method}{f' ({chosen.strength:g})' if chosen.strength else ''}: {chosen.reason}.")
    for tried in chosen.tried:
        say(
            f"  {tried.method:10} balanced accuracy {tried.score:.3f}, log-likelihood {tried.likelihood:.3f}, {tried.seconds:g} s"
        )
    steps = 0.0
    if chosen.method in HEADS:
        if chosen.method != "text":
            found = HEADS[chosen.method][0](shots, chosen.strength).float()
            clip.learned = dict(zip(dataset.classes, found, strict=True))
    else:
        whole, metrics = training.train(chosen.method, np.ones(len(frame), bool), "all")
        clip.load_state(whole.state())
        clip.adapter, steps = whole.adapter, metrics["steps"]
    return {"steps": steps, "pairs": float(len(frame)), "pairs_per_second": 0.0}, chosen


def labeled_rows(dataset: Dataset) -> pd.DataFrame:
    """The training split's different labeled images. Raises ClipftError where they have no two classes."""
    frame = dataset.split("train")
    frame = frame[(frame["label"] != "") & ~frame["sha256"].duplicated()].reset_index(drop=True)
    if frame["label"].nunique() < 2:
        raise ClipftError(
            f"the training rows of {dataset.version.tag}", "they have no images of two classes, so there are none to be fitted",
            "Label some, or use train.method=recipe.", code="shots.too_few_classes",
        )  # fmt: skip
    return frame


def groups_of(frame: pd.DataFrame) -> np.ndarray:
    """The group of each row; an image without one is its own."""
    return np.array([group or image for group, image in zip(frame["group"], frame["sha256"], strict=True)], dtype=str)


def embedded(clip: Clip, dataset: Dataset, frame: pd.DataFrame, side: int, classes: list[str]) -> Shots:
    """The rows as a model sees them, on the CPU and in double precision: they are few, and optima are to be exact."""
    images = decoded(dataset, frame, side, "few-shot", gray_bits=clip.prepared().gray_bits, aspect=clip.aspect)
    features, _ = embed_images(clip, images.take, frame, Task(dataset, side, BATCH), quiet=True)
    with torch.inference_mode():
        texts = clip.class_embeddings(classes).cpu()
    number = {name: place for place, name in enumerate(classes)}
    labels = torch.tensor([number[label] for label in frame["label"]])
    scale = float(clip.model.logit_scale.detach().exp())
    return Shots(normalize(features.double(), dim=1).clone(), labels, texts.double().clone(), scale)


class _Trainings:
    """Short trainings of the towers, on some of the rows at a time. Each has a folder of its own and resumes there."""

    def __init__(self, job: launch.Job, dataset: Dataset, frame: pd.DataFrame, shots: Shots) -> None:
        self.job, self.dataset, self.frame, self.shots = job, dataset, frame, shots

    def ways(self, counts: np.ndarray) -> dict[str, "_Way"]:
        """Those that the rows are enough for, and the time."""
        seen = counts[counts > 0]
        folds = HeldOutFolds.of(self.shots.labels.numpy(), groups_of(self.frame), self.job.spec.train.seed).count
        pairs = len(self.frame) * self.job.spec.train.epochs * (folds + 1) * len(RECIPES)
        if seen.min() < TRAINS_FROM:
            say(f"Towers stay as they are: a class has {seen.min()} images, and trainings are tried from {TRAINS_FROM} on.")
            return {}
        if pairs > MOST_PAIRS:
            say(
                f"Towers stay as they are: trying would take {pairs} pairs, more than {MOST_PAIRS}. train.method=recipe trains them."
            )
            return {}
        return {name: _Way(self, name) for name in RECIPES}

    def train(self, name: str, rows: np.ndarray, part: str) -> tuple[Clip, dict[str, float]]:
        """A fresh start model, trained on some of the rows."""
        spec = self.job.spec.changed({"train.method": "recipe", "train.keep": "last", "train.patience": 0, "train.max_forgetting": 1.0}
                                     | RECIPES[name])  # fmt: skip
        clip = build.prepare(build.load(self.job.start, domain=spec.domain), spec)
        job = launch.Job(spec=spec, plan=self.job.plan, start=self.job.start, dataset=self.job.dataset, key=self.job.key,
                         folder=self.job.folder / "few-shot" / f"{name}-{part}")  # fmt: skip
        job.folder.mkdir(parents=True, exist_ok=True)
        return clip, launch.train_rows(job, clip, self.some(rows))

    def some(self, rows: np.ndarray) -> Dataset:
        """Some of the rows, as a data set of its own: decoded images are kept by revision."""
        frame, version = self.frame[rows].reset_index(drop=True), self.dataset.version
        revision = hashlib.sha256(" ".join([version.revision, *frame["key"]]).encode()).hexdigest()[:40]
        return replace(self.dataset, frame=frame, version=replace(version, revision=revision))


class _Way:
    """One kind of training, asked for logits of rows that it did not see."""

    def __init__(self, trainings: _Trainings, name: str) -> None:
        self.trainings, self.name = trainings, name

    def __call__(self, folds: HeldOutFolds) -> np.ndarray:
        its, out = self.trainings, np.zeros((len(folds.fold), len(self.trainings.shots.texts)))
        for fold in np.unique(folds.fold):
            held = folds.fold == fold
            clip, _ = its.train(self.name, ~held, str(fold))
            rows = its.some(held)
            seen = embedded(clip, rows, rows.frame, its.job.spec.resolution.side, its.dataset.classes)
            out[held] = (seen.scale * seen.features @ seen.texts.T).numpy()
        return out

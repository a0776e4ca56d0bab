"""Training input: pictures decoded once into a memory map, batches drawn and augmented without hidden state.

Everything random about step `s` derives from (seed, s). A run that is resumed at `s` therefore sees exactly what an
unbroken one would, and a checkpoint needs no generator state.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch.nn import functional

from ..domains import Augment
from ..progress import progress
from ..settings import settings
from .pictures import open_picture, square
from .versioning import Dataset

Batch = dict[str, torch.Tensor | list[str]]


def decoded(dataset: Dataset, frame: pd.DataFrame, side: int, name: str) -> np.ndarray:
    """The frame's pictures as squares, uint8 (rows, 3, side, side), memory-mapped and kept between runs.

    Args:
        name: what distinguishes this frame within the dataset version, e.g. the split.
    """
    version = dataset.version
    folder = settings().folder("cache", "pictures", version.domain)
    path = folder / f"v{version.number}-{version.revision[:10]}-{name}-{side}.npy"
    with FileLock(str(path) + ".lock"):
        if not path.exists():
            part = Path(str(path) + ".part")
            out = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(frame), 3, side, side))
            for i, row in enumerate(progress(frame.itertuples(), f"{name} pictures decoded", len(frame))):
                out[i] = square(open_picture(dataset.picture(row)).rgb, side)
            out.flush()
            del out
            os.replace(part, path)
    return np.load(path, mmap_mode="r")


class Sampler:
    """Which rows make up each step. Epochs are permutations; with `balance`, classes take equal shares of each.

    Args:
        labels: class id by row, -1 where unknown.
        batch: rows per step.
        seed: fixes every epoch's order.
        balance: draw rare classes as often as common ones.
    """

    def __init__(self, labels: np.ndarray, batch: int, seed: int, balance: bool) -> None:
        self.labels, self.batch, self.seed, self.balance = labels, batch, seed, balance
        self._current: tuple[int, np.ndarray] = (-1, labels)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.labels) // self.batch)

    def rows(self, step: int) -> np.ndarray:
        """Row numbers of a step (batch,), or fewer when the data set is smaller than a batch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._current[0] != epoch:
            self._current = (epoch, self._epoch(epoch))
        return self._current[1][within * self.batch : (within + 1) * self.batch]

    def _epoch(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 1, epoch])
        count = len(self.labels)
        if not self.balance:
            return rng.permutation(count)
        classes = np.unique(self.labels)
        # Each class is repeated whole, in fresh order each time, until it has filled its share.
        share = -(-count // len(classes))
        columns = []
        for label in classes:
            members = np.flatnonzero(self.labels == label)
            repeats = -(-share // len(members))
            columns.append(np.concatenate([rng.permutation(members) for _ in range(repeats)])[:share])
        drawn = np.stack(columns, axis=1).ravel()  # classes alternate, so each batch is balanced as well
        for start in range(0, len(drawn), self.batch):
            rng.shuffle(drawn[start : start + self.batch])
        return drawn[:count]


def augment(pictures: torch.Tensor, side: int, how: Augment, seed: int, step: int) -> torch.Tensor:
    """Crop, flip, turn and light a batch in one resampling, on the batch's device.

    Args:
        pictures: uint8 (n, 3, r, r).
        side: size of the result.
        seed, step: fix every random number.
    Returns: fp32 in 0-255, (n, 3, side, side).
    """
    n, device = len(pictures), pictures.device
    rng = np.random.default_rng([seed, 2, step])
    zoom = np.sqrt(rng.uniform(how.crop_min, 1.0, n))
    shift = rng.uniform(-1, 1, (n, 2)) * (1 - zoom)[:, None]
    turns = rng.integers(0, 4, n) if how.rotate90 else np.zeros(n, int)
    flip = np.stack(
        [
            np.where(how.flip_horizontal & (rng.random(n) < 0.5), -1.0, 1.0),
            np.where(how.flip_vertical & (rng.random(n) < 0.5), -1.0, 1.0),
        ],
        axis=1,
    )
    cos, sin = np.cos(turns * np.pi / 2).round(), np.sin(turns * np.pi / 2).round()
    rotation = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    matrix = np.concatenate([rotation * flip[:, None, :] * zoom[:, None, None], shift[:, :, None]], axis=2)
    theta = torch.from_numpy(matrix.astype(np.float32)).to(device)
    grid = functional.affine_grid(theta, [n, 3, side, side], align_corners=False)
    out = functional.grid_sample(pictures.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if how.brightness or how.contrast:
        gain = 1 + rng.uniform(-how.brightness, how.brightness, n)
        spread = 1 + rng.uniform(-how.contrast, how.contrast, n)
        gain_t, spread_t = (torch.from_numpy(x.astype(np.float32)).to(device).view(n, 1, 1, 1) for x in (gain, spread))
        mean = out.mean(dim=(1, 2, 3), keepdim=True)
        out = ((out - mean) * spread_t + mean) * gain_t
    return out.clamp_(0, 255)


@dataclass(frozen=True)
class TrainingData:
    """A split ready for training: pictures, captions, ids. `batch(step)` is a pure function of its argument."""

    pictures: np.ndarray
    captions: list[str]
    caption_ids: np.ndarray
    sampler: Sampler
    how: Augment
    side: int

    @classmethod
    def open(cls, dataset: Dataset, side: int, how: Augment, batch: int, seed: int, balance: bool) -> "TrainingData":
        frame = dataset.split("train")
        margin = -(-int(side / how.crop_min**0.5) // 16) * 16  # decoded large enough that crops are never enlarged
        captions = sorted(frame["caption"].unique())
        ids = {c: i for i, c in enumerate(captions)}
        classes = {c: i for i, c in enumerate(dataset.classes)}
        labels = np.array([classes.get(x, -1) for x in frame["label"]])
        return cls(
            pictures=decoded(dataset, frame, margin, "train"),
            captions=captions,
            caption_ids=np.array([ids[c] for c in frame["caption"]]),
            sampler=Sampler(labels, min(batch, len(frame)), seed, balance and bool(classes)),
            how=how,
            side=side,
        )

    def batch(self, step: int, device: torch.device) -> Batch:
        """The batch of a step: `image` (n, 3, side, side) in 0-255, `texts` (unique captions), `caption` and `label` ids."""
        rows = self.sampler.rows(step)
        pictures = torch.from_numpy(self.pictures[rows]).to(device)
        unique, caption = np.unique(self.caption_ids[rows], return_inverse=True)
        return {
            "image": augment(pictures, self.side, self.how, self.sampler.seed, step),
            "texts": [self.captions[i] for i in unique],
            "caption": torch.from_numpy(caption).to(device),
            "label": torch.from_numpy(self.sampler.labels[rows]).to(device),
        }

    def batches(self, first: int, last: int, device: torch.device) -> Iterator[tuple[int, Batch]]:
        for step in range(first, last):
            yield step, self.batch(step, device)

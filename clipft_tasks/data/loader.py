"""Training input: batches as pure functions of their step, prepared by threads ahead of the device."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..devices import backend, moved
from ..domains import Augment, spoken
from . import augment
from .augment import Geometry
from .decoded_cache import Decoded, decoded
from .images import Aspect
from .sampler import Sampler
from .versioning import Dataset

# Batch and text counts come from a small set, since every new shape costs memory on MPS and a compilation on CUDA.
BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384, 32768, 65536)


class TokenTable(Protocol):
    """What reads captions: a model with its tokenizer."""

    def token_table(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (n, context), int32, and how many columns each text needs (n,)."""


@dataclass(frozen=True)
class Batch:
    """One step's pairs. Images are those of this process; everything else is the whole batch's.

    Attributes:
        side: image size that the towers see.
        images: uint8 (k, 3, r, r), decoded, not yet augmented.
        geometry: what is done to each of them.
        rows: which rows of the batch they are.
        tokens: (u, length) of the batch's captions, each once.
        caption: (n,) index into tokens; equal captions have equal ids.
        label: (n,) class id, -1 where unknown.
        keys: (n,) manifest keys, to name a row that breaks something.
        new: (n,) whether the row came with this dataset version; None where nobody asks.
        held: whoever works on the batch holds it until the device is known to be done with it, so that no copy is waited for.
    """

    side: int
    images: Tensor
    geometry: Geometry
    rows: slice
    tokens: Tensor
    caption: Tensor
    label: Tensor
    keys: np.ndarray
    new: Tensor | None = None
    held: bool = False

    def __len__(self) -> int:
        return len(self.caption)

    def augmented(self, part: slice, device: torch.device) -> Tensor:
        """Some of this process's images as the towers see them, before normalization: fp32 0-255 (p, 3, side, side)."""
        images = moved(self.images[part], device, held=self.held)
        return augment.apply(images, self.geometry.part(part), self.side, held=self.held)

    def to(self, device: torch.device) -> "Batch":
        """The same with its images on the device."""
        return replace(self, images=moved(self.images, device))


@dataclass(frozen=True)
class TrainingData:
    """A split ready for training. `batch` is a pure function of its arguments, whatever thread or process calls it."""

    images: Decoded
    tokens: Tensor  # (captions, context), int32: every caption tokenized once
    lengths: Tensor  # (captions,) tokens that count; the full context where a tower must see all
    caption_ids: np.ndarray
    wordings: np.ndarray  # (classes, prompts) caption ids of what else may be said of a class; empty where nothing may
    keys: np.ndarray
    new: Tensor
    sampler: Sampler
    how: Augment

    @classmethod
    def open(
        cls, dataset: Dataset, clip: TokenTable, how: Augment, *, split: str = "train", largest: int, batch: int, seed: int,
        gray_bits: int, sampling: str = "shuffled", aspect: Aspect = "crop", workers: int = 2, prompts: Sequence[str] = (),
    ) -> "TrainingData":  # fmt: skip
        """Read a split.

        Args:
            clip: the model whose tokenizer reads the captions.
            largest: largest side that training will ask for.
            gray_bits: how deep gray is read, see `images.deep_gray`.
            prompts: templates, of which `how.prompt_share` of the labeled rows take one for a step.
        """
        frame = dataset.split(split)
        margin = -(-int(largest / how.crop_min**0.5) // 16) * 16  # decoded large enough that crops are never enlarged
        worded = [[p.format(spoken(c)) for p in prompts] for c in dataset.classes] if how.prompt_share else []
        captions = sorted({*frame["caption"], *chain.from_iterable(worded)})
        ids = {c: i for i, c in enumerate(captions)}
        classes = {c: i for i, c in enumerate(dataset.classes)}
        labels = np.array([classes.get(x, -1) for x in frame["label"]])
        groups = np.unique([g or k for g, k in zip(frame["group"], frame["key"], strict=True)], return_inverse=True)[1]
        images = np.unique(frame["sha256"].to_numpy(), return_inverse=True)[1]
        tokens, lengths = clip.token_table(captions)
        return cls(
            images=decoded(dataset, frame, margin, split, gray_bits=gray_bits, aspect=aspect, draft=True, workers=workers),
            tokens=tokens,
            lengths=lengths,
            caption_ids=np.array([ids[c] for c in frame["caption"]]),
            wordings=np.array([[ids[text] for text in row] for row in worded], int),
            keys=frame["key"].to_numpy(),
            new=torch.from_numpy(dataset.added(frame)),
            sampler=Sampler(
                labels, batch, seed, sampling if classes or sampling != "balanced" else "shuffled",
                images=images, groups=groups,
            ),
            how=how,
        )  # fmt: skip

    def batch(
        self, step: int, side: int, *, how: Augment | None = None, rank: int = 0, world: int = 1, bucketed: bool = False,
        pinned: bool = False,
    ) -> Batch:  # fmt: skip
        """The batch of a step.

        Args:
            how: another augmentation than the split's.
            rank, world: which process asks, of how many; each holds its share of the images.
            bucketed: round the number of captions up to a bucket, with repeats that nothing refers to.
        """
        rows = self.sampler.rows(step)
        share = -(-len(rows) // world)
        mine = slice(min(rank * share, len(rows)), min((rank + 1) * share, len(rows)))
        unique, caption = np.unique(self._worded(rows, step), return_inverse=True)
        if bucketed:
            wanted = next((b for b in BUCKETS if b >= len(unique)), len(unique))
            unique = np.concatenate([unique, np.repeat(unique[-1:], wanted - len(unique))])
        length = int(self.lengths[unique].max())
        return Batch(
            side=side,
            images=self.images.take(rows[mine], pinned=pinned),
            geometry=augment.draw(len(rows), how or self.how, self.sampler.seed, step).part(mine),
            rows=mine,
            tokens=self.tokens[unique, :length].long(),
            caption=torch.from_numpy(caption),
            label=torch.from_numpy(self.sampler.labels[rows]),
            keys=self.keys[rows],
            new=self.new[rows],
        )

    def _worded(self, rows: np.ndarray, step: int) -> np.ndarray:
        """Caption ids of a step's rows: their own, or what else may be said of their class."""
        own: np.ndarray = self.caption_ids[rows]
        label = self.sampler.labels[rows]
        if not self.wordings.size:
            return own
        rng = np.random.default_rng([self.sampler.seed, 4, step])
        other = self.wordings[label, rng.integers(0, self.wordings.shape[1], len(rows))]
        worded: np.ndarray = np.where((rng.random(len(rows)) < self.how.prompt_share) & (label >= 0), other, own)
        return worded


def ahead(
    make: Callable[[int], Batch], first: int, last: int, *, device: torch.device, resident: bool, workers: int
) -> Iterator[Batch]:
    """Batches `first` to `last`, prepared by threads while the device works.

    Threads, not processes: they survive any way of starting Python, cannot be lost, and touch no device (two threads on MPS
    abort the process). Where the device can, the next batch is copied while the current one is computed, when whole batches fit
    there.

    Args:
        make: step -> batch on the host.
        resident: move the images to the device ahead of their step.
        workers: batches in preparation at a time.
    """
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="batches") as pool:
        waiting: deque[Future[Batch]] = deque()
        steps = iter(range(first, last))
        copies = backend(device).copy_stream() if resident else None

        def submit() -> None:
            if (step := next(steps, None)) is not None:
                waiting.append(pool.submit(make, step))

        def receive() -> Batch | None:
            if not waiting:
                return None
            batch = waiting.popleft().result()
            submit()
            if copies is None:
                return batch
            with copies.copying():
                return batch.to(device)

        for _ in range(max(2, workers + 1)):
            submit()
        try:
            following = receive()
            while following is not None:
                batch = following
                if copies is not None:
                    copies.ready(batch.images)
                    following = receive()
                    yield batch
                else:
                    yield batch
                    following = receive()
        finally:
            for future in waiting:
                future.cancel()

"""Decoded images: each is decoded once, kept in a memory-mapped file between runs, and dropped when space is short."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from filelock import FileLock

from ..core.console import progress, say
from ..core.errors import ClipftError
from ..core.files import atomic_path, evict
from ..core.settings import settings
from .images import Aspect, BadImageError, open_image, square
from .versioning import Dataset, Packed

MIN_AGE = 600  # seconds; younger files may be in another process's hands


class Decoded:
    """A frame's images as squares, uint8 (3, side, side) each.

    Args:
        store: (rows, 3, side, side), memory-mapped; None decodes at each use.
    """

    def __init__(
        self, dataset: Dataset, frame: pd.DataFrame, side: int, aspect: Aspect, gray_bits: int, draft: bool, workers: int
    ) -> None:
        self.dataset, self.side, self.aspect, self.draft, self.workers = dataset, side, aspect, draft, workers
        self.gray_bits = gray_bits
        self._rows = cast(list[Packed], list(frame.itertuples()))
        self.store: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def bytes(self) -> int:
        return len(self) * 3 * self.side**2

    def take(self, rows: np.ndarray, *, pinned: bool = False) -> torch.Tensor:
        """The images of some rows: uint8 (k, 3, side, side), on the host."""
        out = torch.empty((len(rows), 3, self.side, self.side), dtype=torch.uint8, pin_memory=pinned)
        if self.store is not None:
            return torch.index_select(torch.from_numpy(self.store), 0, torch.from_numpy(np.asarray(rows)), out=out)
        for position, image in enumerate(self._decode([self._rows[i] for i in rows])):
            out[position] = torch.from_numpy(image)
        return out

    def _decode(self, rows: Sequence[Packed]) -> Iterator[np.ndarray]:
        """Threads, since decoding leaves Python's lock, and threads need neither pickling nor a second import."""
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            yield from pool.map(self._one, rows)

    def _one(self, row: Packed) -> np.ndarray:
        try:
            draft = 2 * self.side if self.draft else 0
            image = open_image(self.dataset.image_bytes(row), draft=draft, gray_bits=self.gray_bits)
        except BadImageError as error:  # it decoded when it was ingested
            name = getattr(row, "name", "?")
            raise ClipftError(
                f"image {name} of {self.dataset.version.tag}",
                str(error),
                "Fetch the data set again.",
                code="dataset.unreadable_image",
            ) from error
        return square(image.rgb, self.side, self.aspect)

    def fill(self, path: Path, what: str) -> None:
        """Decode everything into `path`, unless it is there; whole or not at all."""
        with FileLock(str(path) + ".lock"):
            if not path.exists():
                with atomic_path(path, alone=True) as part:
                    shape = (len(self), 3, self.side, self.side)
                    out = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
                    decoding = self._decode(self._rows)
                    for i, image in enumerate(progress(decoding, what, len(self))):
                        out[i] = image
                    out.flush()
                    del out
        os.utime(path)
        self.store = np.load(path, mmap_mode="c")  # torch takes no read-only arrays


def decoded(
    dataset: Dataset,
    frame: pd.DataFrame,
    side: int,
    name: str,
    *,
    gray_bits: int,
    aspect: Aspect = "crop",
    draft: bool = False,
    workers: int = 2,
) -> Decoded:
    """The frame's images, decoded once where the cache may hold them (`CLIPFT_CACHE_GB`), else at each use.

    Args:
        name: what distinguishes this frame within the dataset version, e.g. the split.
        gray_bits: how deep gray is read (`images.deep_gray`), as the model that will see the images says.
        draft: let JPEG decode at a fraction of its size where that is still twice the side: for training, not for evaluation.
    """
    version = dataset.version
    out = Decoded(dataset, frame, side, aspect, gray_bits, draft, workers)
    limit = int(settings().cache_gb * 2**30)
    if out.bytes > limit:
        say(f"{name} images of {side} px take {out.bytes / 2**30:.1f} GiB, more than CLIPFT_CACHE_GB: decoded at each use.")
        return out
    folder = _folder()
    kind = f"{side}{'' if aspect == 'crop' else f'-{aspect}'}{'-draft' if draft else ''}{'' if out.gray_bits == 16 else f'-gray{out.gray_bits}'}"
    path = folder / version.domain / f"v{version.number}-{version.revision[:10]}-{name}-{kind}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        evict(folder.rglob("*.npy"), limit - out.bytes, lambda file: file.stat().st_mtime > time.time() - MIN_AGE)
    out.fill(path, f"{name} images decoded")
    return out


def _folder() -> Path:
    """Where decoded images lie; what lies where a release before put it is moved there, or would fill the disk unseen."""
    folder, before = settings().root / "cache" / "images", settings().root / "cache" / "pictures"
    if before.is_dir() and not folder.exists():
        before.rename(folder)
        for file in folder.rglob("*-grey*.npy"):
            file.rename(file.with_name(file.name.replace("-grey", "-gray")))
    return folder

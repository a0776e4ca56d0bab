"""Images that are far from all others, by a model's embeddings, found in a process that ends (token_counting.py says why)."""

from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import current_process
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..core.console import progress
from ..core.errors import TransientError
from ..core.processes import fresh_pool
from ..data import shards
from ..data.describe import end_with_parent
from ..data.images import square

NEAREST = 5  # images that one is compared with: what is alone, and not one of a few that are alike
Located: TypeAlias = tuple[Path, shards.Place]
BATCH, BLOCK = 32, 1024  # images embedded, and compared with all, at a time


def distances_apart(start: str, domain: str, images: Sequence[Located]) -> np.ndarray:
    """As `distances`, in another process unless there may be none. Raises TransientError where it was ended."""
    if current_process().daemon:
        return distances(start, domain, images)
    with fresh_pool(1, end_with_parent) as pool:
        try:
            return pool.submit(distances, start, domain, images).result()
        except BrokenProcessPool:
            raise TransientError("The process that embeds images was ended: is there memory enough?") from None


def distances(start: str, domain: str, images: Sequence[Located]) -> np.ndarray:
    """How far each image is from those most like it (n,): 1 less the mean cosine of `NEAREST` embeddings.

    Args:
        start: the model, as `model.start` names it. images: each by the folder of its shard, and its place there.
    Raises: ClipftError for a model that is not there.
    """
    import torch

    from . import build
    from .layout import prepare_for_inference

    clip = prepare_for_inference(build.load(start, domain=domain), "auto")
    found = []
    with torch.inference_mode():
        for at in progress(range(0, len(images), BATCH), "batches embedded", -(-len(images) // BATCH)):
            opened = [clip.open_image(shards.read(*where)).rgb for where in images[at : at + BATCH]]
            squares = np.stack([square(image, clip.side, clip.aspect) for image in opened])
            embeddings = clip.encode_images(torch.from_numpy(squares)).float()
            found.append(torch.nn.functional.normalize(embeddings, dim=1).cpu().numpy())
    return from_nearest(np.concatenate(found)) if found else np.zeros(0, np.float32)


def from_nearest(embeddings: np.ndarray) -> np.ndarray:
    """The same of embeddings (n, d) of length one."""
    count = min(NEAREST, len(embeddings) - 1)
    out = np.zeros(len(embeddings), np.float32)
    for at in range(0, len(embeddings) if count > 0 else 0, BLOCK):
        alike = embeddings[at : at + BLOCK] @ embeddings.T
        rows = np.arange(len(alike))
        alike[rows, at + rows] = -np.inf  # itself
        out[at : at + BLOCK] = 1 - np.partition(alike, -count, axis=1)[:, -count:].mean(axis=1)
    return out

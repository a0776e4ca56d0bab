"""Heatmaps of images in requests: extra work, so it is counted as such, limited, and done an image at a time.

They come from the torch model, whatever else answers requests, and nothing of them is watched or kept.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from clipft_tasks.contracts.serving import Heatmap
from clipft_tasks.data.images import seen_box, square
from clipft_tasks.model.heatmap import Heat, heatmaps

from .admission import Admission
from .batching import Engine
from .decoding import Decoder
from .errors import NonFiniteOutputError, RequestRejectedError
from .loaded_model import LoadedModel

COST = 2  # forward passes that the heatmaps of one image take, at most

Box = tuple[float, float, float, float]


class Heatmaps:
    """Explains answers of one server process."""

    def __init__(self, admission: Admission, decoder: Decoder, engine: Engine) -> None:
        self.admission, self.decoder, self.engine = admission, decoder, engine

    def check(self, kind: str, count: int) -> None:
        """Raises RequestRejectedError for more images or texts than one request may have explained."""
        most = self.admission.options.max_explained
        if count > most:
            raise RequestRejectedError(413, f"{count:,} {kind} in one request with `explain`, more than {most}.", "too_many")

    async def of(
        self, model: LoadedModel, images: Sequence[bytes], names: Sequence[str], texts: np.ndarray, wanted: list[list[int]]
    ) -> list[list[Heatmap]]:
        """Heatmaps of images, files as they were sent.

        Args:
            names, texts: of texts or classes, and their embeddings (m, d).
            wanted: for each image the numbers of those that it is asked about.
        Raises: RequestRejectedError, QueueFullError, NonFiniteOutputError; ClipftError for a kind of tower that has none.
        """
        self.check("images", len(images))

        def decode(image: bytes) -> tuple[np.ndarray, Box]:
            rgb = model.clip.open_image(image, self.decoder.limits).rgb
            return square(rgb, model.side, model.clip.aspect), seen_box(rgb.size, model.clip.aspect)

        found = []
        with self.admission.working(COST * len(images)):
            decoded = await self.decoder.decode(images, decode)
            for (pixels, box), numbers in zip(decoded, wanted, strict=True):
                work = partial(_heat, model, pixels, texts, numbers)
                grids = await asyncio.wrap_future(self.engine.call(work))
                found.append([_heatmap(names[n], grid, box) for n, grid in zip(numbers, grids, strict=True)])
        return found


def _heat(model: LoadedModel, pixels: np.ndarray, texts: np.ndarray, numbers: list[int]) -> list[Heat]:
    """The heatmaps of one image; in the inference thread."""
    return heatmaps(model.clip, torch.from_numpy(pixels[None]), torch.from_numpy(texts), [numbers])[0]


def _heatmap(name: str, grid: Heat, box: Box) -> Heatmap:
    if not np.isfinite(grid).all():
        raise NonFiniteOutputError(f"The heatmap for {name!r} holds NaN or infinity, so there is no answer.")
    return Heatmap(text=name, grid=[[round(float(x), 3) for x in row] for row in grid], box=box)

"""A start model is written and opened again, and shown an image of every side, before anything trains."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import normalize

from ..core.errors import ClipftError
from ..core.settings import settings
from . import build
from .clip import Clip
from .package import write_model

TOLERANCE = 1e-3  # of unit embeddings: the same weights, another process's arithmetic


def check_reopens(clip: Clip, sides: Sequence[int]) -> None:
    """Raise ClipftError unless the model takes images of all sides, and does so after it was written down and opened again.

    What a run would find out after its training is found out here, in seconds.

    Args:
        sides: that the run trains or is evaluated at, pixels.
    """
    with tempfile.TemporaryDirectory(dir=settings().folder("cache")) as folder:
        write_model(Path(folder), clip)
        again = build.from_folder(Path(folder), source=clip.source)
        for side in sides:
            before, after = _seen(clip, side), _seen(again, side)
            if not torch.allclose(before, after, atol=TOLERANCE):
                why = (
                    f"written down and opened again it gives other embeddings at {side} px ({(before - after).abs().max():.2g})"
                )
                raise ClipftError(f"start model {clip.source}", why, "Start from another model.", code="model.does_not_reopen")


def _seen(clip: Clip, side: int) -> torch.Tensor:
    """The unit embedding of one image, always the same one, on the CPU."""
    image = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side).to(clip.device)
    with torch.inference_mode():
        return normalize(clip.image_features(image).float(), dim=-1).cpu()

"""Recorded answers: a few images, a few texts and what a model said of them. Whoever serves that model must say it again."""

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..contracts.recorded_answers import RecordedAnswers
from ..data.images import open_image, square

if TYPE_CHECKING:  # who only compares answers needs no model
    from .clip import Clip

TOLERANCE = 0.02  # of a cosine: other hardware and lower precision differ by less, another model by more


def record(clip: "Clip", images: np.ndarray, texts: list[str]) -> RecordedAnswers:
    """Ask a model about images, uint8 (n, 3, s, s), and texts; the answers are similarities (n, m)."""
    encoded = []
    for image in images:
        out = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(out, "PNG")
        encoded.append(base64.b64encode(out.getvalue()).decode())
    side = int(images.shape[-1])
    return RecordedAnswers(images=encoded, texts=texts, similarity=answers(clip, images, texts), side=side, tolerance=TOLERANCE)


def images_of(recorded: RecordedAnswers) -> np.ndarray:
    """The images that were asked about, uint8 (n, 3, s, s). They are squares of 8 bits, so no rule of a domain enters."""
    files = [base64.b64decode(image) for image in recorded.images]
    return np.stack([square(open_image(file, gray_bits=8).rgb, recorded.side) for file in files])


def answers(clip: "Clip", images: np.ndarray, texts: list[str]) -> list[list[float]]:
    import torch

    with torch.inference_mode():
        features = clip.encode_images(torch.from_numpy(np.ascontiguousarray(images)))
        found: list[list[float]] = clip.similarity(features, clip.encode_texts(texts)).cpu().double().numpy().round(6).tolist()
        return found


def disagreement(recorded: RecordedAnswers, given: list[list[float]]) -> float:
    """The largest difference between recorded and given answers; infinity when their shapes differ or one is not a number."""
    expected, found = np.array(recorded.similarity), np.array(given)
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(expected - found).max())

"""Probe pairs: a few images, a few texts and the answers a model gave. Whoever serves that model must give them again."""

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # who only compares answers needs no model
    from .clip import Clip

TOLERANCE = 0.02  # of a cosine: other hardware and lower precision differ by less, another model by more


def record(clip: "Clip", images: np.ndarray, texts: list[str]) -> dict[str, Any]:
    """Ask a model about images, uint8 (n, 3, s, s), and texts; the answers are cosines (n, m)."""
    encoded = []
    for image in images:
        out = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(out, "PNG")
        encoded.append(base64.b64encode(out.getvalue()).decode())
    return {
        "images": encoded,
        "texts": texts,
        "similarity": answers(clip, images, texts),
        "side": int(images.shape[-1]),
        "tolerance": TOLERANCE,
    }


def answers(clip: "Clip", images: np.ndarray, texts: list[str]) -> list[list[float]]:
    import torch

    with torch.inference_mode():
        features = clip.encode_images(torch.from_numpy(np.ascontiguousarray(images)))
        return clip.similarity(features, clip.encode_texts(texts)).cpu().double().numpy().round(6).tolist()


def disagreement(recorded: dict[str, Any], given: list[list[float]]) -> float:
    """The largest difference between recorded and given answers; infinity when their shapes differ or one is not a number."""
    expected, found = np.array(recorded["similarity"]), np.array(given)
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(expected - found).max())

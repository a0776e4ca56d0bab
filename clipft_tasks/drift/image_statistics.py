"""What an image looks like before any model sees it: a few numbers that cameras, lights and exports change."""

import math

import numpy as np
from PIL import Image

STATISTICS = ("brightness", "contrast", "sharpness", "side", "aspect")
CROP = 384  # pixels of the center that are looked at, so that a huge image costs no more than a small one
LEVELS = np.arange(256) / 255  # of a gray pixel


def appearance(rgb: Image.Image) -> np.ndarray:
    """The STATISTICS of an image, fp32 (5,).

    Brightness and contrast are mean and standard deviation of the luminance (0 to 1); sharpness is the mean size of its
    Laplacian, beside contrast, as log2; side is log2 of the shorter side in pixels; aspect is log2 of width over height.
    """
    width, height = rgb.size
    left, top = max(0, (width - CROP) // 2), max(0, (height - CROP) // 2)
    center = rgb.crop((left, top, min(width, left + CROP), min(height, top + CROP))) if max(rgb.size) > CROP else rgb
    gray = center.convert("L")
    counts = np.array(gray.histogram(), dtype=np.float64)  # exact, and cheaper than two passes over the pixels
    brightness = float(counts @ LEVELS / counts.sum())
    contrast = math.sqrt(counts @ (LEVELS - brightness) ** 2 / counts.sum())
    light = np.asarray(gray).astype(np.int16)
    edges = 4 * light[1:-1, 1:-1]
    if edges.size:
        for beside in (light[:-2, 1:-1], light[2:, 1:-1], light[1:-1, :-2], light[1:-1, 2:]):
            edges -= beside
    detail = float(np.abs(edges).sum(dtype=np.int64)) / 255 / edges.size if edges.size else 0.0
    sharpness = math.log2((detail + 1e-4) / (contrast + 1e-4))
    return np.array(
        [brightness, contrast, sharpness, math.log2(min(width, height)), math.log2(width / height)], dtype=np.float32
    )

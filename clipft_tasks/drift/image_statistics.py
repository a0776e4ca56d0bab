"""Image statistics: a few numbers of what an image looks like before any model sees it, which cameras, lights and exports change."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

CROP = 384  # pixels of the center that are looked at, so that a huge image costs no more than a small one
LEVELS = np.arange(256) / 255  # of a gray pixel


@dataclass(frozen=True)
class ImageStatistic:
    """One number of an image.

    Attributes:
        description: what it is of images.
        prometheus: name of its histogram after `clipft_image_`, "" for none, and help, its text.
        buckets: of the histogram. log2: whether the histogram shows 2 to the power of it.
    """

    name: str
    description: str
    prometheus: str = ""
    help: str = ""
    buckets: tuple[float, ...] = ()
    log2: bool = False


IMAGE_STATISTICS = (
    ImageStatistic(
        "brightness",
        "mean luminance of images",
        "brightness_ratio",
        "Mean luminance of images; 1 is white.",
        tuple(x / 10 for x in range(1, 10)),
    ),
    ImageStatistic(
        "contrast",
        "standard deviation of their luminance",
        "contrast_ratio",
        "Standard deviation of their luminance.",
        (0.02, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4),
    ),
    ImageStatistic(
        "sharpness",
        "their detail for their contrast",
        "sharpness",
        "Their detail for their contrast, as log2.",
        (-4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 2),
    ),
    ImageStatistic(
        "side",
        "their size in pixels",
        "side_pixels",
        "Their shorter side.",
        (64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096),
        log2=True,
    ),
    ImageStatistic("aspect", "width over height"),
)
STATISTICS = tuple(statistic.name for statistic in IMAGE_STATISTICS)


def appearance(rgb: Image.Image) -> np.ndarray:
    """The STATISTICS of an image, fp32 (5,).

    Brightness and contrast are mean and standard deviation of the luminance (0 to 1); sharpness is the mean size of its
    Laplacian over the contrast, as log2; side is log2 of the shorter side in pixels; aspect is log2 of width over height.
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
        for neighbor in (light[:-2, 1:-1], light[2:, 1:-1], light[1:-1, :-2], light[1:-1, 2:]):
            edges -= neighbor
    detail = float(np.abs(edges).sum(dtype=np.int64)) / 255 / edges.size if edges.size else 0.0
    sharpness = math.log2((detail + 1e-4) / (contrast + 1e-4))
    return np.array(
        [brightness, contrast, sharpness, math.log2(min(width, height)), math.log2(width / height)], dtype=np.float32
    )

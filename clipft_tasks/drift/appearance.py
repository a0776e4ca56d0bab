"""What a picture looks like before any model sees it: a few numbers that cameras, lights and exports change."""

import numpy as np
from PIL import Image

STATISTICS = ("brightness", "contrast", "sharpness", "side", "aspect")
CROP = 384  # pixels of the centre that are looked at, so that a huge picture costs no more than a small one


def appearance(rgb: Image.Image) -> np.ndarray:
    """The STATISTICS of a picture, fp32 (5,).

    Brightness and contrast are mean and standard deviation of the luminance (0 to 1); sharpness is the mean size of its
    Laplacian, beside contrast, as log2; side is log2 of the shorter side in pixels; aspect is log2 of width over height.
    """
    width, height = rgb.size
    left, top = max(0, (width - CROP) // 2), max(0, (height - CROP) // 2)
    grey = rgb.crop((left, top, min(width, left + CROP), min(height, top + CROP))).convert("L")
    light = np.asarray(grey, dtype=np.float32) / 255
    contrast = float(light.std())
    inner = light[1:-1, 1:-1]
    edges = (
        4 * inner - light[:-2, 1:-1] - light[2:, 1:-1] - light[1:-1, :-2] - light[1:-1, 2:] if min(light.shape) > 2 else inner
    )
    detail = float(np.abs(edges).mean()) if edges.size else 0.0
    sharpness = np.log2((detail + 1e-4) / (contrast + 1e-4))
    return np.array([light.mean(), contrast, sharpness, np.log2(min(width, height)), np.log2(width / height)], dtype=np.float32)

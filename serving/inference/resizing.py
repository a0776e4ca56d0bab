"""Images resized by torch, which has vector instructions for it: in a quarter of Pillow's time, to pixels that hardly differ. What trains
and evaluates keeps Pillow's own, as open_clip does."""

import numpy as np
import torch
from PIL import Image

from clipft_tasks.data import images

MOST = 4_000_000  # pixels; torch wants a copy of them all
DISTORTED = 0.02  # beyond it, torch resizes width and height in the other order, and pixels differ by tens of levels
HAS_VECTORS = torch.backends.cpu.get_cpu_capability().startswith("AVX")  # elsewhere torch is no quicker


def resized(rgb: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image at a width and height, as `clipft_tasks.data.images.resized`."""
    across, down = size[0] / rgb.width, size[1] / rgb.height
    if not HAS_VECTORS or rgb.width * rgb.height > MOST or abs(across / down - 1) > DISTORTED:
        return images.resized(rgb, size)
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None]
    out = torch.nn.functional.interpolate(pixels, size[::-1], mode="bicubic", antialias=True)
    return Image.fromarray(out[0].permute(1, 2, 0).numpy())

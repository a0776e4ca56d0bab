"""The server's quick resizing gives Pillow's pixels, to within two levels."""

import numpy as np
import pytest
from PIL import Image

from clipft_tasks.data.images import square
from serving.inference import resizing

SIZES = [
    (640, 480),
    (480, 640),
    (333, 500),
    (230, 240),
    (224, 224),
    (300, 300),
    (100, 37),
    (17, 400),
    (1, 1),
    (1500, 1000),
    (9, 8),
]


@pytest.mark.parametrize("aspect", ["crop", "pad", "squeeze"])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_pixels_are_pillows_to_within_two_levels(size, aspect):
    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    for image in (Image.fromarray(noise), Image.fromarray(np.where(noise > 127, np.uint8(255), np.uint8(0)))):
        for side in (32, 128, 224):
            quick, exact = square(image, side, aspect, resizing.resized), square(image, side, aspect)
            off = np.abs(quick.astype(int) - exact)
            assert quick.shape == exact.shape and quick.dtype == np.uint8 and quick.flags.c_contiguous
            assert off.max() <= 2 and (off > 0).mean() < 0.02


def test_an_image_whose_proportions_stay_is_resized_by_torch_and_others_by_pillow(monkeypatch: pytest.MonkeyPatch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8))
    monkeypatch.setattr(resizing, "HAS_VECTORS", True)
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resizing.images, "resized", lambda rgb, size: asked.append(size) or rgb.resize(size))
    square(image, 64, "crop", resizing.resized)
    assert not asked
    square(image, 64, "squeeze", resizing.resized)
    monkeypatch.setattr(resizing, "MOST", 1000)
    square(image, 64, "crop", resizing.resized)
    monkeypatch.setattr(resizing, "HAS_VECTORS", False)
    square(image, 32, "crop", resizing.resized)
    assert asked == [(64, 64), (85, 64), (42, 32)]

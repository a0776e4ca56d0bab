"""Common corruptions at five severities, after Hendrycks & Dietterich 2019 (https://arxiv.org/abs/1903.12261).

Their parameters for noise (Gaussian), blur (Gaussian), brightness, contrast, jpeg and pixelate; lengths in pixels are theirs
at 224 and scale with the side. Rotation, by 5 to 30 degrees, is added: it is what a hand or a mounting does. A corruption of
an image depends on its row's key and on nothing else, so every model sees the same pixels, today and next year.
"""

import hashlib
import io

import numpy as np
from PIL import Image, ImageFilter

SEVERITIES = 5
SIDE = 224  # of the images that the parameters are for

NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, of the full range
BLUR = (1, 2, 3, 4, 6)  # standard deviation in pixels
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to the value (HSV)
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # of the distance from the image's mean that is left
JPEG = (25, 18, 15, 10, 7)  # quality
PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)  # of the side that is left
ROTATION = (5, 10, 15, 20, 30)  # degrees, either way


def corrupt(image: np.ndarray, name: str, severity: int, key: str) -> np.ndarray:
    """A corrupted copy of an image.

    Args:
        image: uint8 (3, side, side).
        name: of the corruption, one of `domains.base.CORRUPTIONS`.
        severity: 1 to 5.
        key: of the row.
    """
    return _MENU[name](image, severity - 1, key)


def _noise(image: np.ndarray, level: int, key: str) -> np.ndarray:
    noise = _random(key, "noise").normal(scale=NOISE[level] * 255, size=image.shape)
    return _rounded(image + noise)


def _blur(image: np.ndarray, level: int, key: str) -> np.ndarray:
    return _array(_pil(image).filter(ImageFilter.GaussianBlur(BLUR[level] * image.shape[-1] / SIDE)))


def _brightness(image: np.ndarray, level: int, key: str) -> np.ndarray:
    # Adding to the value in HSV, with hue and saturation kept, scales all three colors alike.
    value = image.max(axis=0).astype(float)
    brighter = np.minimum(value + BRIGHTNESS[level] * 255, 255)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(value > 0, image * (brighter / value), brighter)
    return _rounded(scaled)


def _contrast(image: np.ndarray, level: int, key: str) -> np.ndarray:
    mean = image.mean(axis=(1, 2), keepdims=True)
    return _rounded((image - mean) * CONTRAST[level] + mean)


def _jpeg(image: np.ndarray, level: int, key: str) -> np.ndarray:
    out = io.BytesIO()
    _pil(image).save(out, "JPEG", quality=JPEG[level])
    return _array(Image.open(out).convert("RGB"))


def _pixelate(image: np.ndarray, level: int, key: str) -> np.ndarray:
    pil = _pil(image)
    small = max(1, int(pil.width * PIXELATE[level]))
    return _array(pil.resize((small, small), Image.Resampling.BOX).resize(pil.size, Image.Resampling.BOX))


def _rotation(image: np.ndarray, level: int, key: str) -> np.ndarray:
    """What lies outside is mirrored in, so that no black corners tell the model what happened."""
    side, turn = image.shape[-1], ROTATION[level] * _random(key, "rotation").choice((-1, 1))
    margin = side // 4
    wide = np.pad(image, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
    turned = _pil(wide).rotate(turn, Image.Resampling.BICUBIC)
    return _array(turned.crop((margin, margin, margin + side, margin + side)))


_MENU = {
    "noise": _noise,
    "blur": _blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
    "rotation": _rotation,
}


def _rounded(image: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = image.round().clip(0, 255).astype(np.uint8)
    return rounded


def _random(key: str, name: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{name} {key}".encode()).digest()[:8]))


def _pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def _array(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

"""Images: opened under limits, described, and turned into squares. The one place where untrusted bytes are decoded."""

import base64
import io
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, features

from . import jpeg2000, tiff
from .image_costs import too_costly
from .metadata import without_text

Aspect = Literal["crop", "pad", "squeeze"]
RESIZE_MODES: dict[str, Aspect] = {"shortest": "crop", "longest": "pad", "squash": "squeeze"}  # open_clip's words
ROWS_PIXELS = 2**20  # that are converted at a time where that takes more than the image itself
# As Pillow names them, with the endings of their files. HEIF needs pillow-heif; planar and deep color TIFF needs tifffile.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
if features.check("jpg_2000"):
    FORMATS["JPEG2000"] = (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc")
if features.check("avif"):
    FORMATS["AVIF"] = (".avif",)
try:
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener(thumbnails=False)
    FORMATS["HEIF"] = (".heic", ".heif", ".hif")
# Pillow warns of each odd entry of a file, of which it may have 60,000, and Python remembers each warning for good.
logging.getLogger("PIL").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"PIL\.")
ENDINGS = {ending: name for name, endings in FORMATS.items() for ending in endings}


class BadImageError(ValueError):
    """The bytes are not an image that we take; the message is the reason, fit for a person.

    Args:
        kind: of reason, for counting: words that name no file.
    """

    def __init__(self, reason: str, kind: str = "other reasons") -> None:
        super().__init__(reason)
        self.kind = kind

    def __reduce__(self) -> tuple[type["BadImageError"], tuple[str, str]]:
        return BadImageError, (str(self), self.kind)  # across processes


@dataclass(frozen=True)
class Limits:
    """What is refused before any pixel is decoded."""

    bytes: int = 32 * 2**20
    pixels: int = 50_000_000
    aspect: int = 50  # squaring enlarges the short side: a thread of an image would fill the memory


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image: RGB pixels plus what the file said it was."""

    rgb: Image.Image
    width: int
    height: int
    mode: str
    format: str


def open_image(data: bytes, limits: Limits = Limits(), draft: int = 0, *, gray_bits: int) -> DecodedImage:
    """Decode an image completely: the one place where bytes become pixels.

    Args:
        draft: JPEG may be decoded at a half, quarter or eighth of its size that is still at least this many pixels; 0 never.
        gray_bits: how gray deeper than 8 bits is read, see `deep_gray`. A model's own rule where the image is for a model
            (`Clip.open_image`), the domain's where it is for a person or a new data set.
    Raises:
        BadImageError: empty, too large, not a known format, cut short, or broken inside.
    """
    if not data:
        raise BadImageError("the file is empty (0 bytes)", "empty")
    if len(data) > limits.bytes:
        raise BadImageError(f"{len(data):,} bytes, more than the limit of {limits.bytes:,}", "too large")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is stricter
            image = _opened(data, limits)
        width, height = image.size
        check_size(width, height, limits)
        if why := too_costly(image, data):
            raise BadImageError(f"it has {why}", "too many parts")
        described = (image.mode, _format(image))
        if draft:
            image.draft(None, (draft, draft))
        image.load()
        rgb = _rgb(_upright(jpeg2000.as_stored(image, data)), gray_bits)
    except BadImageError:
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError(f"more pixels than the limit of {limits.pixels:,}", "too many pixels") from error
    except Image.UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise BadImageError(f"not an image in a known format ({known}){_in_place(data)}", "unknown format") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ... for one thing: broken bytes
        raise BadImageError(f"cut short or broken: {error}", "cut short or broken") from error
    return DecodedImage(rgb, width, height, *described)


MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")
# What lies under an image's name in place of it, by how it begins.
IN_PLACE = {
    b"version https://git-lfs": "a pointer of Git LFS; run `git lfs pull`",
    b"<!doctype html": "a web page", b"<html": "a web page", b"<?xml": "XML", b"%pdf": "a PDF", b"pk\3\4": "a zip archive",
    b"{\"": "JSON",
}  # fmt: skip


def begins_like_an_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(MAGIC) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def _in_place(data: bytes) -> str:
    head = data[:64].lstrip().lower()
    return next((f"; it is {what}" for start, what in IN_PLACE.items() if head.startswith(start)), "")


def check_size(width: int, height: int, limits: Limits = Limits()) -> None:
    """Raises BadImageError for more pixels than the limits allow, or a thread of an image."""
    if width * height > limits.pixels:
        raise BadImageError(f"{width}x{height} pixels, more than the limit of {limits.pixels:,}", "too many pixels")
    if max(width, height) > limits.aspect * min(width, height):
        raise BadImageError(f"{width}x{height} pixels, one side more than {limits.aspect} times the other", "too long and thin")


class FewReads(io.BytesIO):
    """A file that may be read so many times: Pillow reads a file's parts one by one, and a few megabytes may have a million of them."""

    left = 100_000

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise BadImageError("it has too many parts", "cut short or broken")
        return super().read(size)


def _opened(data: bytes, limits: Limits) -> Image.Image:
    try:
        image = Image.open(FewReads(without_text(data)), formats=list(FORMATS))
    except Image.UnidentifiedImageError:
        if data[:4] not in tiff.MAGIC:
            raise
    else:
        if not (image.format == "TIFF" and tiff.beyond_pillow(image)):
            return image
    return tiff.decode(data, lambda width, height: check_size(width, height, limits))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken Exif is no reason to refuse pixels
        return image


def _format(image: Image.Image) -> str:
    """A photo of two frames (MPO, as phones write) is a JPEG to whoever wants one image."""
    return {"MPO": "JPEG", None: "TIFF"}.get(image.format, image.format or "")


def deep_gray(values: np.ndarray, bits: int) -> np.ndarray:
    """Gray values of any depth as uint8; a plain conversion would clip everything above 255 to white.

    Args:
        values: integers or floating-point numbers, any shape.
        bits: white is 2**bits - 1, the same for every image, so that intensities stay comparable; 0 spreads the image's own
            range, from its 0.1% to its 99.9% percentile. Percentiles rather than least and most, because one hot pixel or
            burnt-in marker would else take the range; an image that is nearly all one value spans least to most after all.
            They are values of the image, not between them: the result is the same on every machine.
    """
    if bits:
        return _by_rows(values, lambda rows: np.floor(rows / 2.0 ** (bits - 8)).clip(0, 255))
    low, high = float(np.percentile(values, 0.1, method="lower")), float(np.percentile(values, 99.9, method="higher"))
    if low == high:
        low, high = float(values.min()), float(values.max())
    span = max(high - low, float(np.finfo(np.float64).tiny))
    return _by_rows(values, lambda rows: ((rows - low) / span * 255).round().clip(0, 255))


def _by_rows(values: np.ndarray, scale: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What `scale` makes of float64 values, as uint8; a few rows at a time, or a large image would take eight times its pixels."""
    out = np.empty(values.shape, np.uint8)
    rows = max(1, ROWS_PIXELS // max(1, math.prod(values.shape[1:])))
    for start in range(0, len(values), rows):
        out[start : start + rows] = scale(values[start : start + rows].astype(np.float64))
    return out


def _rgb(image: Image.Image, gray_bits: int) -> Image.Image:
    if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
        raise BadImageError("it has pixels that are no numbers", "pixels that are no numbers")
    if gray_bits and image.mode == "F":
        raise BadImageError(
            "floating-point gray has no white of its own; write integers, or use a domain with gray_bits=0, where each image "
            "spans its own range",
            "floating-point gray",
        )
    if gray_bits and image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 2**16:
            said = f"its gray values span {values.min()} to {values.max()}, beyond 16 bits; use a domain with gray_bits=0"
            raise BadImageError(said, "gray beyond 16 bits")
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(deep_gray(np.asarray(image), gray_bits)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """A transparent image over white; a few rows at a time, or a large one would be there four times."""
    out = Image.new("RGB", image.size)
    rows = max(1, ROWS_PIXELS // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(image.height, top + rows))).convert("RGBA")
        white = Image.new("RGBA", part.size, (255, 255, 255, 255))
        out.paste(Image.alpha_composite(white, part).convert("RGB"), (0, top))
    return out


def resized(rgb: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at a width and height: bicubic, as Pillow computes it."""
    return rgb.resize(size, Image.Resampling.BICUBIC)


def square(
    rgb: Image.Image,
    side: int,
    aspect: Aspect = "crop",
    resize: Callable[[Image.Image, tuple[int, int]], Image.Image] = resized,
) -> np.ndarray:
    """The image as a square, uint8 (3, side, side).

    The same pixels as open_clip's evaluation transform at that size (a parity test holds it to that).

    Args:
        aspect: `crop` keeps the center, `pad` keeps everything and fills with black, `squeeze` keeps everything and distorts.
        resize: gives the image at a width and height.
    """
    width, height = rgb.size
    if aspect == "squeeze":
        size = (side, side)
    elif (width <= height) == (aspect == "crop"):
        size = (side, int(side * height / width)) if aspect == "crop" else (side, max(1, round(side * height / width)))
    else:
        size = (int(side * width / height), side) if aspect == "crop" else (max(1, round(side * width / height)), side)
    if size != rgb.size:
        rgb = resize(rgb, size)
    left, top = (_margin(length, side) for length in rgb.size)
    return np.ascontiguousarray(np.asarray(rgb.crop((left, top, left + side, top + side))).transpose(2, 0, 1))


def seen_box(size: tuple[int, int], aspect: Aspect) -> tuple[float, float, float, float]:
    """Which part of an image its square shows: left, top, right and bottom as shares of its width and height. Of a padded image the
    square shows more than there is: less than 0, and more than 1."""
    if aspect == "squeeze":
        return 0.0, 0.0, 1.0, 1.0
    shown = min(size) if aspect == "crop" else max(size)
    across, down = ((1 - shown / length) / 2 for length in size)
    return across, down, 1 - across, 1 - down


def _margin(length: int, side: int) -> int:
    """Where a centered window of `side` begins; before the image, when that is smaller. As open_clip rounds."""
    return round((length - side) / 2.0) if length >= side else -((side - length) // 2)


def thumbnail(rgb: Image.Image, side: int) -> str:
    """A small copy as a page holds it: a JPEG of at most `side` pixels either way, in a data URL."""
    small = rgb.copy()
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def perceptual_hash(rgb: Image.Image) -> bytes:
    """256-bit DCT hash (32 bytes): images that look alike differ in few bits."""
    import imagehash

    return np.packbits(imagehash.phash(rgb, hash_size=16).hash).tobytes()

"""TIFF files with more than Pillow reads: planar and 16-bit color, stacks of pages, OME-TIFF. By tifffile, of the extra `data`."""

import io
import logging
from collections.abc import Callable

import numpy as np
from PIL import Image

from .image_costs import PAGES, SAMPLES, pages_of, tile_too_large

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it has lines for each page that lacks something
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def count(data: bytes) -> int:
    """How many pages of one size its first series holds; 1 where that cannot be told."""
    try:
        import tifffile

        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return max(1, len(file.series[0].pages))
    except Exception:  # decoding it is what refuses it
        return 1


def beyond_pillow(image: Image.Image) -> bool:
    """Whether Pillow opened a TIFF that it decodes wrongly: planar color of more than 8 bits."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(284) == 2 and max(tags.get(258, (8,))) > 8


def decode(data: bytes, check: Callable[[int, int], None], index: int = 0) -> Image.Image:
    """A page of the first series, by tifffile.

    Args:
        check: takes width and height, before any pixel is decoded.
    Raises: UnidentifiedImageError, ValueError for more than is taken in, or whatever tifffile raises for broken bytes.
    """
    if pages_of(data) > PAGES:
        raise ValueError(f"more than {PAGES:,} pages")
    try:
        import tifffile
    except ImportError:
        raise Image.UnidentifiedImageError("tifffile is not installed") from None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.series[0].pages[index]
        if page is None:
            raise Image.UnidentifiedImageError("the page is missing")
        keyframe = page.keyframe
        if keyframe is None:
            raise Image.UnidentifiedImageError("the page says nothing of its size")
        check(keyframe.imagewidth, keyframe.imagelength)
        if keyframe.samplesperpixel * keyframe.imagedepth > SAMPLES:
            raise ValueError(
                f"{keyframe.samplesperpixel * keyframe.imagedepth:,} samples a pixel: which of them are the colors cannot be told"
            )
        if why := tile_too_large(keyframe.tilewidth, keyframe.tilelength, keyframe.imagewidth * keyframe.imagelength):
            raise ValueError(why)
        return _image(np.squeeze(page.asarray()), keyframe)


def page_bytes(data: bytes, index: int, check: Callable[[int, int], None]) -> bytes:
    """A page of the first series as a file of its own; the first one's is the file as it is."""
    if not index:
        return data
    try:
        import tifffile

        with tifffile.TiffFile(io.BytesIO(data)) as file:
            chosen = file.series[0].pages[index]
            place = index if chosen is None else chosen.index
        image: Image.Image = Image.open(io.BytesIO(data), formats=["TIFF"])
        image.seek(place)
        check(*image.size)
        image.load()
    except (Image.UnidentifiedImageError, EOFError):
        image = decode(data, check, index)
    out = io.BytesIO()
    image.copy().save(out, "TIFF" if image.mode == "F" else "PNG")
    return out.getvalue()


def _image(values: np.ndarray, keyframe: object) -> Image.Image:
    if values.ndim == 3 and values.shape[0] in (3, 4) and values.shape[2] not in (3, 4):  # planar
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise ValueError(f"{values.shape} samples: which of them are the colors cannot be told")
    if values.ndim == 3:
        if values.dtype.kind not in "ui":
            raise ValueError(f"colors of type {values.dtype} have no white of their own")
        deep = values.dtype.itemsize * 8 - 8
        return Image.fromarray(np.ascontiguousarray(values >> deep).astype(np.uint8))
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    if getattr(keyframe, "photometric", None) == 0 and values.dtype.kind == "u":  # white is zero
        values = np.iinfo(values.dtype).max - values
    if values.dtype in (np.uint8, np.uint16):
        return Image.fromarray(np.ascontiguousarray(values))
    return Image.fromarray(values.astype(np.int32 if values.dtype.kind in "ui" else np.float32))

"""JPEG of more than 8 bits a sample, and lossless JPEG, which Pillow does not read. By imagecodecs, of the extra `codecs`.

Such an image goes on as PNG: whoever reads it later needs nothing but Pillow.
"""

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .images import BadImageError, check_size

FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a frame: start of baseline, extended, progressive, lossless
LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}


@dataclass(frozen=True)
class Header:
    """What a JPEG says of its frame."""

    marker: int
    bits: int
    width: int
    height: int


def header_of(data: bytes) -> Header | None:
    """None where it is no JPEG, or says nothing of the kind before it is cut short."""
    if data[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        if marker in FRAMES:
            bits, height, width = struct.unpack_from(">BHH", data, place + 4)
            return Header(marker, bits, width, height)
        if marker == 0xDA:
            return None
        place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    return None


def is_deep(data: bytes) -> bool:
    """Whether it is a JPEG that Pillow does not read."""
    header = header_of(data)
    return header is not None and (header.bits != 8 or header.marker in LOSSLESS)


def decode(data: bytes) -> np.ndarray:
    """(height, width) or (height, width, 3), uint8 or uint16, values as they are coded. Raises BadImageError."""
    try:
        import imagecodecs
    except ImportError:
        why = "it is a JPEG of more than 8 bits, which needs imagecodecs: install `clipft[codecs]`"
        raise BadImageError(why, "unknown coding") from None
    if (header := header_of(data)) is not None:
        check_size(header.width, header.height)
    try:
        return np.asarray(imagecodecs.jpeg_decode(data))
    except Exception as error:  # of libjpeg, in the library's own words
        raise BadImageError(f"cut short or broken: {error}", "cut short or broken") from error


def as_png(data: bytes) -> bytes:
    """Its pixels as PNG: 16-bit gray, or color of 8 bits. Raises BadImageError."""
    values, header = decode(data), header_of(data)
    if values.ndim == 3 and values.dtype != np.uint8:
        values = (values >> ((header.bits if header else 12) - 8)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()

"""What an image file may cost beside its pixels, told from its head: scans, tiles and pages that its size in pixels says nothing of."""

import re
import struct
from contextlib import suppress

from PIL import Image

from .jpeg2000 import CODESTREAM
from .metadata import MARKER

SCANS = 100  # of a JPEG; each is a pass over the whole image, and progressive files have about ten
TILES = 8192  # of a JPEG 2000; each is kept in 10 kB before any is decoded
PAGES = 10_000  # of a TIFF; all are read before one is decoded
TILE_PIXELS = 2**22  # of a TIFF's tile, which is decoded whole however little of it the image shows
SAMPLES = 4  # of a pixel
SOI, EOI, SOS = 0xD8, 0xD9, 0xDA


def too_costly(image: Image.Image, data: bytes) -> str:
    """Why a file that Pillow opened is not to be decoded; "" for none."""
    if image.format in ("JPEG", "MPO"):
        return f"more than {SCANS} scans" if _scans(data) > SCANS else ""
    if image.format == "JPEG2000":
        return (
            f"more than {TILES:,} tiles"
            if any(_tiles(data, at.end()) > TILES for at in re.finditer(re.escape(CODESTREAM), data))
            else ""
        )
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        return tile_too_large(int(tags.get(322, 0)), int(tags.get(323, 0)), image.width * image.height)
    return ""


def tile_too_large(width: int, height: int, pixels: int) -> str:
    """Why tiles of this size are not to be decoded for an image of so many pixels; "" for none."""
    return f"tiles of {width}x{height} pixels" if width * height > max(TILE_PIXELS, 2 * pixels) else ""


def pages_of(tiff: bytes) -> int:
    """How many pages a TIFF has, at most `PAGES` + 1; where the chain of them breaks off, those before."""
    order = "<" if tiff[:2] == b"II" else ">"
    is_big = tiff[2:4] in (b"+\0", b"\0+")
    count, entry, word = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    pages = 0
    with suppress(struct.error):
        (place,) = struct.unpack_from(order + word, tiff, 8 if is_big else 4)
        while place and pages <= PAGES:
            (entries,) = struct.unpack_from(order + count, tiff, place)
            pages += 1
            (place,) = struct.unpack_from(order + word, tiff, place + struct.calcsize("=" + count) + entries * entry)
    return pages


def _scans(jpeg: bytes) -> int:
    """Scans of a JPEG's first image, at most one more than `SCANS`."""
    scans, place = 0, 2
    while scans <= SCANS and (found := MARKER.search(jpeg, place)):
        marker, place = jpeg[found.end() - 1], found.end()
        if marker == EOI:
            break
        if marker not in (1, SOI) and place + 2 <= len(jpeg):
            place += struct.unpack_from(">H", jpeg, place)[0]
            scans += marker == SOS
    return scans


def _tiles(data: bytes, place: int) -> int:
    """Tiles that the size segment of a codestream says there are; `place`: after its marker."""
    if place + 36 > len(data):
        return 0
    across, down, _, _, width, height, left, top = struct.unpack_from(">8I", data, place + 4)
    if not width or not height:
        return 0
    tiles: int = -(-max(0, across - left) // width) * -(-max(0, down - top) // height)
    return tiles

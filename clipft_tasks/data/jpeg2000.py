"""JPEG 2000 files, which Pillow decodes: their gray as it is stored, and what they say beside the pixels."""

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

FILE, CODESTREAM = b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
KEPT = (b"jP  ", b"ftyp", b"jp2h", b"jp2c")  # boxes that pixels need; of the others XML and UUID hold places, times and names
COMMENT, TILE = 0xFF64, 0xFF90


def is_one(data: bytes) -> bool:
    return data.startswith((FILE, CODESTREAM))


def as_stored(image: Image.Image, data: bytes) -> Image.Image:
    """A decoded image with the values that the file holds: Pillow spreads gray of 9 to 15 bits over 16."""
    if image.format != "JPEG2000" or not image.mode.startswith("I;16"):
        return image
    begin = data.find(CODESTREAM)
    bits = (data[begin + 42] & 0x7F) + 1 if begin >= 0 and begin + 42 < len(data) else 16
    if not 8 < bits < 16:
        return image
    return Image.fromarray(np.asarray(image) >> (16 - bits))


def without_notes(data: bytes) -> Iterator[bytes]:
    """The file's parts but for boxes of metadata and comments of the codestream; a part that cannot be told stays."""
    if data.startswith(CODESTREAM):
        yield from _codestream(data)
        return
    place = 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        head = 8
        if length == 1:
            length, head = struct.unpack_from(">Q", data, place + 8)[0], 16
        if length < head or place + length > len(data):
            if length and length < head:
                break
            length = len(data) - place  # zero: to the end of the file; else it is cut short
        end = place + length
        if kind == b"jp2c":
            body = b"".join(_codestream(data[place + head : end]))
            size = 8 + len(body)
            yield data[place:end] if len(body) == length - head else struct.pack(">I4s", size, kind) + body
        elif kind in KEPT:
            yield data[place:end]
        place = end
    yield data[place:]


def _codestream(data: bytes) -> Iterator[bytes]:
    """Without the comments of its main header."""
    yield data[:2]
    place = 2
    while place + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, place)
        if marker == TILE or marker < 0xFF00:
            break
        if marker != COMMENT:
            yield data[place : place + 2 + length]
        place += 2 + length
    yield data[place:]

"""Image files made to cost more than they show: each is opened, or refused as an image, in moments and in little memory."""

import io
import resource
import struct
import sys
import time
import zlib

import pytest
from PIL import Image

from clipft_tasks.data.images import BadImageError, Limits, open_image
from serving.inference.decoding import _pixels_of

LIMITS = Limits(bytes=16 * 2**20, pixels=25_000_000)
SMALL = Image.new("RGB", (32, 32))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, more: bytes = b"", pixels: bytes | None = None) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (width + 1) * height) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(kind: str, frames: int = 0) -> bytes:
    out = io.BytesIO()
    more = [Image.new("RGB", (32, 32), (n % 256, 0, 0)) for n in range(frames)]
    SMALL.save(out, kind, **({"save_all": True, "append_images": more} if frames else {}))
    return out.getvalue()


def looped(tiff: bytes) -> bytes:
    """The first directory names itself as the next one."""
    at = struct.unpack_from("<I", tiff, 4)[0]
    end = at + 2 + 12 * struct.unpack_from("<H", tiff, at)[0]
    return tiff[:end] + tiff[4:8] + tiff[end + 4 :]


def cases() -> dict[str, bytes]:
    bomb = zlib.compress(b"\0" * 100_000_000)
    gif = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + b"\0" * 6
    large_frame = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\x00;"
    jpeg = saved("JPEG")
    return {
        "60,000 x 60,000 of nothing": png(60_000, 60_000, pixels=zlib.compress(b"\0" * 1000)),
        "a text of 100 MB": png(8, 8, chunk(b"zTXt", b"k\0\0" + bomb)),
        "a color profile of 100 MB": png(8, 8, chunk(b"iCCP", b"k\0\0" + bomb)),
        "rows of 100 MB": png(8, 8, pixels=bomb),
        "400,000 chunks": png(8, 8, chunk(b"abCd", b"") * 400_000),
        "400,000 comments": jpeg[:2] + b"\xff\xfe\0\2" * 400_000 + jpeg[2:],
        "2,000,000 blocks of a comment": gif + b"!\xfe" + b"\1a" * 2_000_000 + b"\0" + saved("GIF")[13:],
        "a frame larger than its image": gif + large_frame,
        "a directory that names itself": looped(saved("TIFF")),
        "500 pages": saved("TIFF", 500),
        "500 frames": saved("GIF", 500),
        "200 frames of WebP": saved("WEBP", 200),
        "a drawing": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1/'/></svg>",
    }


CASES = cases()


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_costs_more_than_it_shows(case):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    _pixels_of(CASES[case])
    try:
        opened = open_image(CASES[case], LIMITS, gray_bits=0)
        assert max(opened.rgb.size) <= 32
    except BadImageError as error:
        assert len(str(error)) < 200
    assert time.thread_time() - began < 2
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 200 * 2**20  # macOS counts bytes, Linux KiB

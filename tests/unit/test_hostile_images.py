"""Image files made to cost more than they show: each is opened, or refused as an image, in moments and in little memory."""

import io
import resource
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
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


def tiff(data: bytes, first: int = 0, **tags: tuple[int, ...]) -> bytes:
    """A TIFF of 16- or 32-bit tags (`t256=(…,)`); -1 is the place of `data`, `first` that of the next directory."""
    place = 8 + 2 + 12 * len(tags) + 4 + sum(4 * len(v) for v in tags.values() if len(v) > 1)
    entries, beside = b"", b""
    for name, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *(place if v == -1 else v for v in values))
        where = struct.pack("<I", place - sum(4 * len(v) for v in tags.values() if len(v) > 1) + len(beside))
        beside += packed if len(values) > 1 else b""
        entries += struct.pack("<HHI", int(name[1:]), 4, len(values)) + (where if len(values) > 1 else packed)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries
    return head + struct.pack("<I", place + len(data) if first else 0) + beside + data


def scans(count: int) -> bytes:
    """A progressive JPEG that goes over its pixels again and again."""
    out = io.BytesIO()
    Image.new("RGB", (2000, 2000), (10, 200, 30)).save(out, "JPEG", progressive=True)
    jpeg = out.getvalue()
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * count + jpeg[-2:]


def tiles_of_one() -> bytes:
    """A JPEG 2000 of 255 px whose head says that each pixel is a tile."""
    out = io.BytesIO()
    Image.new("RGB", (255, 255)).save(out, "JPEG2000", no_jp2=True)
    return out.getvalue()[:24] + struct.pack(">II", 1, 1) + out.getvalue()[32:]


def cases() -> dict[str, bytes]:
    bomb = zlib.compress(b"\0" * 100_000_000)
    gif = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + b"\0" * 6
    large_frame = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\x00;"
    jpeg = saved("JPEG")
    side = 10_240
    row = {"t256": (64,), "t257": (64,), "t258": (8, 8, 8), "t259": (8,), "t262": (2,), "t277": (3,)}
    tile = zlib.compress(bytes(3 * side * side), 1)
    one_tile = tiff(tile, **row, t322=(side,), t323=(side,), t324=(-1,), t325=(len(tile),))
    many, plane = 200, zlib.compress(bytes(2 * 1000 * 1000))
    planes = {
        "t256": (1000,),
        "t257": (1000,),
        "t258": (16,) * many,
        "t259": (8,),
        "t262": (2,),
        "t277": (many,),
        "t278": (1000,),
    }
    deep = {
        "t256": (8,),
        "t257": (8,),
        "t258": (16, 16, 16),
        "t259": (1,),
        "t262": (2,),
        "t277": (3,),
        "t278": (8,),
        "t284": (2,),
    }
    paged = tiff(bytes(128), first=1, **deep, t273=(-1, -1, -1), t279=(128, 128, 128))
    pages = 40_000
    chain = (struct.pack("<HHHIII", 1, 256, 4, 1, 8, len(paged) + 18 * n * (n < pages)) for n in range(1, pages + 1))
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
        "3,000 scans of 2,000 px": scans(3000),
        "a tile of 10,240 px for 64": one_tile,
        "200 samples a pixel": tiff(plane, **planes, t273=(-1,) * many, t279=(len(plane),) * many, t284=(2,)),
        "40,000 pages": paged + b"".join(chain),
        "65,025 tiles": tiles_of_one(),
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


def test_a_file_of_60000_odd_entries_is_no_60000_lines_of_the_log():
    entries = b"".join(struct.pack(">HHII", n, 7, 8_000_000, 1000) for n in range(60_000))
    out = io.BytesIO()
    SMALL.save(out, "PNG", exif=b"MM\0*" + struct.pack(">IH", 8, 60_000) + entries)
    code = "import sys; from clipft_tasks.data.images import open_image; open_image(sys.stdin.buffer.read(), gray_bits=8)"
    done = subprocess.run([sys.executable, "-c", code], input=out.getvalue(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_tiff_whose_chain_of_pages_breaks_off_is_its_first_page():
    tifffile = pytest.importorskip("tifffile")
    out = io.BytesIO()
    tifffile.imwrite(out, np.full((32, 24, 3), 40_000, np.uint16), photometric="rgb")
    file = bytearray(out.getvalue())
    (at,) = struct.unpack_from("<I", file, 4)
    (entries,) = struct.unpack_from("<H", file, at)
    struct.pack_into("<I", file, at + 2 + 12 * entries, len(file) + 1000)  # the next page, where there is nothing
    found = open_image(bytes(file), gray_bits=16)
    assert (found.width, found.height) == (24, 32) and found.rgb.getpixel((3, 3)) == (156, 156, 156)

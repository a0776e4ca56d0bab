"""What a camera says of places and persons goes; pixels, orientation and color profile stay."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from conftest import made_image
from PIL import Image, ImageCms, PngImagePlugin

from clipft_tasks.data.images import BadImageError, open_image
from clipft_tasks.data.metadata import stripped

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's remarks about broken Exif

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<?xpacket begin="x"?><x:xmpmeta xmlns:x="adobe:ns:meta/">Jane Doe</x:xmpmeta><?xpacket end="w"?>'
TOLD = (b"Jane", b"1970:01:02", b"SERIAL-7")


def said() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[315], exif[270] = 6, "Dr. Jane Doe", "the house of Jane Doe"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 0.0), 29: "1970:01:02"})
    exif.get_ifd(0x8769).update({0xA430: "Jane Doe", 0xA431: "SERIAL-7"})
    return exif


def texts() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "Jane Doe")
    info.add_itxt("Comment", "Jane Doe", zip=False)
    return info


def saved(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    made_image("red", 1, 96).crop((0, 0, 96, 64)).save(out, kind, **options)
    return out.getvalue()


FILES = {
    "JPEG": ("JPEG", lambda: {"exif": said(), "icc_profile": PROFILE, "comment": b"Jane Doe", "xmp": XMP}),
    "progressive JPEG": ("JPEG", lambda: {"exif": said(), "progressive": True}),
    "PNG": ("PNG", lambda: {"exif": said(), "icc_profile": PROFILE, "pnginfo": texts()}),
    "WebP": ("WEBP", lambda: {"exif": said(), "icc_profile": PROFILE, "xmp": XMP, "lossless": True}),
    "TIFF": ("TIFF", lambda: {"exif": said(), "icc_profile": PROFILE}),
    "BigTIFF": ("TIFF", lambda: {"exif": said(), "compression": "tiff_lzw", "big_tiff": True}),
    "GIF": ("GIF", lambda: {"comment": b"Jane Doe"}),
    "AVIF": ("AVIF", lambda: {"exif": said(), "icc_profile": PROFILE, "xmp": XMP}),
    "HEIC": ("HEIF", lambda: {"exif": said().tobytes(), "icc_profile": PROFILE, "xmp": XMP}),
}


@pytest.mark.parametrize("name", FILES)
def test_nobody_is_named_and_every_pixel_stays(name):
    kind, options = FILES[name]
    given = options()
    before = saved(kind, **given)
    after = stripped(before)
    assert any(word in before for word in TOLD) and not any(word in after for word in TOLD)
    one, two = (open_image(data, gray_bits=16).rgb for data in (before, after))
    assert one.size == two.size and np.array_equal(np.asarray(one), np.asarray(two))
    with Image.open(io.BytesIO(after)) as image:
        assert image.info.get("icc_profile") == given.get("icc_profile")
        assert 0x8825 not in image.getexif()
    assert stripped(after) == after


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_says_nothing_keeps_every_byte(name):
    plain = saved(FILES[name][0])
    assert stripped(plain) == plain or FILES[name][0] == "TIFF"


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_refused_after_as_before(name):
    kind, options = FILES[name]
    whole = saved(kind, **options())
    rng = np.random.default_rng(0)
    for cut in rng.integers(1, len(whole), 30).tolist():
        found = stripped(whole[:cut])
        try:
            open_image(found, gray_bits=16)
        except BadImageError as error:
            assert str(error)
    for _ in range(100):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), 8):
            broken[place] = rng.integers(256)
        assert isinstance(stripped(bytes(broken)), bytes)


def test_the_second_frame_of_a_phone_and_what_follows_it_go():
    out = io.BytesIO()
    one = made_image("red", 1, 64)
    one.save(out, "MPO", save_all=True, append_images=[one.rotate(5)], exif=said())
    data = stripped(out.getvalue() + b"film with Jane Doe")
    assert open_image(data, gray_bits=16).format == "JPEG" and b"Jane" not in data
    assert len(data) < len(out.getvalue()) * 0.7


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize(
    "damage",
    [
        lambda: saved("PNG", icc_profile=os.urandom(1000) * 1500),
        lambda: saved("PNG").replace(b"IDAT", b"IDAT", 1)[:33] + chunk(b"zTXt", b"Comment\0\0not zlib") + saved("PNG")[33:],
        lambda: saved("PNG")[:33] + chunk(b"iCCP", b"name\0\0broken") + saved("PNG")[33:],
        lambda: saved("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage"),
        lambda: saved("JPEG", icc_profile=b"no profile"),
        lambda: saved("WEBP", exif=b"Exif\0\0garbage"),
    ],
    ids=["large profile", "broken text", "broken profile", "broken Exif", "no profile", "broken Exif in WebP"],
)
def test_metadata_never_refuses_good_pixels(damage):
    data = damage()
    assert open_image(data, gray_bits=16).rgb.size == (96, 64)
    assert open_image(stripped(data), gray_bits=16).rgb.size == (96, 64)

"""Images nobody vouches for: refused with a reason or decoded as they are meant, and squared as open_clip squares them."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import made_image
from PIL import Image

from clipft_tasks.data.images import BadImageError, Limits, deep_gray, open_image, perceptual_hash, square

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's remarks about broken TIFF tags


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def forged_png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header promises `width` x `height` gray pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data or zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


# Refused --------------------------------------------------------------------------------------------------------------


def test_an_empty_file_is_refused():
    with pytest.raises(BadImageError, match="0 bytes"):
        open_image(b"", gray_bits=16)


@pytest.mark.parametrize(
    "data",
    [
        b"a caption, not an image\n" * 50,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\0" * 5000,
    ],
    ids=["text", "svg", "pdf", "eps", "zeros"],
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(BadImageError, match="known format"):
        open_image(data, gray_bits=16)


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "SGI", "PCX"])
def test_a_format_outside_the_list_is_refused(kind):
    with pytest.raises(BadImageError, match="known format"):
        open_image(encoded(made_image("red", 1), kind), gray_bits=16)


KINDS = [
    ("JPEG", {"quality": 90}),
    ("JPEG", {"quality": 90, "progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("GIF", {}),
]


@pytest.mark.parametrize(
    ("kind", "options"), KINDS, ids=[f"{k}-{'-'.join(map(str, o.values()))}".rstrip("-") for k, o in KINDS]
)
def test_a_file_cut_anywhere_is_refused_or_lacks_no_pixel(kind, options):
    data = encoded(made_image("red", 3, side=160), kind, **options)
    whole = np.asarray(open_image(data, gray_bits=16).rgb)
    cuts = sorted({*range(1, 40), *range(len(data) - 40, len(data)), *np.linspace(1, len(data) - 1, 80).astype(int).tolist()})
    refused = 0
    for cut in cuts:
        try:
            opened = open_image(data[:cut], gray_bits=16)
        except BadImageError as error:
            assert str(error)
            refused += 1
        else:
            assert np.array_equal(np.asarray(opened.rgb), whole), f"cut at {cut} of {len(data)} gave other pixels"
    assert refused > 0.6 * len(cuts)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_turned_bytes_never_raise_anything_but_a_reason(kind):
    data = bytearray(encoded(made_image("blue", 3, side=64), kind))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(data)
        for place in rng.integers(0, min(len(broken), 400), 6):
            broken[place] = rng.integers(256)
        try:
            opened = open_image(bytes(broken), gray_bits=16)
        except BadImageError as error:
            assert str(error)
            refused += 1
        else:
            assert opened.rgb.mode == "RGB"
    assert refused, "not one of 300 broken files was noticed"


@pytest.mark.parametrize(("width", "height"), [(20_000, 10_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1), (50_000_001, 1)])
def test_a_header_that_promises_too_many_pixels_is_refused_before_decoding(width, height):
    with pytest.raises(BadImageError, match="pixels.*limit"):
        open_image(forged_png(width, height), gray_bits=16)


def test_a_real_bomb_of_two_hundred_megapixels_is_refused():
    row = zlib.compressobj(9)
    data = b"".join([*(row.compress(b"\0" * 20_001) for _ in range(10_000)), row.flush()])
    assert len(data) < 300_000
    with pytest.raises(BadImageError, match="limit"):
        open_image(forged_png(20_000, 10_000, data), gray_bits=16)


def test_a_file_above_the_limit_of_bytes_is_refused():
    with pytest.raises(BadImageError, match="bytes, more than the limit"):
        open_image(b"x" * 1001, Limits(bytes=1000), gray_bits=16)


def test_pixels_at_the_limit_are_taken():
    data = encoded(Image.new("L", (100, 50)))
    assert open_image(data, Limits(pixels=5000), gray_bits=16).width == 100
    with pytest.raises(BadImageError, match="100x50"):
        open_image(data, Limits(pixels=4999), gray_bits=16)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not limit a process's address space")
def test_a_thread_of_a_image_is_refused_or_squared_within_two_gigabytes():
    """A few bytes can promise 4,000,000 x 1 pixels: allowed by the limit, but enlarging its short side to 224 needs 800 GB."""
    code = """
import io, resource, sys
from PIL import Image
from clipft_tasks.data.images import BadImageError, open_image, square
out = io.BytesIO(); Image.new("L", (4_000_000, 1)).save(out, "PNG")
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
try:
    print(square(open_image(out.getvalue(), gray_bits=16).rgb, 224).shape)
except BadImageError as error:
    print("refused", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


# Decoded as meant -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_keeps_its_range(kind):
    ramp = np.linspace(0, 65535, 256 * 64).astype(np.uint16).reshape(64, 256)
    opened = open_image(encoded(Image.fromarray(ramp), kind), gray_bits=16)
    gray = np.asarray(opened.rgb)[..., 0]
    assert opened.mode == "I;16" and opened.rgb.mode == "RGB"
    assert np.array_equal(gray, (ramp >> 8).astype(np.uint8))
    assert len(np.unique(gray)) == 256


def gray16(values: np.ndarray, bits: int, kind: str = "PNG") -> np.ndarray:
    """What becomes of 16-bit (or floating-point) gray in a file: uint8, same shape."""
    return np.asarray(open_image(encoded(Image.fromarray(values), kind), gray_bits=bits).rgb)[..., 0]


RAMP12 = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [12, 0], ids=["camera's depth", "own range"])
def test_twelve_bits_in_sixteen_become_all_grays(kind, bits):
    found = gray16(RAMP12, bits, kind)
    assert len(np.unique(found)) == 256 and (np.diff(found.ravel().astype(int)) >= 0).all()
    assert len(np.unique(gray16(RAMP12, 16, kind))) == 16  # what a wrong depth costs


def test_one_scale_for_all_keeps_a_dark_part_dark_and_an_own_range_does_not():
    dark = RAMP12 // 8
    assert gray16(dark, 12).mean() < 0.13 * 256 and 120 < gray16(dark, 0).mean() < 136


def test_what_is_brighter_than_the_cameras_depth_is_white():
    assert (gray16(np.full((8, 8), 5000, np.uint16), 12) == 255).all()


def test_a_small_range_far_from_black_is_spread():
    thermal = (27_000 + RAMP12 // 10).astype(np.uint16)
    assert np.ptp(gray16(thermal, 0)) == 255 and np.ptp(gray16(thermal, 16)) <= 2


def test_a_hot_and_a_dead_pixel_do_not_take_the_range():
    spoilt = RAMP12 // 4 + 1000
    clean = gray16(spoilt, 0).astype(int)
    spoilt[5, 5], spoilt[6, 6] = 65_535, 0
    found = gray16(spoilt, 0).astype(int)
    assert (found[5, 5], found[6, 6]) == (255, 0)
    others = np.ones_like(found, dtype=bool)
    others[5, 5] = others[6, 6] = False
    assert np.abs(found - clean)[others].max() <= 1


@pytest.mark.parametrize(("value", "spots"), [(300, 0), (0, 0), (300, 2)], ids=["gray", "black", "two bright spots"])
def test_a_image_of_nearly_one_value_is_still_a_image(value, spots):
    flat = np.full((64, 64), value, np.uint16)
    flat.ravel()[:spots] = 60_000
    found = gray16(flat, 0)
    assert (found.ravel()[:spots] == 255).all() and (found.ravel()[spots:] == 0).all()


def test_floating_point_gray_spans_its_own_range():
    opened = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    assert len(np.unique(gray16(opened, 0, "TIFF"))) == 256
    opened[0, 0] = np.nan
    with pytest.raises(BadImageError, match="no numbers"):
        gray16(opened, 0, "TIFF")


@pytest.mark.parametrize("bits", [0, 8, 12, 16])
def test_deep_gray_never_turns_bright_into_dark(bits):
    values = np.random.default_rng(0).integers(-5, 70_000, 5000)
    found = deep_gray(values, bits).astype(int)
    assert found.dtype == int and (np.diff(found[np.argsort(values)]) >= 0).all()


@pytest.mark.parametrize("bits", [0, 12])
def test_eight_bit_images_are_left_alone(bits):
    opened = made_image("red", 1).convert("L")
    assert np.array_equal(np.asarray(open_image(encoded(opened), gray_bits=bits).rgb)[..., 0], np.asarray(opened))


def test_big_endian_sixteen_bit_gray_keeps_its_range():
    ramp = np.linspace(0, 65535, 256 * 64).astype(np.uint16).reshape(64, 256)
    strip = ramp.astype(">u2").tobytes()
    tags = [
        (256, 4, 256),
        (257, 4, 64),
        (258, 3, 16 << 16),
        (259, 3, 1 << 16),
        (262, 3, 1 << 16),
        (273, 4, 8),
        (277, 3, 1 << 16),
        (278, 4, 64),
        (279, 4, len(strip)),
    ]
    directory = struct.pack(">H", len(tags)) + b"".join(struct.pack(">HHII", t, k, 1, v) for t, k, v in tags) + b"\0\0\0\0"
    data = b"MM\0*" + struct.pack(">I", 8 + len(strip)) + strip + directory
    assert np.array_equal(np.asarray(open_image(data, gray_bits=16).rgb)[..., 0], (ramp >> 8).astype(np.uint8))


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    image.paste((0, 0, 255, 0), (20, 0, 40, 20))
    opened = open_image(encoded(image), gray_bits=16)
    assert opened.mode == "RGBA"
    assert opened.rgb.getpixel((5, 5)) == (255, 0, 0) and opened.rgb.getpixel((30, 5)) == (255, 255, 255)


def test_gray_with_transparency_lies_on_white():
    image = Image.new("LA", (40, 20), (0, 255))
    image.paste((0, 0), (20, 0, 40, 20))
    rgb = open_image(encoded(image), gray_bits=16).rgb
    assert rgb.getpixel((5, 5)) == (0, 0, 0) and rgb.getpixel((30, 5)) == (255, 255, 255)


def test_a_palette_with_a_transparent_color_lies_on_white():
    image = Image.new("P", (40, 20), 0)
    image.putpalette([10, 200, 30, 0, 0, 0])
    image.paste(1, (20, 0, 40, 20))
    assert open_image(encoded(image), gray_bits=16).rgb.getpixel((5, 5)) == (10, 200, 30)
    rgb = open_image(encoded(image, transparency=1), gray_bits=16).rgb
    assert rgb.getpixel((5, 5)) == (10, 200, 30) and rgb.getpixel((30, 5)) == (255, 255, 255)


def test_cmyk_keeps_its_colors():
    opened = open_image(encoded(Image.new("RGB", (32, 32), (200, 40, 40)).convert("CMYK"), "JPEG", quality=95), gray_bits=16)
    assert opened.mode == "CMYK"
    assert np.abs(np.array(opened.rgb.getpixel((16, 16))) - (200, 40, 40)).max() < 8


def test_one_bit_images_are_black_and_white():
    image = Image.new("1", (16, 16), 0)
    image.paste(1, (8, 0, 16, 16))
    opened = open_image(encoded(image), gray_bits=16)
    assert opened.mode == "1"
    assert opened.rgb.getpixel((2, 2)) == (0, 0, 0) and opened.rgb.getpixel((12, 2)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_camera_was_held(orientation):
    upright = Image.new("RGB", (64, 32), "black")
    upright.paste((250, 0, 0), (0, 0, 16, 16))  # red at the top left
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transposition that the camera's position amounts to
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = open_image(encoded(stored, "JPEG", quality=95, exif=exif), gray_bits=16).rgb
    assert rgb.size == (64, 32)
    assert rgb.getpixel((4, 4))[0] > 200 and rgb.getpixel((60, 28))[0] < 50


def test_what_the_file_said_is_told():
    opened = open_image(encoded(Image.new("L", (30, 20)), "GIF"), gray_bits=16)
    assert (opened.width, opened.height, opened.format) == (30, 20, "GIF")


def test_the_perceptual_hash_sees_likeness_and_difference():
    def bits(image: Image.Image) -> np.ndarray:
        return np.unpackbits(np.frombuffer(perceptual_hash(image), np.uint8))

    one, two = made_image("red", 1, 160), made_image("red", 2, 160)
    again = open_image(encoded(one.resize((120, 120)), "JPEG", quality=80), gray_bits=16).rgb
    assert len(bits(one)) == 256
    assert (bits(one) != bits(again)).sum() <= 6 < 60 < (bits(one) != bits(two)).sum()


@pytest.mark.parametrize("kind", ["AVIF", "HEIF", "MPO"])
def test_what_phones_write_is_taken(kind):
    opened = open_image(encoded(made_image("red", 1, 64), kind), gray_bits=16)
    assert opened.format == {"MPO": "JPEG"}.get(kind, kind) and opened.rgb.size == (64, 64)


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_color_tiff_of_any_layout_and_depth_is_read(layout, kind):
    import tifffile

    values = (np.random.default_rng(0).random((48, 64, 3)) * np.iinfo(kind).max).astype(kind)
    out = io.BytesIO()
    stored = values if layout == "contig" else values.transpose(2, 0, 1)
    tifffile.imwrite(out, stored, photometric="rgb", planarconfig=layout)
    found = np.asarray(open_image(out.getvalue(), gray_bits=16).rgb)
    assert np.array_equal(found, values >> 8 * (values.itemsize - 1))


def test_floating_point_gray_is_refused_where_all_images_have_one_scale():
    ramp = np.tile(np.linspace(0, 1, 96, dtype=np.float32), (96, 1))
    with pytest.raises(BadImageError, match="gray_bits=0"):
        gray16(ramp, 16, "TIFF")
    assert np.ptp(gray16(ramp, 0, "TIFF")) == 255


def test_gray_beyond_sixteen_bits_is_never_clipped():
    hounsfield = np.tile(np.linspace(-1000, 2000, 96).astype(np.int32), (96, 1))
    with pytest.raises(BadImageError, match="-1000 to 2000"):
        gray16(hounsfield, 16, "TIFF")
    assert np.ptp(gray16(hounsfield, 0, "TIFF")) == 255


# Squared --------------------------------------------------------------------------------------------------------------

SIZES = [
    (64, 64),
    (224, 224),
    (225, 224),
    (300, 200),
    (200, 300),
    (97, 131),
    (640, 480),
    (33, 500),
    (500, 33),
    (1001, 667),
    (31, 17),
    (224, 223),
]


@pytest.mark.parametrize("side", [32, 96, 128, 160, 224])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_a_square_is_open_clips_evaluation_transform_bit_for_bit(size, side):
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2

    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    transform = image_transform_v2(
        PreprocessCfg(size=side, mode="RGB", mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic", resize_mode="shortest"),
        is_train=False,
    )
    ours = square(image, side)
    assert ours.shape == (3, side, side) and ours.dtype == np.uint8
    assert torch.equal(transform(image), torch.from_numpy(ours).float() / 255)

"""Images described in worker processes: the same as in one, in order, and one that kills its process hides no other."""

import hashlib
import io
import os

import numpy as np
import pytest
from PIL import Image

from clipft_tasks.data import describe
from clipft_tasks.data.describe import Described, Piece, describe_all


def jpeg(number: int, side: int = 64) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((side, side)).save(out, "JPEG")
    return out.getvalue()


def pieces(*contents: bytes) -> list[Piece[int]]:
    return [Piece(i, data, hashlib.sha256(data).hexdigest()) for i, data in enumerate(contents)]


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(describe, "INLINE", 1e-9)
    monkeypatch.setattr(describe, "BATCH_IMAGES", 3)


def test_processes_say_what_one_says_in_the_order_of_the_source(home, at_once, monkeypatch):
    contents = [jpeg(n) if n % 7 else b"no image" for n in range(60)] + [jpeg(1), b""]
    alone = list(describe_all(pieces(*contents), 16, workers=0))
    monkeypatch.setenv("CLIPFT_HOME", str(home / "other"))
    describe.settings.cache_clear()
    several = list(describe_all(pieces(*contents), 16, workers=2))
    assert several == alone and [piece.of for piece, _ in several] == list(range(62))
    assert alone[0][1].refused and alone[1][1].width == 64 and len(alone[1][1].phash) == 64


def test_what_was_found_is_found_again_without_decoding(home, monkeypatch):
    contents = [jpeg(n) for n in range(20)]
    first = list(describe_all(pieces(*contents), 16, workers=0))
    monkeypatch.setattr(describe, "describe", lambda data, bits: pytest.fail("decoded again"))
    assert list(describe_all(pieces(*contents), 16, workers=0)) == first
    known = {pieces(b"unseen")[0].sha256: Described(width=1)}
    assert next(iter(describe_all(pieces(b"unseen"), 0, known, workers=0)))[1].width == 1  # nor what the caller knows


def test_another_rule_of_reading_gray_is_another_answer(home):
    out = io.BytesIO()
    Image.fromarray((np.arange(64 * 64).reshape(64, 64) % 3000).astype(np.uint16)).save(out, "PNG")
    one, other = (next(iter(describe_all(pieces(out.getvalue()), bits, workers=0)))[1] for bits in (16, 0))
    assert one.phash != other.phash


def test_a_memory_that_is_damaged_costs_time_only(home):
    path = home / "cache" / "described" / f"{describe.RULES}-16.db"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 1000)
    assert next(iter(describe_all(pieces(jpeg(1)), 16, workers=0)))[1].width == 64


def _dying(images: list[bytes], gray_bits: int) -> list[Described]:
    if any(data.startswith(b"kill") for data in images):
        os._exit(9)
    return [describe.describe(data, gray_bits) for data in images]


def test_an_image_that_kills_its_process_is_refused_and_the_others_are_not(home, at_once, monkeypatch):
    monkeypatch.setattr(describe, "_describe_batch", _dying)
    monkeypatch.setattr(describe, "INLINE", 0)
    contents = [jpeg(n) for n in range(8)]
    contents[4] = b"kill" + contents[4]
    found = [described for _, described in describe_all(pieces(*contents), 16, workers=1)]
    assert [bool(d.refused) for d in found] == [i == 4 for i in range(8)] and found[4].refused == describe.ENDED


def test_memory_does_not_grow_with_the_number_of_images(home, at_once):
    """The source is read only as far as a few batches ahead of what was taken."""
    read = []

    def source():
        for piece in pieces(*(jpeg(n) for n in range(100))):
            read.append(piece.of)
            yield piece

    for piece, _ in describe_all(source(), 16, workers=2):
        assert len(read) - piece.of <= 3 * (2 * 2 + 2)

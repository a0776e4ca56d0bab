"""Images that were cropped, turned or mirrored by a little: found again, put on the same side, and joined with nothing for good."""

import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from clipft_tasks.data.images import perceptual_hash
from clipft_tasks.data.ledger import Ledger, Likeness, place
from clipft_tasks.data.resemblance import resembling
from clipft_tasks.domains import Augment

COUNT = 60
SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}
FLIPS = Augment(flip_horizontal=True)


def image(seed: int) -> Image.Image:
    """A field of its own, with finer structure on it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6)).astype(np.uint8)).resize((200, 200), Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(0, 255, (40, 40)).astype(np.uint8)).resize((200, 200), Image.Resampling.BICUBIC)
    return Image.blend(coarse, fine, 0.3)


def cropped(one: Image.Image) -> Image.Image:
    return ImageOps.crop(one, 2)


def turned(one: Image.Image) -> Image.Image:
    return one.rotate(1, Image.Resampling.BICUBIC, fillcolor=one.getpixel((0, 0)))


def hash_of(one: Image.Image) -> str:
    return perceptual_hash(one.convert("RGB")).hex()


@pytest.fixture(scope="module")
def originals() -> list[str]:
    return [hash_of(image(seed)) for seed in range(COUNT)]


@pytest.mark.parametrize("change", [cropped, turned, ImageOps.mirror])
def test_changed_images_are_found_again_and_others_are_not(originals, change):
    both = originals + [hash_of(change(image(seed))) for seed in range(COUNT // 2)]
    pairs = resembling(both, np.arange(len(both)), range(COUNT, len(both)), FLIPS)
    assert sum(j == i - COUNT for i, j in pairs) >= 0.8 * COUNT / 2
    assert sum(j != i - COUNT for i, j in pairs) <= 0.05 * COUNT
    assert len(resembling(originals, np.arange(COUNT), range(COUNT), FLIPS)) <= 0.05 * COUNT


def rows(hashes: list[str], first: int = 0, group: str = "", split: str = "") -> pd.DataFrame:
    sha256 = [f"{first + i:064x}" for i in range(len(hashes))]
    return pd.DataFrame({"sha256": sha256, "phash": hashes, "group": group, "split": split, "label": "a"})


def test_a_changed_image_goes_to_the_side_of_its_original_now_and_in_later_versions(originals):
    changed = [hash_of(cropped(image(seed))) for seed in range(COUNT // 2)]
    alike = Likeness(12, FLIPS)
    at_once = place(rows(originals + changed), Ledger.empty(), alike, SHARES, 0).splits
    assert sum(at_once[i] == at_once[COUNT + i] for i in range(len(changed))) >= 0.8 * len(changed)
    assert set(at_once) == set(SHARES)
    first = place(rows(originals), Ledger.empty(), alike, SHARES, 0).splits
    ledger = Ledger.empty().joined(rows(originals).assign(split=first))
    later = place(rows(changed, COUNT), ledger, alike, SHARES, 0)
    assert sum(map(str.__eq__, later.splits, first)) >= 0.8 * len(changed) and not later.reasons


def test_what_a_source_says_of_splits_and_groups_is_never_overruled(originals):
    changed = [hash_of(cropped(image(seed))) for seed in range(COUNT // 2)]
    alike = Likeness(12, FLIPS)
    said = pd.concat([rows(originals, split="train"), rows(changed, COUNT, split="test")], ignore_index=True)
    found = place(said, Ledger.empty(), alike, SHARES, 0)
    assert found.splits == said["split"].tolist() and not found.reasons and not found.parted
    grouped = pd.concat([rows(originals, group="one"), rows(changed, COUNT, group="two")], ignore_index=True)
    alone = pd.concat([rows(originals, group="one"), rows([hash_of(image(900))], COUNT, group="two")], ignore_index=True)
    for frame in (grouped, alone):
        splits = place(frame, Ledger.empty(), alike, SHARES, 0).splits
        assert len(set(splits[:COUNT])) == len(set(splits[COUNT:])) == 1 and splits[0] != splits[-1]


def test_thousands_of_frames_of_one_camera_take_seconds():
    rng = np.random.default_rng(0)
    bits = np.repeat(rng.integers(0, 2, (1, 256)).astype(np.uint8), 3_000, axis=0)
    for row in bits:
        row[rng.choice(256, 3, replace=False)] ^= 1
    hashes = [row.tobytes().hex() for row in np.packbits(bits, axis=1)]
    began = time.process_time()
    resembling(hashes, np.arange(len(hashes)), range(len(hashes)))
    assert time.process_time() - began < 20


def test_nothing_to_compare_is_nothing_found():
    assert resembling([], np.zeros(0, int), []) == [] and resembling(["00" * 32], np.zeros(1, int), [0]) == []
    empty = place(rows([]), Ledger.empty(), Likeness(12), SHARES, 0)
    assert empty.splits == []
    without = rows(["", ""])
    assert all(place(without, Ledger.empty(), Likeness(12), SHARES, 0).splits)

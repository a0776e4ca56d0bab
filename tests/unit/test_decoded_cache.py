"""Decoded images: once and then read back, dropped when space is short, and the same pixels as open_clip's own transform."""

import inspect
import io
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import made_image
from fixtures.errors import refuses
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from clipft_tasks.core.settings import settings
from clipft_tasks.data import decoded_cache, versioning
from clipft_tasks.data.decoded_cache import MIN_AGE, Decoded, decoded
from clipft_tasks.data.images import RESIZE_MODES, BadImageError, open_image, square
from clipft_tasks.data.loader import TrainingData
from clipft_tasks.data.versioning import Dataset
from clipft_tasks.domains import get_domain
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import ingest, version


@pytest.fixture
def dataset(shared_home, small_spec) -> Dataset:
    """Eighty squares of 48 pixels as a version, made once for this file; nothing of it is decoded yet."""
    shutil.rmtree(shared_home / "cache" / "images", ignore_errors=True)
    if not versioning.versions("general"):
        version.run(small_spec, ingest.run(small_spec).staging)
    return versioning.fetch(versioning.find("", "general"))


def opened(dataset: Dataset, side: int = 32, **options: object) -> Decoded:
    options = {"gray_bits": get_domain(dataset.version.domain).gray_bits} | options
    return decoded(dataset, dataset.split("train"), side, "train", **options)


def everything(images: Decoded) -> torch.Tensor:
    return images.take(np.arange(len(images)))


def files(home: Path) -> set[str]:
    return {f.name for f in (home / "cache" / "images").rglob("*.npy")}


def give_cache(monkeypatch: pytest.MonkeyPatch, gb: float) -> None:
    monkeypatch.setenv("CLIPFT_CACHE_GB", str(gb))
    settings.cache_clear()


def used_before(home: Path, name: str, size: int, seconds: float) -> None:
    """A file in the cache that was used so many seconds ago."""
    path = home / "cache" / "images" / "other" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - seconds,) * 2)


# Kept between runs ----------------------------------------------------------------------------------------------------


def test_a_second_run_decodes_nothing_and_reads_the_same(dataset, monkeypatch):
    first = everything(opened(dataset))

    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decoded_cache, "open_image", refused)
    again = opened(dataset)
    assert again.store is not None and torch.equal(everything(again), first)


def test_the_rows_taken_are_the_images_squared(dataset):
    rows = dataset.split("train")
    found = opened(dataset, 40).take(np.array([7, 0, 7, 3]))
    wanted = [square(open_image(dataset.image_bytes(rows.iloc[i]), gray_bits=16).rgb, 40) for i in (7, 0, 7, 3)]
    assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), np.stack(wanted))
    assert opened(dataset, 40).take(np.array([], int)).shape == (0, 3, 40, 40)


def test_where_the_cache_is_too_small_each_use_decodes_the_same(dataset, shared_home, monkeypatch, capsys):
    kept = everything(opened(dataset))
    shutil.rmtree(shared_home / "cache" / "images")
    give_cache(monkeypatch, 1e-6)
    live = opened(dataset)
    assert live.store is None and not files(shared_home) and "decoded at each use" in capsys.readouterr().out
    assert torch.equal(everything(live), kept)
    assert live.take(np.array([], int)).shape == (0, 3, 32, 32)


def test_sides_aspects_and_drafts_are_kept_apart(dataset, shared_home):
    for options in ({}, {"side": 48}, {"aspect": "pad"}, {"aspect": "squeeze"}, {"draft": True}):
        opened(dataset, **options)
    assert len(files(shared_home)) == 5


def test_what_was_used_longest_ago_is_dropped_when_space_is_short(dataset, shared_home, monkeypatch):
    size = opened(dataset).bytes
    shutil.rmtree(shared_home / "cache" / "images")
    for name, seconds in (("old.npy", 5), ("oldest.npy", 9), ("used.npy", 3)):
        used_before(shared_home, name, size, seconds * MIN_AGE)
    give_cache(monkeypatch, 3.01 * size / 2**30)
    opened(dataset)
    assert files(shared_home) >= {"old.npy", "used.npy"} and "oldest.npy" not in files(shared_home)
    assert len(files(shared_home)) == 3


def test_a_young_file_is_never_dropped_and_reading_keeps_one_young(dataset, shared_home, monkeypatch):
    size = opened(dataset).bytes
    (own,) = (shared_home / "cache" / "images").rglob("*.npy")
    os.utime(own, (time.time() - 9 * MIN_AGE,) * 2)
    opened(dataset)  # a use
    used_before(shared_home, "young.npy", size, MIN_AGE - 100)
    used_before(shared_home, "old.npy", size, MIN_AGE + 100)
    give_cache(monkeypatch, 1.01 * size / 2**30)
    opened(dataset, aspect="pad")
    assert files(shared_home) >= {own.name, "young.npy"} and "old.npy" not in files(shared_home)


@pytest.mark.parametrize("gb", [50, 1e-6], ids=["kept", "at each use"])
def test_a_image_that_broke_after_ingest_is_named(dataset, tmp_path, monkeypatch, gb):
    row = dataset.split("train").iloc[5]
    broken = replace(dataset, folder=shutil.copytree(dataset.folder, tmp_path / "shards"))
    with (broken.folder / row["shard"]).open("r+b") as file:
        file.seek(row["offset"])
        file.write(bytes(row["length"]))
    give_cache(monkeypatch, gb)
    with refuses("dataset.unreadable_image", row["name"], "general/v1"):
        everything(opened(broken))
    assert len(everything(opened(dataset))) == len(dataset.split("train"))  # nothing half-done is in the way


# Pixels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 96, 224])
@pytest.mark.parametrize(
    "size",
    [(400, 200), (131, 97), (150, 300), (33, 500), (640, 81), (160, 160), (34, 17), (300, 200), (200, 300), (31, 17)],
    ids=str,
)
@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_each_aspect_is_open_clips_evaluation_transform(mode, size, side):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))
    cfg = PreprocessCfg(size=side, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic", resize_mode=mode, fill_color=0)
    theirs = image_transform_v2(cfg, is_train=False)(image)
    ours = torch.from_numpy(square(image, side, RESIZE_MODES[mode])).float() / 255
    assert ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= 1 / 255 + 1e-6


@pytest.mark.parametrize("size", [(1600, 1200), (900, 2000)], ids=str)
def test_a_large_jpeg_decoded_at_a_fraction_is_nearly_the_same_square(size):
    out = io.BytesIO()
    made_image("red", 1, 160).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    drafted, whole = (open_image(out.getvalue(), draft=draft, gray_bits=16).rgb for draft in (2 * 96, 0))
    assert whole.size == size and 2 * 96 <= min(drafted.size) < min(size)
    apart = np.abs(square(drafted, 96).astype(int) - square(whole, 96))
    assert apart.mean() < 2


def test_a_tiff_with_pixels_that_are_no_numbers_is_refused():
    pixels = np.ones((40, 40), np.float32)
    pixels[3, 4] = np.nan
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "TIFF")
    with pytest.raises(BadImageError, match="no numbers"):
        open_image(out.getvalue(), gray_bits=16)


def test_what_the_release_before_decoded_is_used_where_it_is_now(dataset, shared_home, monkeypatch):
    first = everything(opened(dataset, gray_bits=0))
    cache = shared_home / "cache"
    (kept,) = (cache / "images").rglob("*-gray0.npy")
    kept.rename(kept.with_name(kept.name.replace("-gray0", "-grey0")))
    (cache / "images").rename(cache / "pictures")
    monkeypatch.setattr(decoded_cache, "open_image", lambda *args, **options: pytest.fail("decoded again"))
    assert torch.equal(everything(opened(dataset, gray_bits=0)), first)
    assert not (cache / "pictures").exists() and files(shared_home) == {kept.name}


# Sixteen bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("domain", "grays"), [("medical", 200), ("industrial", 16)])
def test_deep_gray_is_decoded_as_the_domain_reads_it(home, tmp_path, domain, grays):
    """Detectors that fill 12 of 16 bits: every image spans its own range, or all share one scale."""
    rng = np.random.default_rng(0)
    lines = ["image,label"]
    for number in range(24):
        Image.fromarray(rng.integers(0, 4096, (64, 64)).astype(np.uint16)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{'ab'[number % 2]}")
    (tmp_path / "deep.csv").write_text("\n".join(lines))
    spec = RunSpec.from_flat({"domain": domain, "source": str(tmp_path / "deep.csv")})
    version.run(spec, ingest.run(spec).staging)
    dataset = versioning.fetch(versioning.find("", domain))
    found = everything(opened(dataset, 64))
    assert (len(found.unique()) > 200) == (grays > 16) and (int(found.max()) == 255) == (grays > 16)
    again = open_image(dataset.image_bytes(dataset.split("train").iloc[0]), gray_bits=get_domain(domain).gray_bits)
    assert torch.equal(found[0], torch.from_numpy(square(again.rgb, 64)))


@pytest.mark.parametrize("opens", [open_image, decoded, TrainingData.open], ids=lambda f: f.__qualname__)
def test_nobody_opens_an_image_without_saying_how_deep_gray_is_read(opens):
    """One who forgets would see other pixels than the model was trained on."""
    parameter = inspect.signature(opens).parameters["gray_bits"]
    assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, parameter.empty)

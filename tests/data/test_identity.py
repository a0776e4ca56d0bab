"""What was once in a split stays there, whatever comes back, whoever runs at the same time, whenever a process is killed."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fixtures.forkserver
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from clipft_tasks.cli import main
from clipft_tasks.core.errors import ClipftError, TransientError
from clipft_tasks.data import ingest_pipeline, manifest, objects, repository, versioning
from clipft_tasks.data.readers import Row
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import ingest, version


def photo(number: int, side: int = 96) -> Image.Image:
    """Different for each number; a JPEG of it at any quality looks alike."""
    coarse = np.random.default_rng(number).integers(0, 255, (12, 12, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def write(folder: Path, rows: list[dict], quality: int = 90) -> RunSpec:
    """A table with a photo for each row's `number`; the spec that ingests it."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        path = folder / f"{row['number']}.jpg"
        if not path.exists():
            photo(row["number"]).save(path, quality=quality)
    plain = {"caption": "", "label": "", "group": "", "split": ""}
    frame = pd.DataFrame([plain | {"image": f"{r['number']}.jpg"} | r for r in rows]).drop(columns="number")
    frame.to_csv(folder / "images.csv", index=False)
    return RunSpec.from_flat({"domain": "general", "source": str(folder / "images.csv")})


def photos(*numbers: int, **more) -> list[dict]:
    """Rows of two classes; a function among `more` is called with the number."""
    made = [{"number": n, "caption": f"thing {n}", "label": "red" if n % 2 else "blue"} for n in numbers]
    return [row | {k: v(row["number"]) if callable(v) else v for k, v in more.items()} for row in made]


def made(spec: RunSpec):
    return version.run(spec, ingest.run(spec).staging)


def frame_of(tag: str = "") -> pd.DataFrame:
    return versioning.read_manifest(versioning.find(tag, "general"))


def staged(spec: RunSpec) -> pd.DataFrame:
    return manifest.read(Path(ingest.run(spec).staging) / "manifest.parquet")


def check_bytes(tag: str = "") -> None:
    """Every image of a version, from its shards, is the one that its manifest names."""
    dataset = versioning.fetch(versioning.find(tag, "general"))
    for row in dataset.frame.itertuples():
        assert hashlib.sha256(dataset.image_bytes(row)).hexdigest() == row.sha256


# What comes back ------------------------------------------------------------------------------------------------------


def test_an_export_at_another_quality_tests_on_nothing_that_was_trained_on(home, tmp_path):
    made(write(tmp_path / "a", photos(*range(120))))
    again = frame_of()
    made(write(tmp_path / "b", photos(*range(123)), quality=80))
    both = again.merge(frame_of(), on="name", suffixes=("_1", "_2"))
    assert len(both) == 120 and (both["sha256_1"] != both["sha256_2"]).all() and (both["split_1"] == both["split_2"]).all()


def test_later_images_of_known_patients_stay_on_their_side(home, tmp_path):
    made(write(tmp_path / "a", photos(*range(150), group=lambda n: f"p{n // 5}")))
    before = frame_of().groupby("group")["split"].first()
    made(write(tmp_path / "b", photos(*range(1000, 1165), group=lambda n: f"p{(n - 1000) // 5}")))
    after = frame_of().groupby("group")["split"].first()
    assert len(after) == 33 and (after[before.index] == before).all()


def test_a_corrected_split_column_is_counted_and_said(home, tmp_path, capsys):
    names = ("train", "val", "test")
    made(write(tmp_path / "c", photos(*range(60), split=lambda n: names[n % 3])))
    before = frame_of()
    spec = write(tmp_path / "c", photos(*range(60), split=lambda n: names[(n + 1) % 3]))
    result = ingest.run(spec)
    card = ingest_pipeline.read_card(Path(result.staging))
    assert card.kept_splits == 60 and "60 rows keep the split of earlier versions" in capsys.readouterr().out
    assert version.run(spec, result.staging).dataset == "general/v1" and frame_of().equals(before)


def test_a_group_column_that_comes_later_leaves_rows_out_and_resplit_takes_them_all(home, tmp_path, capsys, monkeypatch):
    made(write(tmp_path / "d", photos(*range(100))))
    before = dict(zip(frame_of()["sha256"], frame_of()["split"], strict=True))
    spec = write(tmp_path / "d", photos(*range(100), group=lambda n: f"p{n // 4}"))
    frame = staged(spec)
    assert (frame.groupby("group")["split"].nunique() == 1).all() and len(frame) < 100
    assert all(before[row.sha256] == row.split for row in frame.itertuples())
    assert "clipft resplit general" in capsys.readouterr().out

    monkeypatch.setattr("clipft_tasks.stages.validate.run", lambda spec, staging: {})  # its model takes half a minute
    done = CliRunner().invoke(main, ["resplit", "general", "--source", spec.source], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    newest = versioning.find("", "general")
    assert (newest.tag, newest.card.major, newest.card.rows) == ("general/v2", 2, 100)
    assert (frame_of().groupby("group")["split"].nunique() == 1).all()
    assert "may have seen these test rows" in versioning.not_comparable("general/v2", "general/v1")
    assert made(spec).dataset == "general/v2"  # from here on rows keep the split that they got
    made(write(tmp_path / "d", photos(*range(104), group=lambda n: f"p{n // 4}")))
    assert versioning.find("", "general").card.major == 2 and not versioning.not_comparable("general/v3", "general/v2")


def test_resplit_without_a_source_takes_the_newest_rows_and_keeps_what_is_said_of_them(home, tmp_path, monkeypatch):
    spec = write(tmp_path / "a", photos(*range(60), split=lambda n: "train" if n else "test"))
    made(spec)
    monkeypatch.setattr("clipft_tasks.stages.validate.run", lambda spec, staging: {})
    done = CliRunner().invoke(main, ["resplit", "general"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    newest = versioning.find("", "general")
    assert newest.card.major == 2 and newest.card.source == spec.source and newest.card.counts["test"] > 10
    columns = ["name", "caption", "label", "sha256"]
    assert frame_of()[columns].equals(frame_of("general/v1")[columns])


def test_old_content_can_become_the_newest_again(home, tmp_path):
    one, two = write(tmp_path / "a", photos(*range(40))), write(tmp_path / "b", photos(*range(44)))
    assert [made(spec).dataset for spec in (one, two)] == ["general/v1", "general/v2"]
    back = made(one)
    assert (back.dataset, back.new) == ("general/v3", True) and frame_of().equals(frame_of("general/v1"))
    assert made(one).new is False


def test_the_ledger_of_a_release_before_is_read_with_what_it_lost(home, tmp_path, monkeypatch):
    """It held sha256 and split only, and two runs at once could drop one another's rows."""
    real = versioning.objects.add

    def add_as_before(dvc, path: Path):
        if path.name == "splits.parquet":
            frame = pd.read_parquet(path)[["sha256", "split"]][5:]
            frame.to_parquet(path)
        return real(dvc, path)

    with monkeypatch.context() as patch:
        patch.setattr(versioning.objects, "add", add_as_before)
        made(write(tmp_path / "a", photos(*range(80), group=lambda n: f"p{n // 4}")))
    before = frame_of().groupby("group")["split"].first()
    made(write(tmp_path / "b", photos(*range(500, 580), group=lambda n: f"p{(n - 500) // 4}")))
    assert (frame_of().groupby("group")["split"].first() == before).all()


# Who runs at the same time --------------------------------------------------------------------------------------------


def test_two_runs_of_one_form_at_once_do_not_meet(home, tmp_path, monkeypatch):
    spec = write(tmp_path / "same", photos(*range(80)))
    versioning.versions("general")
    together, real = threading.Barrier(2), Row.__init__

    def slow(self, *args, **kwargs):
        real(self, *args, **kwargs)
        if self.key == "40.jpg":
            together.wait(60)  # both are in the middle of their shards

    monkeypatch.setattr(Row, "__init__", slow)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(ingest.run, [spec, spec]))
    monkeypatch.undo()
    assert results[0].content == results[1].content
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda r: version.run(spec, r.staging), results))
    assert {f.dataset for f in found} == {"general/v1"} and sorted(f.new for f in found) == [False, True]
    check_bytes()


def test_two_sources_staged_on_one_version_both_stay_in_the_ledger(home, tmp_path):
    base = list(range(60))
    made(write(tmp_path / "s", photos(*base)))
    specs = [write(tmp_path / name, photos(*base, *range(at, at + 40))) for name, at in (("a", 1000), ("b", 2000))]
    results = [ingest.run(spec) for spec in specs]
    one, two = (version.run(spec, result.staging) for spec, result in zip(specs, results, strict=True))
    assert (one.dataset, two.dataset) == ("general/v2", "general/v3")
    assert versioning.find("", "general").card.parents == ["general/v2"]
    ledger = versioning.read_ledger(versioning.find("", "general"))
    assert len(ledger.splits) == 140
    check_bytes("general/v2")
    check_bytes("general/v3")
    first = dict(zip(frame_of("general/v2")["sha256"], frame_of("general/v2")["split"], strict=True))
    later = staged(write(tmp_path / "c", photos(*range(1000, 1040), *range(3000, 3060))))
    assert all(first.get(row.sha256, row.split) == row.split for row in later.itertuples())


def test_rows_of_one_patient_that_came_at_once_from_two_sources_stand_on_one_side(home, tmp_path):
    group = {"group": lambda n: f"p{n % 20}"}
    specs = [write(tmp_path / name, photos(*range(at, at + 60), **group)) for name, at in (("a", 1000), ("b", 2000))]
    results = [ingest.run(spec) for spec in specs]
    for spec, result in zip(specs, results, strict=True):
        version.run(spec, result.staging)
    both = pd.concat([frame_of("general/v1"), frame_of("general/v2")])
    assert len(both) == 120 and (both.groupby("group")["split"].nunique() == 1).all()


def test_a_shard_that_was_damaged_in_staging_is_never_pushed(home, tmp_path):
    spec = write(tmp_path / "a", photos(*range(40)))
    result = ingest.run(spec)
    (shard,) = (Path(result.staging) / "shards").iterdir()
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-600] + b"x" * 600)
    with pytest.raises(ClipftError, match="do not match"):
        version.run(spec, result.staging)
    assert versioning.versions("general") == [] and repository.remote_bytes() == 0
    shard.write_bytes(whole)
    assert version.run(spec, result.staging).dataset == "general/v1"


def test_a_version_whose_parents_bytes_are_gone_is_not_made(home, tmp_path):
    made(write(tmp_path / "a", photos(*range(40))))
    for root in (home / "dvc-remote", home / "datasets" / ".dvc" / "cache"):
        for path in root.rglob("*"):
            if path.is_file() and path.read_bytes()[257:262] == b"ustar":
                path.unlink()
    spec = write(tmp_path / "b", photos(*range(44)))
    result = ingest.run(spec)
    with pytest.raises((ClipftError, TransientError), match="neither in the cache nor in the remote|did not arrive"):
        version.run(spec, result.staging)
    assert [v.tag for v in versioning.versions("general")] == ["general/v1"]


def test_reading_does_not_wait_for_a_push(home, tmp_path, monkeypatch):
    made(write(tmp_path / "a", photos(*range(40))))
    spec = write(tmp_path / "b", photos(*range(44)))
    result = ingest.run(spec)
    pushing, seen = threading.Event(), threading.Event()
    real = objects.push

    def slow(*args):
        pushing.set()
        assert seen.wait(60)
        real(*args)

    monkeypatch.setattr(objects, "push", slow)
    with ThreadPoolExecutor(1) as pool:
        pushed = pool.submit(version.run, spec, result.staging)
        assert pushing.wait(60)
        assert [v.tag for v in versioning.versions("general")] == ["general/v1"]
        assert len(versioning.fetch(versioning.find("", "general")).frame) == 40
        seen.set()
        assert pushed.result().dataset == "general/v2"


# What is stored, and how often ----------------------------------------------------------------------------------------


def test_a_label_that_is_renamed_pushes_no_image(home, tmp_path):
    rows = photos(*range(60))
    one = made(write(tmp_path / "a", rows))
    shards = set(frame_of()["shard"])
    two = made(write(tmp_path / "a", [r | {"label": r["label"].replace("red", "crimson")} for r in rows]))
    assert two.dataset == "general/v2" and set(frame_of()["shard"]) == shards
    assert two.pushed_bytes < one.pushed_bytes / 3  # tables only


def test_an_image_with_five_captions_is_stored_once(home, tmp_path):
    one = made(write(tmp_path / "a", photos(*range(40))))
    rows = [row | {"caption": f"caption {i} of {row['number']}"} for row in photos(*range(40)) for i in range(5)]
    spec = write(tmp_path / "b", rows)
    frame = staged(spec)
    assert len(frame) == 200 and len(frame[["shard", "offset"]].drop_duplicates()) == 40
    assert not list((Path(ingest.run(spec).staging) / "shards").iterdir())  # all lie in the version before
    assert made(spec).pushed_bytes < one.pushed_bytes


def test_the_home_may_have_letters_beyond_ascii(home, tmp_path, monkeypatch):
    from clipft_tasks.core.settings import settings

    monkeypatch.setenv("CLIPFT_HOME", str(tmp_path / "Jörg 東 #1"))
    settings.cache_clear()
    assert made(write(tmp_path / "a", photos(*range(40)))).pushed_bytes > 0
    check_bytes()


# Killed ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_ingest_that_was_killed_decodes_nothing_twice_and_leaves_nothing_behind(home, tmp_path, monkeypatch):
    spec = write(tmp_path / "a", photos(*range(300)))
    code = f"""
import os
from clipft_tasks.data import ingest_pipeline, shards
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import ingest
real, count = shards.Entry.__init__, [0]
def dying(self, *args):
    real(self, *args)
    count[0] += 1
    if count[0] == 290:
        os.kill(os.getpid(), 9)
shards.Entry.__init__ = dying
ingest.run(RunSpec.from_flat({{"domain": "general", "source": {spec.source!r}}}))
"""
    assert fixtures.forkserver.run(code).returncode == -9
    decoded = []
    from clipft_tasks.data import describe

    real = describe._describe_batch
    monkeypatch.setattr(describe, "INLINE", 10_000)
    monkeypatch.setattr(describe, "_describe_batch", lambda images, bits: decoded.extend(images) or real(images, bits))
    result = ingest.run(spec)
    assert result.rows == 300 and len(decoded) <= 60
    assert [p.name for p in (home / "staging").iterdir() if not p.name.endswith(".lock")] == [Path(result.staging).name]

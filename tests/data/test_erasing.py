"""Erasing rows: gone from every byte under home and remote, all others as they were, versions fetched under their tags."""

import json
import os
import random
import shutil
import sqlite3
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import made_image, write_images
from fixtures.errors import refuses

from clipft_tasks.cli.main import main
from clipft_tasks.contracts.drift import Capture, answer_hash
from clipft_tasks.contracts.search import IndexCard
from clipft_tasks.core.settings import settings
from clipft_tasks.data import decoded_cache, known_files, repository, tombstones, versioning
from clipft_tasks.ops import backup
from clipft_tasks.ops import erase as erasing
from clipft_tasks.ops.doctor import machine
from clipft_tasks.search import index
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import ingest, version
from serving.inference.answer_memory import Answer, AnswerMemory

PER_CLASS = 8


def spec_of(table: Path) -> RunSpec:
    return RunSpec.from_flat({"domain": "general", "source": str(table)})


def made(table: Path) -> str:
    return version.run(spec_of(table), ingest.run(spec_of(table)).staging).dataset


def images_of(dataset: versioning.Dataset) -> dict[str, bytes]:
    return {row.key: dataset.image_bytes(row) for row in dataset.frame.itertuples(index=False)}


def rows_of(table: Path) -> pd.DataFrame:
    return pd.read_csv(table, dtype=str, keep_default_na=False)


def prepared(folder: Path) -> None:
    """Three versions, of which the second adds images and the third relabels one; with decoded images and a page."""
    table = write_images(folder / "source", PER_CLASS, groups=True)
    rows = rows_of(table)
    rows.loc[0, "caption"] = "the only one that a 'quoted' caption tells of"
    rows.iloc[:-2].to_csv(table, index=False)
    made(table)
    rows.to_csv(table, index=False)
    made(table)
    rows.loc[0, "label"] = "violet square"
    rows.to_csv(table, index=False)
    made(table)
    indexed(versioning.find("general/v3", ""))
    for number in (1, 3):
        dataset = versioning.fetch(versioning.find(f"general/v{number}", ""))
        decoded_cache.decoded(dataset, dataset.frame, 32, "all", gray_bits=16)


def indexed(found: versioning.Version) -> None:
    """A search index of a version, with made-up embeddings."""
    frame = versioning.read_manifest(found).drop_duplicates("name")
    folder = index.folder_of("general", "1")
    folder.mkdir(parents=True)
    vectors = index.vectors_of("cosine", 8)
    vectors.add(
        np.arange(len(frame), dtype=np.uint64), np.random.default_rng(0).normal(size=(len(frame), 8)).astype(np.float32)
    )
    vectors.save(str(folder / index.VECTORS))
    with closing(sqlite3.connect(folder / index.ROWS)) as db:
        db.execute(index.TABLE)
        rows = enumerate(frame[["name", "label", "caption"]].itertuples(index=False))
        db.executemany("insert into row values (?, ?, ?, ?)", [(number, *row) for number, row in rows])
        db.commit()
    card = {"domain": "general", "version": "1", "source": found.tag, "similarity": "cosine", "dimensions": 8}
    about = IndexCard(**card, rows=len(frame), made=0.0)
    (folder / index.CARD).write_text(about.model_dump_json())


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("CLIPFT_")]:
            patch.delenv(name)
        patch.setenv("CLIPFT_HOME", str(folder / "home"))
        patch.setattr(known_files, "SETTLED", -60.0)  # so that files made now are remembered
        settings.cache_clear()
        prepared(folder)
    settings.cache_clear()
    return folder


def copied(three: Path, home: Path) -> None:
    """A copy of the three versions in another home; remote and repository lie under it."""
    shutil.copytree(three / "home", home, symlinks=True)
    for config in (home / "datasets" / ".dvc").glob("config*"):
        config.write_text(config.read_text().replace(str(three / "home"), str(home)))
    repository.git(home / "datasets", "commit", "--quiet", "--all", "--message", "the remote is another folder")


@pytest.fixture
def installation(three: Path, home: Path) -> Path:
    copied(three, home)
    return home


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPFT_SERVER_URL", "http://127.0.0.1:9")


class Traces:
    """Whatever tells of some rows, to be found in bytes."""

    def __init__(self, keys_or_names: list[str]) -> None:
        frames = [versioning.read_manifest(v) for v in versioning.versions("general")]
        every = pd.concat(frames)
        images = set(every.loc[every["name"].isin(keys_or_names), "sha256"])
        gone, left = every[every["sha256"].isin(images)], every[~every["sha256"].isin(images)]
        self.images, self.bytes = images, []
        for v in versioning.versions("general"):
            dataset = versioning.fetch(v)
            for row in dataset.frame[dataset.frame["sha256"].isin(images)].itertuples():
                self.bytes.append(dataset.image_bytes(row))
                array = decoded_cache.Decoded(dataset, dataset.frame[dataset.frame["key"] == row.key], 32, "crop", 16, False, 1)
                self.bytes.append(array.take(np.array([0])).numpy().tobytes()[:512])
        words = {*gone["key"], *images}
        words |= {w for c in ("name", "caption", "group", "label", "phash") for w in set(gone[c]) - set(left[c]) if w}
        self.words = sorted(words)

    def found_in(self, *folders: Path) -> list[str]:
        """Each place that still holds one, compressed tables too."""
        found = []
        for path in (p for folder in folders for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
            content = path.read_bytes()
            if content[:4] == b"PAR1":
                content += pd.read_parquet(path).to_csv().encode()
            found += [f"{path}: {w}" for w in self.words if w.encode() in content]
            found += [f"{path}: bytes" for b in self.bytes if b in content]
        objects = repository.git_bytes(settings().working_copy, "cat-file", "--batch-all-objects", "--batch")
        return found + [f"git: {w}" for w in self.words if w.encode() in objects]


def run(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["erase", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def all_images() -> dict[str, dict[str, bytes]]:
    return {v.tag: images_of(versioning.fetch(v)) for v in versioning.versions("general")}


NAME = "red-000.png"


def test_a_row_is_gone_from_every_byte_and_all_others_are_as_they_were(installation, three):
    traces, before = Traces([NAME]), all_images()
    splits = {v.tag: versioning.read_manifest(v).set_index("key")["split"] for v in versioning.versions("general")}
    page = installation / "runs" / "x" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text(f"<td>{NAME}, red-0001.png</td><td>the only one that a &#39;quoted&#39; caption tells of</td>")
    assert len(traces.found_in(installation)) > 10 and any("-files.db" in place for place in traces.found_in(installation))

    shown = run("--row", NAME, "--dry-run")
    assert "1 images would be erased" in shown and "general/v1 (1), general/v2 (1), general/v3 (1)" in shown
    assert all_images() == before and "pass" not in shown

    done = run("--row", NAME, "--yes")
    assert "DVC remote" in done and not traces.found_in(installation)
    assert "red-0001.png" in page.read_text() and "(erased)" in page.read_text()
    assert index.opened("general", "1").has([NAME, "red-001.png"]) == 1
    after = all_images()
    gone = {key for images in before.values() for key in images} - {key for images in after.values() for key in images}
    assert list(after) == list(before) and len(gone) == 2  # the row, and the row with another label
    for tag, images in before.items():
        assert after[tag] == {key: data for key, data in images.items() if key not in gone}
        now = versioning.find(tag, "")
        assert (now.card.erased, now.card.rows) == (1, len(after[tag]))
        frame = versioning.read_manifest(now).set_index("key")["split"]
        assert frame.equals(splits[tag].drop(list(gone & set(splits[tag].index))))
        assert not traces.images & set(versioning.read_ledger(now).frame["sha256"])
    [erasure] = tombstones.Tombstones.of("general").erasures
    assert erasure.rows == dict.fromkeys(before, 1) and len(erasure.images) == 1 and erasure.chosen == ["row"]
    assert set(erasure.revisions) == set(before)
    shutil.rmtree(installation / "cache")  # from the remote alone
    assert all_images() == after


def test_what_was_erased_is_passed_over_when_its_source_comes_again(installation, three):
    run("--group", "red-0", "--yes")
    erased = tombstones.Tombstones.of("general")
    assert len(erased.erasures[0].images) == 4 and len(erased.erasures[0].groups) == 1
    table = three / "source" / "images.csv"
    again = ingest.run(spec_of(table))
    card = json.loads((Path(again.staging) / "datacard.json").read_text())
    assert card["account"]["passed_over"] == {"erased before": 4} and not again.rejected
    # another image of the group, and one of no group
    made_image("red", 500).save(three / "source" / "new.png")
    rows = rows_of(table)
    new = [{"image": "new.png", "caption": "new", "label": "red square", "group": "red-0"}]
    more = table.with_name("more.csv")
    pd.concat([rows, pd.DataFrame(new)]).to_csv(more, index=False)
    assert ingest.run(spec_of(more)).rows == 2 * PER_CLASS - 4
    tag = made(more)
    assert not Traces(["red-000.png", "new.png"]).images and tag == "general/v3"  # what it says is what v3 says now


def test_rows_that_were_staged_before_do_not_come_back(installation, three, tmp_path):
    rows = rows_of(three / "source" / "images.csv")
    made_image("blue", 700).save(three / "source" / "late.png")
    late = [{"image": "late.png", "caption": "late", "label": "blue square", "group": ""}]
    everything, others = three / "source" / "everything.csv", three / "source" / "others.csv"
    pd.concat([rows, pd.DataFrame(late)]).to_csv(everything, index=False)
    pd.concat([rows[rows["image"] != NAME], pd.DataFrame(late)]).to_csv(others, index=False)
    staged = [ingest.run(spec_of(table)).staging for table in (everything, others)]
    kept = tmp_path / "kept"
    shutil.copytree(staged[0], kept)
    run("--row", NAME, "--yes")
    assert not Path(staged[0]).exists() and Path(staged[1]).exists()
    shutil.copytree(kept, staged[0])  # as if its ingest had ended just now
    with refuses("dataset.erased_rows"):
        version.run(spec_of(everything), staged[0])
    made_now = version.run(spec_of(others), staged[1])  # its rows lie in other shards than when they were staged
    dataset = versioning.fetch(versioning.find(made_now.dataset, ""))
    assert len(images_of(dataset)) == 2 * PER_CLASS and NAME not in set(dataset.frame["name"])


def test_a_request_goes_with_its_captures_and_the_rows_they_became(installation, three):
    answer = "some-answer/1"
    capture = Capture(
        id=f"{answer_hash(answer)}-0", request=answer_hash(answer), domain="general", version="1", time=1.0, predicted="red square",
        confidence=0.5, novelty=0.1, why="random", sha256="", label="red square",
    )  # fmt: skip
    place = installation / "captures" / "general" / capture.id
    place.parent.mkdir(parents=True)
    made_image("red", 900).save(place.with_suffix(".png"))
    place.with_suffix(".png").rename(place.with_suffix(".image"))
    place.with_suffix(".json").write_text(capture.model_dump_json())
    shutil.copy(place.with_suffix(".image"), three / "source" / "sent.png")
    memory = AnswerMemory(installation / "answers.db")
    memory.remember(answer, Answer("general", "1", ["red square"]))
    memory.remember("another", Answer("general", "1", ["red square"]))
    memory.close()
    row = [{"image": "sent.png", "caption": "as it was sent", "label": "red square", "group": ""}]
    with_it = three / "source" / "with_it.csv"
    pd.concat([rows_of(three / "source" / "images.csv"), pd.DataFrame(row)]).to_csv(with_it, index=False)
    assert made(with_it) == "general/v4"
    traces = Traces(["sent.png"])
    with refuses("erase.not_found"):
        erasing.look(erasing.Choice(requests=("mistyped",)))
    run("--request", answer, "--image", str(three / "source" / "sent.png"), "--yes")
    assert not traces.found_in(installation) and not list(place.parent.iterdir())
    left = AnswerMemory(installation / "answers.db")
    assert left.get(answer) is None and left.get("another")
    left.close()


def test_what_is_nowhere_and_what_is_named_by_nothing_is_refused(installation):
    before = all_images()
    for choice in (erasing.Choice(rows=("red-999.png",)), erasing.Choice(groups=("",)), erasing.Choice(groups=("nobody",))):
        with refuses("erase.not_found"):
            erasing.erase(choice)
    assert all_images() == before and not erasing.unfinished()


def test_another_machine_loses_its_copies_when_it_next_fetches_and_the_origin_has_the_new_history(home, tmp_path, monkeypatch):
    origin, table = tmp_path / "origin.git", write_images(tmp_path / "source", 4)
    tmp_path.joinpath("origin.git").mkdir()
    repository.git(origin, "init", "--quiet", "--bare", "--initial-branch", "main")

    def become(name: str) -> Path:
        places = {"HOME": tmp_path / name, "DATA_REPO": f"file://{origin}", "DVC_REMOTE": tmp_path / "store"}
        for variable, place in places.items():
            monkeypatch.setenv(f"CLIPFT_{variable}", str(place))
        settings.cache_clear()
        return tmp_path / name

    become("a")
    made(table)
    rows_of(table).iloc[:-1].to_csv(table, index=False)
    made(table)
    become("b")
    traces, before = Traces([NAME]), all_images()
    held = versioning.find("general/v1", "")
    become("a")
    run("--row", NAME, "--yes")
    after = all_images()
    assert {tag: len(images) for tag, images in after.items()} == {tag: len(images) - 1 for tag, images in before.items()}
    b = become("b")
    assert traces.found_in(b)
    assert all_images() == after
    assert len(versioning.fetch(held).frame) == len(after["general/v1"])  # looked up before it was erased
    assert not traces.found_in(tmp_path / "a", b, tmp_path / "store", origin / "refs")
    made(table)  # the source's row is passed over, and nothing is new
    assert [v.number for v in versioning.versions("general")] == [1, 2]


def test_backups_that_hold_the_rows_are_named_and_deleted_when_asked(installation, tmp_path):
    within, elsewhere, old = installation / "backups" / "weekly", tmp_path / "disk" / "copy", tmp_path / "disk" / "old"
    for folder in (within, elsewhere):
        backup.make_backup(folder)
    shutil.copytree(elsewhere, old)  # one of before there were any versions
    shutil.rmtree(old / "dvc-remote")
    first = repository.git(installation / "datasets", "rev-list", "--max-parents=0", "main")
    repository.git(installation / "datasets", "branch", "first", first)
    repository.git(installation / "datasets", "bundle", "create", str(old / "datasets.bundle"), "first")
    repository.git(installation / "datasets", "branch", "-D", "first")

    traces = Traces([NAME])
    assert f"Backup {within}, made " in run("--row", NAME, "--dry-run")
    done = run("--row", NAME, "--yes")
    assert f"Backup {within}, made " in done and "files with erased images" in done and str(elsewhere) not in done
    [erasure] = tombstones.Tombstones.of("general").erasures
    while datetime.now(UTC).isoformat(timespec="seconds") <= erasure.at:  # they say when to the second
        time.sleep(0.05)
    backup.make_backup(new := installation / "backups" / "new")
    told = run("--backups", str(tmp_path / "disk"))
    assert str(within) in told and str(elsewhere) in told and str(old) not in told and str(new) not in told
    (elsewhere / "datasets.bundle").unlink()
    shutil.rmtree(elsewhere / "captures", ignore_errors=True)  # killed while it was deleted
    assert "2 backups were deleted" in run("--backups", str(tmp_path / "disk"), "--prune-backups", "--yes")
    assert not within.exists() and not elsewhere.exists() and new.exists() and old.exists()
    assert not traces.found_in(installation, tmp_path / "disk")
    assert run("--backups", str(tmp_path / "disk"), "--prune-backups", "--yes") == "No backup holds erased rows.\n"


class Killed(BaseException):
    pass


class Steps:
    """Counts what changes files, and from one of these steps on lets none happen: nothing cleans up after SIGKILL."""

    def __init__(self, patch: pytest.MonkeyPatch, last: int = 10**9) -> None:
        self.last, self.count = last, 0
        patch.setattr(repository, "git_bytes", self.counted(repository.git_bytes))
        for name in ("replace", "link", "unlink", "rename", "remove", "rmdir"):
            patch.setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, real):
        def call(*args, **kwargs):
            self.count += 1
            if self.count > self.last:
                raise Killed
            return real(*args, **kwargs)

        return call


@pytest.mark.slow
def test_whenever_it_is_killed_versions_are_as_before_or_as_after_and_the_next_call_finishes(three, home, monkeypatch):
    def begin() -> None:
        shutil.rmtree(home, ignore_errors=True)
        copied(three, home)

    begin()
    traces, before, choice = Traces([NAME]), all_images(), erasing.Choice(rows=(NAME,))
    begin()
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch)
        erasing.erase(choice)
    after = all_images()
    assert before != after
    seen = set()
    for moment in sorted(random.Random(14).sample(range(1, steps.count), 20)):
        begin()
        with (
            pytest.MonkeyPatch.context() as patch,
            suppress(Killed),
        ):  # git packs at times, so the last steps are not always there
            Steps(patch, moment)
            erasing.erase(choice)
        now = all_images()
        assert now in (before, after), moment
        seen.add(now == after)
        if erasing.unfinished():
            assert machine.erasures()[0] == "wrong"
            run()
            assert all_images() == after, moment
        if all_images() == after:
            assert not traces.found_in(home), moment
        assert not erasing.unfinished() and machine.erasures()[0] == "none"
    assert seen == {True, False}

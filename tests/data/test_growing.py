"""Versions that grow by little: what they store anew, small shards and parts put together, and versions of an earlier release."""

import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import made_image, write_images

from clipft_tasks.core.settings import settings
from clipft_tasks.data import compaction, erased_copies, manifest, objects, repository, tables, versioning
from clipft_tasks.ops import erase
from clipft_tasks.stages import ingest, version
from data.conftest import PER_CLASS, spec_of


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_images(tmp_path / "source", PER_CLASS)


def rows_of(table: Path) -> pd.DataFrame:
    return pd.read_csv(table, dtype=str, keep_default_na=False)


def made(table: Path) -> versioning.Version:
    return versioning.find(version.run(spec_of(table), ingest.run(spec_of(table)).staging).dataset, "")


def added(table: Path, number: int) -> versioning.Version:
    """A version with one image more."""
    made_image("red", 1000 + number).save(table.parent / f"more-{number}.png")
    rows = rows_of(table)
    rows.loc[len(rows)] = [f"more-{number}.png", f"more, number {number}", "red square", *[""] * (len(rows.columns) - 3)]
    rows.to_csv(table, index=False)
    return made(table)


def stored(home: Path) -> set[Path]:
    return {path for path in (home / "dvc-remote").rglob("*") if path.is_file()}


def kinds(files: set[Path]) -> list[str]:
    """What stored files are: a list, a table or a shard."""
    heads = [(path.suffix, path.read_bytes()[:300]) for path in files]
    return sorted("list" if suffix == ".dir" else "table" if head[:4] == b"PAR1" else "shard" for suffix, head in heads)


def images(found: versioning.Version) -> dict[str, bytes]:
    dataset = versioning.fetch(found)
    return {row.key: dataset.image_bytes(row) for row in dataset.frame.itertuples(index=False)}


def test_a_version_stores_what_is_new_and_a_label_stores_no_image(home, table, monkeypatch):
    monkeypatch.setattr(tables, "FULL", 8)
    first = made(table)
    before = stored(home)
    assert kinds(before) == ["list"] * 2 + ["shard"] + ["table"] * 3  # 24 rows
    added(table, 1)
    after = stored(home)
    assert kinds(after - before) == ["list", "list", "shard", "table"]
    rows = rows_of(table)
    rows.loc[3, "label"] = "violet square"
    rows.to_csv(table, index=False)
    third = made(table)
    assert "shard" not in kinds(stored(home) - after) and kinds(stored(home) - after).count("table") <= 2
    assert images(first).keys() - images(third).keys() and len(images(third)) == len(images(first)) + 1
    assert versioning.read_manifest(third)["label"].value_counts()["violet square"] == 1


def test_rows_that_went_stay_in_the_ledger_and_keep_their_split_when_they_come_back(home, table):
    first = made(table)
    was = versioning.read_manifest(first)
    rows = rows_of(table)
    rows.iloc[:-3].to_csv(table, index=False)
    second = made(table)
    repo = repository.latest()
    assert tables.FORMER not in tables.stored(repo, first.revision, "general")
    assert tables.FORMER in tables.stored(repo, second.revision, "general")
    ledger = versioning.read_ledger(second)
    assert ledger.splits == dict(zip(was["sha256"], was["split"], strict=True)) and len(ledger.frame) == len(was)
    rows.to_csv(table, index=False)
    third = made(table)
    pd.testing.assert_frame_equal(versioning.read_manifest(third)[["key", "split"]], was[["key", "split"]])
    assert tables.FORMER not in tables.stored(repo, third.revision, "general")


def test_many_small_shards_are_put_together_and_every_version_is_what_it_was(home, table, monkeypatch):
    monkeypatch.setattr(compaction, "MOST_SMALL", 2)
    every = [made(table), *(added(table, number) for number in range(4))]
    counts = [versioning.read_manifest(each)["shard"].nunique() for each in every]
    assert counts == [1, 2, 1, 2, 1]
    seen = [images(each) for each in every]
    assert [len(each) for each in seen] == [24, 25, 26, 27, 28]
    assert all(older.items() <= newer.items() for older, newer in itertools.pairwise(seen))
    whole = versioning.fetch(every[-1])
    erase.erase(erase.Choice(rows=("more-0.png",)))
    (gone,) = seen[1].keys() - images(versioning.find("general/v2", "")).keys()
    assert [len(images(each)) for each in versioning.versions("general")] == [24, 24, 25, 26, 27]
    holding = {whole.frame.set_index("key").loc[gone, "sha256"]}.__contains__
    for path in [*stored(home), *(home / "cache" / "shards").glob("*.tar")]:
        with path.open("rb") as content:
            assert not erased_copies.holds(content, holding), path


def as_before(tag: str) -> None:
    """Store a version as the release before did: a file a table, the ledger whole, a card of format 2."""
    found = versioning.find(tag, "")
    repo, home = settings().working_copy, settings().working_copy / "general"
    rows, ledger = versioning.read_manifest(found), versioning.read_ledger(found)
    work = settings().folder("before")
    manifest.write(rows, work / "manifest.parquet")
    ledger.frame.to_parquet(work / "splits.parquet")
    for folder in ("manifest", "former"):
        (home / f"{folder}.dvc").unlink(missing_ok=True)
    with repository.dvc(repo, "add") as dvc:
        kept = {name: objects.add(dvc, work / name) for name in ("manifest.parquet", "splits.parquet")}
        objects.push(dvc, kept.values())
    for name, file in kept.items():
        (home / f"{name}.dvc").write_text(objects.pointer(name, file))
    card = json.loads((home / "datacard.json").read_text()) | {"format": 2}
    (home / "datacard.json").write_text(json.dumps(card))
    repository.git(repo, "add", "--all", "general")
    repository.git(repo, "commit", "--quiet", "--amend", "--no-edit")
    repository.git(repo, "tag", "--annotate", "--force", tag, "--message", "{}")


def test_versions_of_the_release_before_are_read_continued_compared_and_erased_from(home, table):
    rows = rows_of(table)
    rows.iloc[:-1].to_csv(table, index=False)
    made(table)
    expected = images(versioning.find("general/v1", "")), versioning.read_ledger(versioning.find("general/v1", ""))
    as_before("general/v1")
    first = versioning.find("general/v1", "")
    assert first.card.format == 3 and images(first) == expected[0]
    pd.testing.assert_frame_equal(versioning.read_ledger(first).frame, expected[1].frame)
    assert not version.run(spec_of(table), ingest.run(spec_of(table)).staging).new
    rows.drop(index=[0]).to_csv(table, index=False)
    second = made(table)
    repo = repository.latest()
    there = tables.stored(repo, second.revision, "general")
    assert there[tables.MANIFEST].folder and there[tables.FORMER].folder
    assert len(versioning.read_ledger(second).frame) == len(rows)
    listed = repository.git(repo, "ls-tree", "--name-only", second.revision, "general/").split()
    assert not [name for name in listed if name.endswith(".parquet.dvc")]

    name = rows["image"].iloc[0]  # the first has it in a file, the second knows of it in its ledger
    digest = versioning.read_manifest(first).set_index("name").loc[name, "sha256"]
    erase.erase(erase.Choice(rows=(name,)))
    first, second = versioning.versions("general")
    assert len(images(first)) == len(rows) - 2 and len(images(second)) == len(rows) - 1
    for each in (first, second):
        assert digest not in set(versioning.read_ledger(each).frame["sha256"])

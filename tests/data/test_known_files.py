"""Files that nobody wrote to are not read again, and what comes out is what reading them gives."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import made_image

from clipft_tasks.data import known_files
from clipft_tasks.data.readers import base
from clipft_tasks.stages import ingest, version
from data.conftest import PER_CLASS, rejected, spec_of, taken


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a test has just written are remembered as if it had done so long ago."""
    monkeypatch.setattr(known_files, "SETTLED", -60.0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of images that were read since the list was last cleared."""
    found: list[str] = []
    real = base.read_inside
    monkeypatch.setattr(base, "read_inside", lambda root, name, **more: found.append(name) or real(root, name, **more))
    return found


@pytest.fixture
def versioned(home: Path, images: Path, reads: list[str]) -> Path:
    """The table of a version; `reads` is empty."""
    version.run(spec_of(images), ingest.run(spec_of(images)).staging)
    assert len(reads) == 2 * PER_CLASS
    reads.clear()
    return images


def contents(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("at_once", [0, known_files.AT_ONCE])
def test_only_new_images_are_read_and_the_rows_are_the_same_byte_for_byte(versioned, home, reads, monkeypatch, at_once):
    monkeypatch.setattr(known_files, "AT_ONCE", at_once)
    made_image("red", 500).save(versioned.parent / "more.png")
    with versioned.open("a") as table:
        table.write("more.png,one more,red square,\nred-001.png,another caption of it,red square,\nred-002.png,,blue square,\n")
    quick = ingest.run(spec_of(versioned))
    assert sorted(reads) == ["more.png", "red-001.png", "red-002.png"]  # the latter have other texts, so other keys
    found = contents(quick.staging)
    shutil.rmtree(quick.staging)
    shutil.rmtree(home / "cache" / "described")
    reads.clear()
    plain = ingest.run(spec_of(versioned))
    assert len(reads) == 2 * PER_CLASS + 3 and plain.staging == quick.staging and contents(plain.staging) == found
    assert len([name for name in found if name.startswith("shards/")]) == 1


@pytest.mark.parametrize("how", ["written", "written with its old time", "replaced with its old time"])
def test_a_file_that_was_changed_is_seen(versioned, reads, how):
    path = versioned.parent / "red-003.png"
    before, data = path.stat(), bytearray(path.read_bytes())
    made_image("blue", 700).save(path)
    data, other = path.read_bytes()[: len(data)], bytes(data)
    assert data != other
    path.unlink() if how.startswith("replaced") else None
    path.write_bytes(data.ljust(before.st_size, b"\0"))
    if "old time" in how:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    sha256 = taken(ingest.run(spec_of(versioned))).set_index("name")["sha256"]
    assert reads == ["red-003.png"] and "red-003.png" in sha256.index
    assert path.stat().st_size == before.st_size


def test_a_file_that_was_just_written_is_not_trusted(home, images, reads, monkeypatch):
    monkeypatch.setattr(known_files, "SETTLED", 4.0)
    for _ in range(2):
        version.run(spec_of(images), ingest.run(spec_of(images)).staging)
    assert len(reads) == 4 * PER_CLASS


def test_an_image_that_lies_elsewhere_now_is_refused_as_if_it_were_new(versioned, tmp_path, reads):
    path, away = versioned.parent / "red-004.png", tmp_path / "away.png"
    path.rename(away)
    path.symlink_to(away)
    (versioned.parent / "red-005.png").unlink()
    result = ingest.run(spec_of(versioned))
    refused = rejected(result)
    assert set(refused) == {"red-004.png", "red-005.png"} and "leads outside" in refused["red-004.png"]["reason"]
    assert set(reads) == set(refused)


def test_other_code_or_decoders_read_again(versioned, reads, monkeypatch):
    monkeypatch.setattr(known_files, "_readers", lambda: "another")
    ingest.run(spec_of(versioned))
    assert len(reads) == 2 * PER_CLASS


def test_what_is_damaged_costs_time_only(versioned, home, reads):
    [path] = (home / "cache" / "described").glob("*-files.db")
    path.write_bytes(b"no database" * 1000)
    assert ingest.run(spec_of(versioned)).rows == 2 * PER_CLASS == len(reads)


def test_an_image_that_the_version_does_not_hold_is_read_for_its_bytes(versioned, reads):
    rows = pd.read_csv(versioned, dtype=str, keep_default_na=False)
    rows.iloc[1:].to_csv(versioned, index=False)
    version.run(spec_of(versioned), ingest.run(spec_of(versioned)).staging)
    assert not reads
    rows.to_csv(versioned, index=False)
    assert version.run(spec_of(versioned), ingest.run(spec_of(versioned)).staging).rows == 2 * PER_CLASS
    assert reads == ["red-000.png"]

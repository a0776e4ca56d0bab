"""Light tasks on machines that share no disk: parts, staged rows and versions go by way of a store, and nothing differs."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import write_images
from fixtures import object_store
from fixtures.errors import refuses

from clipft_tasks import tracking
from clipft_tasks.core.settings import settings
from clipft_tasks.data import describe, expectations, pseudonyms, report, staged, versioning
from clipft_tasks.stages import ingest, validate
from clipft_tasks.stages.call import call_stage
from data.conftest import spec_of

PARTS = 5


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A call makes this process one of several machines, with a home of its own."""

    def become(name: str, **more: str) -> Path:
        home = tmp_path / name
        monkeypatch.setenv("CLIPFT_HOME", str(home))
        for key, value in more.items():
            monkeypatch.setenv(key, value)
        settings.cache_clear()
        return home

    yield become
    settings.cache_clear()


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.skipif(sys.platform != "linux", reason="SeaweedFS"))])
def shared(request, tmp_path, monkeypatch, home):
    """Settings that all machines have: a store, and the repository of data sets at an address."""
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch", "main", str(tmp_path / "data.git")], check=True)
    values = {"CLIPFT_DATA_REPO": f"file://{tmp_path}/data.git"}
    if request.param == "folder":
        yield values | {
            "CLIPFT_STAGING": str(tmp_path / "shared" / "staging"),
            "CLIPFT_DVC_REMOTE": str(tmp_path / "shared" / "dvc"),
        }
        return
    with object_store.object_store(tmp_path / "store") as address:
        object_store.client(address).create_bucket(Bucket="data")
        yield values | object_store.environment(address) | {
            "CLIPFT_STAGING": "s3://data/staging", "CLIPFT_DVC_REMOTE": "s3://data/dvc"
        }  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    kept = ("manifest.parquet", "splits.parquet", "datacard.json", "rejected.jsonl", "account.json", "shards/")
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if (name := path.relative_to(folder).as_posix()).startswith(kept)
    }  # fmt: skip


def test_parts_on_either_of_two_machines_give_what_one_machine_gives(machine, shared, tmp_path, monkeypatch, home):
    table = write_images(tmp_path / "source", 12)
    with table.open("a") as lines:
        lines.write("none.png,gone,red square,\nimages.csv,no image,red square,\nred-000.png,another wording,red square,\n")
    spec = spec_of(table)

    machine("alone")
    monkeypatch.setattr(describe, "_cores", lambda: 1)
    alone = ingest.run(spec)
    expected = digests(Path(alone.staging))

    def on(name: str, stage: str, **inputs: object) -> dict:
        machine(name, **shared)
        return json.loads(json.dumps(call_stage(stage, spec, inputs)))  # as XCom hands it on

    decoded = [on("ab"[part % 2], "ingest.part", part=part, of=PARTS) for part in range(PARTS)]
    assert sum(done["images"] for done in decoded) >= 24
    with monkeypatch.context() as patch:
        patch.setattr(describe, "_describe_batch", None)  # whoever reads them all decodes none: not even what is no image
        rows = on("b", "ingest", parts=decoded)
    assert rows["content"] == alone.content and rows["staging"].startswith(shared["CLIPFT_STAGING"])

    machine("a", **shared)
    tables = staged.fetch(rows["staging"], lambda name: not name.startswith("shards/"))
    assert not list(tables.glob("shards/*")) and tables.is_relative_to(tmp_path / "a")
    frame = versioning.manifest.read(tables / "manifest.parquet")
    alike = frame.assign(alike=range(len(frame)))
    assert report.shards_shown(alike, frame.head(0).assign(reason="")) == set(frame["shard"])
    made = on("a", "version", staging=rows["staging"])
    assert digests(tables) == expected
    assert on("b", "version", staging=rows["staging"]) | {"pushed_bytes": 0} == made | {"new": False, "pushed_bytes": 0}

    machine("c", **shared)  # one that saw none of it
    dataset = versioning.fetch(versioning.find(made["dataset"], "general"))
    assert len(dataset.frame) == alone.rows
    assert hashlib.sha256(dataset.image_bytes(dataset.frame.iloc[0])).hexdigest() == dataset.frame["sha256"][0]


def test_checks_in_parts_on_either_of_two_machines_find_what_one_machine_finds(
    machine, shared, tmp_path, home, tiny, monkeypatch
):
    table = write_images(tmp_path / "source", 12)
    with table.open("a") as lines:
        lines.write("red-000.png,a photo of Mr. Miller,red square,\n")
    spec = spec_of(table, **{"model.start": str(tiny), "domain": "medical"})
    found: list[tuple] = []
    monkeypatch.setattr(expectations, "check", lambda frame, *about: found.append((frame, *about)) or [])
    monkeypatch.setattr(tracking, "log_page", lambda *page: "page")

    def on(name: str, stage: str, **inputs: object) -> dict:
        machine(name, **shared)
        return json.loads(json.dumps(call_stage(stage, spec, inputs)))

    rows = on("a", "ingest")["staging"]
    on("a", "validate", staging=rows)
    parts = [on("ab"[part % 2], "validate.part", staging=rows, part=part, of=PARTS) for part in range(PARTS)]
    with monkeypatch.context() as patch:
        patch.setattr(validate, "_look", None)  # nothing is left to find out
        on("b", "validate", staging=rows, parts=parts)
    lost = parts[3] | {"found": "0" * 32 + ".json"}
    on("a", "validate", staging=rows, parts=[lost, *parts[:2]])
    (alone, *about), *others = found
    assert alone["names_somebody"].sum() == 1 and (alone["tokens"] > 0).all()
    for frame, *same in others:
        pd.testing.assert_frame_equal(frame, alone)
        assert same == about


def test_a_part_that_was_lost_costs_time_and_nothing_else(machine, tmp_path, home):
    spec = spec_of(write_images(tmp_path / "source", 6))
    machine("alone")
    alone = digests(Path(ingest.run(spec).staging))
    machine("other")
    done = ingest.part(spec, 0, 2)
    (settings().root / "staging" / "parts" / done.described).unlink()
    found = ingest.run(spec, parts=[done, done.model_copy(update={"described": "../../secrets.json"})])
    assert digests(Path(found.staging)) == alone


def test_what_was_handed_over_elsewhere_or_is_gone_is_said(machine, tmp_path, home):
    here = ingest.run(spec_of(write_images(tmp_path / "source", 6))).staging
    machine("a", CLIPFT_STAGING=str(tmp_path / "shared"))
    for gone in (here, f"{tmp_path}/shared/general-1", f"{tmp_path}/shared/../x", "s3://elsewhere/general-1"):
        with refuses("dataset.not_staged", gone):
            staged.fetch(gone)
    machine("b", CLIPFT_STAGING="")
    with refuses("dataset.not_staged", "CLIPFT_STAGING"):
        staged.fetch("s3://data/staging/general-1")


def test_machines_share_a_key_of_pseudonyms_or_refuse_to_make_one_each(machine, tmp_path, home):
    machine("a", CLIPFT_STAGING=str(tmp_path / "shared"))
    with refuses("pseudonyms.no_key", "CLIPFT_PSEUDONYMS_KEY"):
        pseudonyms.pseudonym("1")
    (tmp_path / "key").write_bytes(bytes(range(32)))
    found = set()
    for name in "ab":
        machine(name, CLIPFT_STAGING=str(tmp_path / "shared"), CLIPFT_PSEUDONYMS_KEY=str(tmp_path / "key"))
        found.add(pseudonyms.pseudonym("1"))
    assert len(found) == 1

"""A version's croissant.json: valid to mlcroissant, and its records load from a clone with its bytes beside it."""

import json
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
from conftest import write_images
from fixtures.errors import refuses

from clipft_tasks.core.settings import settings
from clipft_tasks.data import croissant, versioning
from clipft_tasks.spec import RunSpec
from clipft_tasks.spec.licenses import canonical_license
from clipft_tasks.stages import ingest, version


def test_records_load_from_a_clone_by_mlcroissant(home, tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    about = {"data.license": "cc-by-4.0", "data.origin": "our line 3, „Übergabe“", "data.consent": "contract 12"}
    spec = RunSpec.from_flat({"domain": "general", "source": str(write_images(tmp_path / "source", 6)), **about})
    version.run(spec, ingest.run(spec).staging)
    found = versioning.find("", "general")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--branch", found.tag, str(settings().working_copy), str(clone)], check=True)
    file = clone / "general" / croissant.FILE
    said = json.loads(file.read_text("utf-8"))
    assert (said["license"], said["rai:dataCollection"], said["usageInfo"], said["version"]) == (
        "https://spdx.org/licenses/CC-BY-4.0", about["data.origin"], about["data.consent"], "1.1.0",
    )  # fmt: skip

    dataset = versioning.fetch(found)
    (file.parent / "shards").mkdir()
    for name in set(dataset.frame["shard"]):
        shutil.copy(dataset.folder / name, file.parent / "shards" / name)
    shutil.copytree(settings().folder("cache", "datasets", "general", "parts"), file.parent / "manifest")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = mlcroissant.Dataset(jsonld=str(file))
        assert not loaded.metadata.ctx.issues.errors
        rows, pairs = list(loaded.records("rows")), list(loaded.records("pairs"))
    expected = dataset.frame.set_index("key")
    assert {row["rows/key"].decode(): row["rows/label"].decode() for row in rows} == expected["label"].to_dict()
    assert len(pairs) == len(expected) and all(pair["pairs/image"].size == (48, 48) for pair in pairs)
    assert {pair["pairs/key"].decode(): pair["pairs/sha256"].decode() for pair in pairs} == expected["sha256"].to_dict()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("mit", "MIT"), ("apache-2.0 or MIT", "Apache-2.0 OR MIT"), ("LicenseRef-hospital", "LicenseRef-hospital"), ("", ""),
        ("in-house", "in-house"), ("for  research\nonly, see §3", "for research only, see §3"), ("https://x.org/license2", "https://x.org/license2"),
    ],
)  # fmt: skip
def test_a_license_is_spelled_as_spdx_does_or_a_sentence(text, kept):
    assert canonical_license(text) == kept


@pytest.mark.parametrize("text", ["CC-BY-4", "GPLv3", "cc0"])
def test_what_reads_like_an_identifier_and_is_none_is_refused(text):
    with refuses("spec.invalid", "data.license", "spdx.org"):
        RunSpec.from_flat({"domain": "general", "data.license": text})


def test_whatever_a_license_or_domain_says_is_json(home):
    from fixtures.datasets import a_version

    card = a_version(license='"quoted" </script> نص', counts={"train": 1}).card
    assert (
        json.loads(croissant.describe(card, 1, croissant.StoredTable("manifest", {}, croissant.StoredFile("0" * 32)), {}))[
            "license"
        ]
        == card.license
    )
    assert Path(croissant.FILE).suffix == ".json"

"""Erasing rows that models were made of: gone from MLflow's pages, tables and packages; the models are named and still verify."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from fixtures.live_server import package, trained, use

from clipft_tasks import tracking
from clipft_tasks.cli.main import main
from clipft_tasks.core.settings import settings
from clipft_tasks.data import versioning
from clipft_tasks.drift.reference import Reference
from clipft_tasks.model.package import read_recorded_answers, weights_digest
from clipft_tasks.ops import backup as backups
from clipft_tasks.ops import restore as restoring

pytestmark = pytest.mark.slow


@pytest.fixture
def there(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of its own with two registered versions; artifacts lie under it."""
    use(trained(base), monkeypatch)
    backups.backup(tmp_path / "backup")
    use(tmp_path / "home", monkeypatch)
    monkeypatch.setenv("CLIPFT_SERVER_URL", "http://127.0.0.1:9")
    restoring.restore(tmp_path / "backup")
    only_known(tmp_path / "home" / "mlflow" / "artifacts")
    yield tmp_path / "home"
    settings.cache_clear()


def only_known(artifacts: Path) -> None:
    """Without what other tests logged from homes whose registry was a copy of this one: no registry knows of it here."""
    client = tracking.client()
    experiments = [e.experiment_id for e in client.search_experiments()]
    known = {run.info.run_id for run in client.search_runs(experiments)}
    known |= {model.model_id for model in client.search_logged_models(experiments)}
    for folder in (*artifacts.glob("*/*"), *artifacts.glob("*/models/*")):
        if folder.name != "models" and folder.name not in known:
            shutil.rmtree(folder)


def spoken_of(home: Path, words: set[str]) -> list[str]:
    found = []
    for path in (p for p in home.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += pd.read_parquet(path).to_csv().encode()
        found += [f"{path}: {word}" for word in words if word.encode() in content]
    return found


def test_rows_leave_reports_and_packages_and_the_models_that_saw_them_are_named(there):
    for number in ("1", "2"):  # as `register` leaves them
        digests = json.dumps(tracking.digests(package(number)))
        tracking.client().set_model_version_tag("clipft-general", number, tracking.DIGESTS, digests)
    before = {n: (read_recorded_answers(package(n)), Reference.load(package(n))) for n in ("1", "2")}
    frame = versioning.read_manifest(versioning.find("", "general"))
    held_out = frame[frame["split"] == "val"]
    test = frame[frame["split"] == "test"]
    gone = pd.concat(
        [held_out.iloc[:1], test.iloc[:1], frame[frame["split"] == "train"].iloc[:1]]
    )  # the first answers are of `val`
    words = {*gone["key"], *gone["sha256"], *gone["name"]}
    stale = package("2")
    assert any("rows.parquet" in where for where in spoken_of(there, words))
    assert any("reference.json" in where for where in spoken_of(there, words))

    arguments = [part for key in gone["key"] for part in ("--row", key)]
    shown = CliRunner().invoke(main, ["erase", *arguments, "--dry-run"], catch_exceptions=False)
    assert "Model clipft-general/1 (champion" in shown.output and "learned from 1 of the rows" in shown.output
    assert before["1"][0] == read_recorded_answers(package("1"))
    done = CliRunner().invoke(main, ["erase", *arguments, "--yes", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    account = json.loads(done.stdout)
    assert {m["model"] for m in account["models"]} == {"clipft-general/1", "clipft-general/2"}
    assert all("packed again" in m["packed"] and m["rows"] == {"train": 1, "val": 1, "test": 1} for m in account["models"])
    assert not spoken_of(there, words)
    assert not stale.exists()
    for number in ("1", "2"):
        recorded, reference = read_recorded_answers(package(number)), Reference.load(package(number))
        assert len(recorded.images) == len(before[number][0].images) - 1
        assert recorded.similarity == before[number][0].similarity[1:]
        left = [image for image in before[number][1].facts.images if image not in words]
        assert reference.facts.images == left and len(reference.rows) == len(left) == len(reference.paired)
        assert reference.limits == before[number][1].limits
        known = json.loads(tracking.resolve_version(f"models:/clipft-general/{number}").tags[tracking.DIGESTS])
        assert known["recorded_answers.json"] == weights_digest(package(number) / "recorded_answers.json")


def test_a_run_at_work_on_the_rows_holds_them(there):
    run = tracking.get_or_create_run("general", "at work", "at work", {"clipft.dataset": "general/v1"})
    key = versioning.read_manifest(versioning.find("", "general"))["key"].iloc[0]
    said = CliRunner().invoke(main, ["erase", "--row", key, "--yes"])
    assert said.exit_code == 1 and run.info.run_id in said.output and said.output.rstrip().endswith("[erase.in_use]")
    assert key in set(versioning.read_manifest(versioning.find("", "general"))["key"])

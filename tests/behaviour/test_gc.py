"""What gc removes and what it never touches, on a real registry; nothing goes without --yes."""

import json
import os
import sqlite3
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from filelock import FileLock
from fixtures.live_server import package, trained, use

from clipft_tasks import tracking
from clipft_tasks.cli.main import main
from clipft_tasks.core.settings import settings
from clipft_tasks.data import versioning
from clipft_tasks.data.describe import RULES
from clipft_tasks.ops import backup as backups
from clipft_tasks.ops import gc
from clipft_tasks.ops import restore as restoring
from clipft_tasks.ops.gc import airflow as gc_airflow

LONG_AGO = time.time() - 100 * gc.DAY


@pytest.fixture(scope="module")
def kept(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gc") / "backup"
    with pytest.MonkeyPatch.context() as patch:
        use(trained(base), patch)
        backups.backup(folder)
    settings.cache_clear()
    return folder


@pytest.fixture
def there(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of its own with two registered versions, every run of which ended long ago."""
    home = tmp_path / "home"
    use(home, monkeypatch)
    restoring.restore(kept)
    age_runs(home)
    yield home
    settings.cache_clear()


def age_runs(home: Path) -> None:
    then = int(LONG_AGO * 1000)
    with sqlite3.connect(home / "mlflow/mlflow.db", timeout=30) as db:
        db.execute("update runs set start_time = ?, end_time = ?", (then, then))


def age(path: Path) -> None:
    for p in (*path.rglob("*"), path):
        os.utime(p, (LONG_AGO, LONG_AGO))


def a_run(status: str, domain: str = "general", **tags: str) -> str:
    """A run with a model of ten thousand bytes."""
    key = f"key-{time.monotonic_ns()}"
    run = tracking.get_or_create_run(domain, key, "made for this test", {"clipft.start": "starter", **tags})
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_bytes(b"w" * 10_000)
    if status != "RUNNING":
        tracking.finish_run(run.info.run_id, status)
    return str(run.info.run_id)


def record_run(home: Path, dag: str, state: str) -> None:
    """The one run that Airflow's database knows."""
    (home / "airflow").mkdir(exist_ok=True)
    with sqlite3.connect(home / "airflow" / "airflow.db") as db:
        db.execute("create table if not exists dag_run (dag_id, state, start_date)")
        db.execute("delete from dag_run")
        db.execute("insert into dag_run values (?, ?, '2099-01-01')", (dag, state))


def everything(home: Path) -> dict[str, int]:
    return {str(p): p.stat().st_size for p in home.rglob("*") if p.is_file() and p.suffix not in (".lock", ".db")}


def exists(run_id: str) -> bool:
    return any(
        r.info.run_id == run_id
        for r in tracking.client().search_runs([tracking.get_or_create_experiment("clipft-general")], run_view_type=3)
    )


def test_nothing_of_a_version_goes_however_old_and_it_is_served_from_as_before(there):
    versioning.fetch(versioning.find("", "general"))
    for cached in ("models", "shards"):
        (there / "cache" / cached).mkdir(parents=True, exist_ok=True)
    found = gc.find()
    assert found.items == []
    package("1"), package("2")
    age(there / "cache" / "models")
    age(there / "cache" / "shards")
    done = gc.clear(gc.find())
    assert set(done.removed) == {"caches"} and not done.failed
    for version in ("1", "2"):
        assert (package(version) / "card.json").exists()  # fetched again
    assert len(versioning.fetch(versioning.find("general/v1", "general")).frame) == 80


def test_old_candidates_and_failures_go_with_their_files_and_the_space_comes_back(there):
    old = [a_run("FINISHED"), a_run("FAILED"), a_run("KILLED")]
    age_runs(there)
    young = a_run("FAILED")
    running = a_run("RUNNING")
    with sqlite3.connect(there / "mlflow/mlflow.db", timeout=30) as db:
        db.execute("update runs set start_time = ? where run_uuid = ?", (int(LONG_AGO * 1000), running))
    before = everything(there)

    shown = CliRunner().invoke(main, ["gc"], catch_exceptions=False)
    assert shown.exit_code == 0 and "`clipft gc --yes` removes them" in shown.output
    assert all(run in shown.output for run in old) and young not in shown.output
    assert f"run {running}" in shown.output and "says that it is running" in shown.output
    assert "no version is made of it" in shown.output and "9.8 KiB" in shown.output
    assert everything(there) == before  # a dry run

    done = CliRunner().invoke(main, ["gc", "--yes"], catch_exceptions=False)
    assert done.exit_code == 0 and "29.3 KiB came back" in done.output
    assert [exists(run) for run in (*old, young, running)] == [False] * 3 + [True] * 2
    assert sum(before.values()) - sum(everything(there).values()) == 30_000
    assert tracking.champions() == {"general": "1"}


def test_what_a_version_was_made_from_stays_with_everything_that_this_names_in_turn(there):
    first = a_run("FINISHED")
    second = a_run("FINISHED", **{"mlflow.parentRunId": first})
    third = a_run("FINISHED", **{"clipft.start": f"runs:/{second}/model"})
    other = a_run("FINISHED")
    age_runs(there)
    tracking.client().create_model_version("clipft-general", f"runs:/{third}/model", third)
    assert {i.what.split()[1] for i in gc.find().items} == {other}


def test_what_somebody_deleted_goes_after_a_week_and_studies_stay_until_then(there):
    study = tracking.get_or_create_run("general", "study-key", "tuning", {"clipft.study": "s"}).info.run_id
    tracking.finish_run(study)
    age_runs(there)
    assert gc.find().items == []
    tracking.client().delete_run(study)
    [item] = gc.find().items
    assert study in item.what and item.reason == "deleted in MLflow"
    gc.clear(gc.find())
    assert not exists(study)


def test_a_run_that_is_taken_up_or_registered_between_look_and_removal_stays(there):
    resumed, registered = a_run("FAILED"), a_run("FINISHED")
    age_runs(there)
    found = gc.find()
    tracking.client().update_run(resumed, status="RUNNING")
    tracking.client().create_model_version("clipft-general", f"runs:/{registered}/model", registered)
    done = gc.clear(found)
    assert len(done.failed) == 2 and exists(resumed) and exists(registered)


def test_a_removal_that_is_cut_short_is_finished_by_the_next(there, monkeypatch):
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    run = a_run("FAILED")
    age_runs(there)
    purge = SqlAlchemyStore._hard_delete_run

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SqlAlchemyStore, "_hard_delete_run", cut)
    with pytest.raises(KeyboardInterrupt):
        gc.clear(gc.find())
    monkeypatch.setattr(SqlAlchemyStore, "_hard_delete_run", purge)
    assert exists(run)
    monkeypatch.setenv("CLIPFT_KEEP_DELETED", "1")
    assert gc.clear(gc.find()).failed == [] and not exists(run)


def test_work_and_captures_by_age_and_never_what_is_written_now(there):
    for name, old in (("given-up", True), ("going-on", False)):
        folder = there / "work" / name
        folder.mkdir(parents=True)
        (folder / "plan.json").write_text("{}")
        age(folder)
        (folder / "step-00000001.pt").write_bytes(b"s" * 5000)
        if old:
            age(folder)
    shelf = there / "captures" / "general"
    shelf.mkdir(parents=True)
    for name, when in (("old", LONG_AGO), ("new", time.time())):
        (shelf / f"{name}.image").write_bytes(b"p" * 100)
        (shelf / f"{name}.json").write_text(json.dumps({"time": when}))
    gc.clear(gc.find())
    assert [p.name for p in (there / "work").iterdir()] == ["going-on"]
    assert {p.name for p in shelf.iterdir()} == {"new.json", "new.image"}


def test_caches_stay_while_a_task_runs_and_beyond_their_bound_the_oldest_go(there, monkeypatch):
    images = there / "cache" / "images" / "general"
    images.mkdir(parents=True)
    for i in range(3):
        (images / f"{i}.npy").write_bytes(b"x" * 2**20)
        os.utime(images / f"{i}.npy", (LONG_AGO + i, LONG_AGO + i))
    shards = there / "cache" / "shards"
    versioning.fetch(versioning.find("", "general"))
    age(shards)
    monkeypatch.setenv("CLIPFT_CACHE_GB", str(2 / 1024))
    settings.cache_clear()
    for dag, state, reason in (
        ("clipft_finetune", "queued", "a task is running"),
        ("clipft_maintenance", "running", ""),
        ("clipft_finetune", "success", ""),
        ("somebody_elses", "running", ""),
    ):
        record_run(there, dag, state)
        found = gc.find()
        assert str(images / "0.npy") in [i.what for i in found.items]
        assert (len(found.items) == 1) == bool(reason) == any("a task is running" in why for why in found.skipped)


def test_what_is_remembered_of_images_goes_when_nobody_reads_it_or_it_is_of_a_rule_of_before(there):
    folder = there / "cache" / "described"
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"{RULES}-16.db", f"{RULES}-8.db", f"{RULES + 1}-16.db")
    for name in names:
        (folder / name).write_bytes(b"x")
    age(folder / names[1])
    gc.clear(gc.find())
    assert [p.name for p in folder.iterdir()] == [names[0]]


def test_caches_stay_while_a_worker_runs_and_when_nobody_can_be_asked(there, monkeypatch):
    versioning.fetch(versioning.find("", "general"))
    age(there / "cache" / "shards")
    settings().worker_lock.parent.mkdir()
    with FileLock(settings().worker_lock):
        found = gc.find()
        assert found.items == [] and any("a worker runs here" in why for why in found.skipped)
    assert len(gc.find().items) == 1  # the lock's file alone says nothing
    (there / "airflow").mkdir()
    (there / "airflow" / "airflow.db").write_bytes(b"no database" * 1000)
    assert "is not known" in gc_airflow.Activity().reason
    monkeypatch.setenv("CLIPFT_AIRFLOW_DB", "postgresql+psycopg2://nobody@127.0.0.1:1/airflow")
    settings.cache_clear()
    assert "is not known" in gc_airflow.Activity().reason


def test_folders_full_of_strange_files_harm_nobody(there):
    (there / "captures").mkdir(exist_ok=True)
    (there / "captures" / "a-file").write_text("not a folder")
    (there / "work").mkdir(exist_ok=True)
    (there / "work" / "a-link").symlink_to("/")
    (there / "cache" / "models").mkdir(parents=True, exist_ok=True)
    (there / "cache" / "models" / "escape").symlink_to("/etc")
    shelf = there / "captures" / "general"
    shelf.mkdir()
    (shelf / "x.json").write_text("[]")
    age(shelf)
    done = gc.clear(gc.find())
    assert done.failed == [] and Path("/etc/passwd").exists() and (there / "work" / "a-link").is_symlink()


@pytest.mark.parametrize("days", ["0", "-1", "soon"])
def test_an_age_that_would_reach_running_work_is_refused(days, there, monkeypatch):
    monkeypatch.setenv("CLIPFT_KEEP_RUNS", days)
    said = CliRunner().invoke(main, ["gc"])
    assert said.exit_code == 1 and "CLIPFT_KEEP_RUNS" in said.output


def test_the_programs_log_keeps_its_end(there):
    log = there / "logs" / "stack.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as file:
        file.truncate(gc_airflow.LOG_BYTES + 10)
        file.seek(0, os.SEEK_END)
        file.write(b"the last line\n")
    gc.clear(gc.find())
    assert log.stat().st_size == gc_airflow.LOG_KEPT and log.read_bytes().endswith(b"the last line\n")

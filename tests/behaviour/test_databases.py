"""Databases of a team, on a real Postgres: copied while they are written to, put back wholly, never over anything, never backwards."""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.errors import refuses

from clipft_tasks.core.errors import ClipftError, TransientError
from clipft_tasks.core.settings import settings
from clipft_tasks.ops import backup as backups
from clipft_tasks.ops import databases, upgrade
from clipft_tasks.ops import restore as restoring
from clipft_tasks.ops.backup_manifest import Manifest
from clipft_tasks.ops.databases import Database

PASSWORD = "pg-password-that-is-never-shown"
BIN = (
    next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
    or Path(shutil.which("initdb") or "").parent
)
pytestmark = pytest.mark.skipif(not (BIN / "initdb").exists(), reason="needs PostgreSQL's programs")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The start of a URL of a private Postgres, which listens on a loopback port."""
    folder = Path(tempfile.mkdtemp(prefix="clipft-postgres-"))  # where its user may go, too
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "password").write_text(PASSWORD)
    drop: list[str] = []
    if os.geteuid() == 0:  # initdb refuses root
        drop = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(folder, "postgres", "postgres")
        shutil.chown(folder / "password", "postgres", "postgres")
    data = folder / "data"
    options = ["--username=clipft", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256", "--no-sync"]
    subprocess.run([*drop, BIN / "initdb", "-D", data, *options], cwd="/", check=True, capture_output=True)
    command = [
        *drop,
        BIN / "postgres",
        "-D",
        data,
        "-p",
        str(port),
        "-c",
        "listen_addresses=127.0.0.1",
        "-k",
        str(folder),
        "-F",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log)
    ready = [BIN / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    try:
        for _ in range(300):
            if subprocess.run(ready, check=False).returncode == 0:
                break
            assert process.poll() is None, (folder / "log").read_text()
            subprocess.run(["sleep", "0.1"], check=True)
        yield f"postgresql+psycopg2://clipft:{PASSWORD}@127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


def execute(url: str, *statements: str) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool)
    with engine.connect() as there:
        for statement in statements:
            there.execute(sqlalchemy.text(statement))


@pytest.fixture
def team(cluster: str, home: Path, monkeypatch: pytest.MonkeyPatch):
    """Three empty databases of this test's own, which settings name; calling it makes three others."""
    made: list[str] = []

    def databases_of(prefix: str) -> dict[str, str]:
        names = {name: f"{prefix}_{name}" for name in ("airflow", "mlflow", "tuning")}
        for name in names.values():
            execute(f"{cluster}/postgres", f"create database {name}")
            made.append(name)
        for variable, name in (("AIRFLOW_DB", "airflow"), ("MLFLOW_STORE", "mlflow"), ("TUNING_URL", "tuning")):
            monkeypatch.setenv(f"CLIPFT_{variable}", f"{cluster}/{names[name]}")
        settings.cache_clear()
        return {name: f"{cluster}/{n}" for name, n in names.items()}

    yield databases_of
    for name in made:
        execute(f"{cluster}/postgres", f"drop database {name} with (force)")


def fill(url: str, name: str, rows: int = 1000) -> None:
    newest = next(iter(databases.known_revisions(name)[1]))
    execute(
        url,
        "create table alembic_version (version_num text)",
        f"insert into alembic_version values ('{newest}')",
        "create table things (id int primary key, said text)",
        f"insert into things select i, 'row ' || i from generate_series(1, {rows}) i",
    )


def test_a_teams_databases_go_into_a_backup_and_come_back_in_fresh_ones(team, tmp_path):
    for name, url in team("old").items():
        fill(url, name)
    made = backups.backup(tmp_path / "backup")
    assert {f"databases/{n}.dump" for n in ("airflow", "mlflow", "tuning")} <= set(made.files)
    assert backups.verify(tmp_path / "backup")[1] == []
    assert PASSWORD not in (tmp_path / "backup" / "manifest.json").read_text()
    with pytest.raises(ClipftError, match=r"not empty: \w+ has tables in postgresql.*fresh databases") as refused:
        restoring.restore(tmp_path / "backup")
    assert PASSWORD not in str(refused.value)

    fresh = team("new")
    restoring.restore(tmp_path / "backup")
    for name, url in fresh.items():
        assert Database(name, url).count("things") == 1000 and Database(name, url).revision() == made.revisions[name]


def test_a_restore_cut_between_two_databases_is_finished(team, tmp_path, monkeypatch):
    for name, url in team("before").items():
        fill(url, name)
    backups.backup(tmp_path / "backup")
    fresh = team("after")
    put_back = Database.fill_from

    def cut(self: Database, copy: Path) -> None:
        put_back(self, copy)
        raise KeyboardInterrupt  # filled, and not noted as done

    monkeypatch.setattr(Database, "fill_from", cut)
    with pytest.raises(KeyboardInterrupt):
        restoring.restore(tmp_path / "backup")
    monkeypatch.setattr(Database, "fill_from", put_back)
    with refuses("restore.unfinished"):
        upgrade.due()
    restoring.restore(tmp_path / "backup")
    assert [Database(n, u).count("things") for n, u in fresh.items()] == [1000] * 3


def test_a_dump_is_one_moments_state_while_rows_are_written(team, tmp_path):
    url = team("busy")["mlflow"]
    execute(url, "create table pairs (a int)", "create table partners (a int)")
    writer = f"""
import sqlalchemy
with sqlalchemy.create_engine({url!r}).connect() as there:
    for i in range(100_000):
        there.execute(sqlalchemy.text(f"insert into pairs values ({{i}}); insert into partners values ({{i}})"))
        there.commit()
        if i == 50: print("going", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", writer], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "going\n"
        copy = Database("mlflow", url).copy(tmp_path)
    finally:
        process.kill()
        process.wait()
    back = Database("mlflow", team("calm")["mlflow"])
    back.fill_from(copy)
    assert back.count("pairs") == back.count("partners") >= 50


def test_a_cut_dump_fills_nothing(team, tmp_path):
    url = team("whole")["mlflow"]
    fill(url, "mlflow", 50_000)
    copy = Database("mlflow", url).copy(tmp_path)
    copy.write_bytes(copy.read_bytes()[: copy.stat().st_size // 2])
    back = Database("mlflow", team("half")["mlflow"])
    with refuses("ops.program_failed", "pg_restore"):
        back.fill_from(copy)
    assert back.tables() == set()


def test_a_database_that_is_away_or_a_program_that_is_missing_is_said_without_the_password(team, tmp_path, monkeypatch):
    urls = team("there")
    fill(urls["mlflow"], "mlflow", 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with refuses("ops.missing_program", "pg_dump"):
        backups.backup(tmp_path / "b")
    assert not (tmp_path / "b.part").exists()
    away = f"postgresql+psycopg2://clipft:{PASSWORD}@127.0.0.1:1/mlflow"
    with pytest.raises(TransientError, match="does not answer") as said:
        Database("mlflow", away).tables()
    assert PASSWORD not in str(said.value)


def test_an_upgrade_backs_up_first_and_a_way_back_is_refused(team, tmp_path, monkeypatch):
    """MLflow's tables as its release before the newest migration left them; its own program takes them on."""
    from alembic import command, script
    from mlflow.store.db.utils import _get_alembic_config

    urls = team("upgraded")
    url = urls["mlflow"]
    config = _get_alembic_config(url)
    newest = next(iter(databases.known_revisions("mlflow")[1]))
    before = script.ScriptDirectory.from_config(config).get_revision(newest).down_revision
    subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", url], check=True, capture_output=True)
    execute(url, "create table kept (a int)", "insert into kept values (7)")
    command.downgrade(config, before)
    assert [s.database.name for s in upgrade.due()] == ["mlflow"]
    monkeypatch.setattr(upgrade.airflow_program, "program", lambda *arguments: "")  # its tables are another test's
    made = upgrade.upgrade(tmp_path / "backups").backup
    assert Database("mlflow", url).revision() == newest and upgrade.due() == []
    assert made and Manifest.read(made).revisions == {"mlflow": before}
    assert upgrade.upgrade(tmp_path / "backups").backup is None  # nothing changes, nothing is copied

    execute(url, "update alembic_version set version_num = 'of tomorrow'")
    with refuses("database.newer_release", "restore the backup"):
        upgrade.upgrade(tmp_path / "backups")
    fresh = team("previous")["mlflow"]
    restoring.restore(made)
    assert Database("mlflow", fresh).revision() == before and Database("mlflow", fresh).count("kept") == 1


def test_a_copy_of_a_database_that_writes_ahead_is_one_file_also_once_it_was_read(tmp_path):
    """Airflow's SQLite is in WAL mode; a copy that kept it would grow files that no manifest knows."""
    source = sqlite3.connect(tmp_path / "live.db")
    source.execute("pragma journal_mode = wal")
    source.execute("create table kept (value)")
    source.execute("insert into kept values (7)")
    source.commit()
    (tmp_path / "backup").mkdir()
    copied = databases.Database("live", f"sqlite:///{tmp_path / 'live.db'}").copy(tmp_path / "backup")
    assert not databases.find_damage(copied)
    assert [p.name for p in (tmp_path / "backup").iterdir()] == ["live.db"]
    assert sqlite3.connect(copied).execute("select value from kept").fetchall() == [(7,)]


KILLED = """
import os, signal, sqlite3, sys
there = sqlite3.connect(sys.argv[1], isolation_level=None)
there.execute(f"pragma journal_mode = {sys.argv[2]}")
there.execute("create table rows (text)")
there.execute("insert into rows values ('kept')")
there.execute("pragma cache_size = 1")  # what is not committed reaches the file too
there.execute("begin")
there.executemany("insert into rows values (?)", [("lost" * 500,)] * 200)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_whose_writer_was_killed_is_read_without_what_was_not_committed(mode, tmp_path):
    database = Database("mlflow", f"sqlite:///{tmp_path / 'mlflow.db'}")
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "mlflow.db", mode], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / f"mlflow.db-{'wal' if mode == 'wal' else 'journal'}").stat().st_size > 0
    (tmp_path / "copies").mkdir()
    copy = database.copy(tmp_path / "copies")
    with contextlib.closing(sqlite3.connect(copy)) as there:
        assert there.execute("select text from rows").fetchall() == [("kept",)]

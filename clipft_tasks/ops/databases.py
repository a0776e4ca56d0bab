"""The databases of Airflow, MLflow and the tuning studies, SQLite or Postgres: what is in them, a copy, a copy put back.

SQLite is copied through its online backup, Postgres by pg_dump: both while everything runs, both one moment's state.
"""

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ClipftError, TransientError
from ..core.files import atomic_path
from ..core.settings import settings

if TYPE_CHECKING:
    from sqlalchemy import URL

# Where each program's releases list the states that its tables went through.
HISTORY = {
    "airflow": ("airflow", "migrations/versions"),
    "mlflow": ("mlflow", "store/db_migrations/versions"),
    "tuning": ("optuna", "storages/_rdb/alembic/versions"),
}
REVISION = re.compile(r"^(down_)?revision\b[^=]*=\s*(.+)$", re.M)
TOOLS_FIX = "Install PostgreSQL's client programs, of the server's major version or newer (Debian: postgresql-client)."


@dataclass(frozen=True)
class Database:
    """One of the installation's databases.

    Args:
        name: airflow, mlflow or tuning.
        url: for SQLAlchemy.
    """

    name: str
    url: str

    @property
    def file(self) -> Path | None:
        """The file, when it is SQLite."""
        return Path(self.url.removeprefix("sqlite:///")) if self.url.startswith("sqlite:") else None

    @property
    def address(self) -> str:
        """For a person, without the password."""
        return str(self.file) if self.file else str(_parse_url(self.url).render_as_string(hide_password=True))

    def tables(self) -> set[str]:
        """Names of its tables; empty when there is none yet. Raises TransientError when it does not answer."""
        if self.file:
            if not self.file.exists():
                return set()
            with _open_read_only(self.file) as there:
                return {row[0] for row in there.execute("select name from sqlite_master where type = 'table'")}
        return set(_query(self.url, "select tablename from pg_tables where schemaname = 'public'"))

    def count(self, rows: str) -> int:
        """How many rows of a table (and perhaps a condition) there are."""
        question = f"select count(*) from {rows}"
        if not self.file:
            return int(_query(self.url, question)[0])
        with _open_read_only(self.file) as there:
            return int(there.execute(question).fetchone()[0])

    def revision(self) -> str:
        """The state of its tables, as the program that made them calls it; "" for none."""
        if "alembic_version" not in self.tables():
            return ""
        if self.file:
            with _open_read_only(self.file) as there:
                rows = [str(row[0]) for row in there.execute("select version_num from alembic_version")]
        else:
            rows = _query(self.url, "select version_num from alembic_version")
        return rows[0] if rows else ""

    def size(self) -> int:
        if self.file:
            return self.file.stat().st_size if self.file.exists() else 0
        return int(_query(self.url, "select pg_database_size(current_database())")[0])

    def copy(self, folder: Path) -> Path:
        """One moment's state as a file in `folder`: `<name>.db` or `<name>.dump`. Raises ClipftError, with the program's words."""
        if self.file:
            target = folder / f"{self.name}.db"
            with closing(sqlite3.connect(target)) as out, _open_read_only(self.file) as there:
                there.backup(out)  # in one step: writers wait milliseconds, and it cannot start over for ever
                out.execute("pragma journal_mode = delete")  # one file: a copy in WAL mode grows two more when it is read
            if problem := find_damage(target):
                raise ClipftError(
                    f"database {self.file}",
                    f"it is damaged: {problem}",
                    "Restore an earlier backup (`clipft restore`).",
                    code="database.damaged",
                )
            return target
        target = folder / f"{self.name}.dump"
        _run_tool("pg_dump", self.url, "--format=custom", "--no-owner", "--no-privileges", f"--file={target}")
        return target

    def fill_from(self, copy: Path) -> None:
        """Fill this empty database from a copy, wholly or not at all."""
        if self.file:
            with atomic_path(self.file) as part:
                shutil.copyfile(copy, part)
        else:
            arguments = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", str(copy)]
            _run_tool("pg_restore", self.url, *arguments)

    def shrink(self) -> int:
        """Give back the space of deleted rows; returns bytes. Postgres reuses it by itself."""
        if not self.file or not self.file.exists():
            return 0
        before = self.size()
        try:
            with closing(sqlite3.connect(self.file, timeout=10, isolation_level=None)) as there:
                there.execute("vacuum")
        except sqlite3.OperationalError:  # somebody writes; the rows are gone, their space comes back another time
            return 0
        return max(0, before - self.size())


def all_databases() -> list[Database]:
    """Every database that settings name, each once, in the order in which one refers to the next."""
    found: dict[str, Database] = {}
    for name, url in settings().databases.items():
        found.setdefault(url, Database(name, url))
    return list(found.values())


def known_revisions(name: str) -> tuple[set[str], set[str]]:
    """The states that the installed program knows, and the newest (one, as a rule). Both empty where it is not installed."""
    package, inside = HISTORY[name]
    spec = find_spec(package)
    if not spec or not spec.submodule_search_locations:
        return set(), set()
    known: set[str] = set()
    before: set[str] = set()
    for file in (Path(next(iter(spec.submodule_search_locations))) / inside).glob("*.py"):
        for down, value in REVISION.findall(file.read_text()):
            (before if down else known).update(re.findall(r"[\"']([\w.]+)[\"']", value))
    return known, known - before


def find_damage(file: Path) -> str:
    """What is wrong with an SQLite file; "" when nothing is."""
    try:
        with _open_read_only(file) as there:
            said = there.execute("pragma quick_check").fetchone()[0]
    except ClipftError as error:
        if isinstance(error.__cause__, sqlite3.OperationalError):  # it may be whole
            raise
        return str(error.__cause__)
    return "" if said == "ok" else str(said)


def find_dump_damage(dump: Path) -> str:
    """What is wrong with a dump of Postgres; "" when its table of contents can be read, or nothing here can read it."""
    if not shutil.which("pg_restore"):
        return ""
    done = subprocess.run(["pg_restore", "--list", str(dump)], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


@contextmanager
def _open_read_only(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing, but for a transaction that its writer was killed in: SQLite lets nobody read before a
    connection that may write has rolled it back.
    """
    try:
        _roll_back_killed(file)
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as there:
            yield there
    except sqlite3.DatabaseError as error:
        raise ClipftError(
            f"database {file}", f"it cannot be read: {error}", "Are its owner and the disk right?", code="database.unreadable"
        ) from error


def _roll_back_killed(file: Path) -> None:
    """Undo what a killed writer left half done; nothing is written to a database that is whole, or that does not exist."""
    if not any(Path(f"{file}{ending}").exists() for ending in ("-journal", "-wal")):
        return
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=30)) as there:
        there.execute("select 1 from sqlite_master").fetchone()


def _parse_url(url: str) -> "URL":
    from sqlalchemy import make_url

    return make_url(url)


def _query(url: str, question: str) -> list[str]:
    """The first column of the answer, as text."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, connect_args={"connect_timeout": 5}, poolclass=sqlalchemy.pool.NullPool)
    try:
        with engine.connect() as there:
            return [str(row[0]) for row in there.execute(sqlalchemy.text(question))]
    except sqlalchemy.exc.OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise TransientError(
            f"Database {_parse_url(url).render_as_string(hide_password=True)} does not answer: {reason}"
        ) from None


def _run_tool(program: str, url: str, *arguments: str) -> None:
    """One of PostgreSQL's programs; the password goes by the environment, where no other user reads it."""
    parts = _parse_url(url)
    if not shutil.which(program):
        raise ClipftError(program, "it is not installed here", TOOLS_FIX, code="ops.missing_program")
    env = os.environ | {"PGPASSWORD": parts.password or "", "PGCONNECT_TIMEOUT": "10"}
    where = {"host": parts.host or parts.query.get("host"), "port": parts.port, "username": parts.username}
    chosen = [f"--{k}={v}" for k, v in where.items() if v] + [f"--dbname={parts.database}", "--no-password"]
    done = subprocess.run([program, *chosen, *arguments], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join((done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[:3])
        fix = TOOLS_FIX if "version mismatch" in reason or "unsupported version" in reason else ""
        raise ClipftError(f"{program} of database {parts.database}", reason.rstrip("."), fix, code="ops.program_failed")

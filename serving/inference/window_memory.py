"""The rows of drift windows, kept on disk: a window of two weeks outlives a restart of an hour.

What is kept is what a window holds: embeddings, image statistics, similarities, whether an answer was right; no image and no text.
"""

import logging
import sqlite3
import threading
import time
from contextvars import ContextVar
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from clipft_tasks.drift.window import Mark, Window, WindowRow

log = logging.getLogger("uvicorn.error")
ANSWER: ContextVar[str] = ContextVar("answer", default="")  # of the request that is being answered

TABLE = """
create table if not exists row (
    domain text not null, version text not null, kind text not null, number integer not null,
    at real not null, answer text not null, data blob not null, primary key (domain, version, kind, number)
) without rowid;
create index if not exists row_answer on row (answer);
"""
WIDTHS = {"images": 3}  # arrays of a row of a kind; one of any other


class WindowMemory:
    """Rows of windows in one SQLite file, which also holds the answers. One process of a home keeps its windows there.

    Args:
        path: of the file; None, a place that cannot be written, or one that another process has: nothing is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._saved: dict[tuple[str, str], int] = {}  # the newest row's number, by domain and version
        self._writing = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._owner: FileLock | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._owner = FileLock(f"{path}.windows.lock", timeout=0)
            self._owner.acquire()
            self._db = sqlite3.connect(path, timeout=5, check_same_thread=False, isolation_level=None)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            self._db.execute("pragma secure_delete = on")
            self._db.executescript(TABLE)
        except (OSError, Timeout, sqlite3.Error) as error:
            log.warning("drift windows begin anew after a restart: %s cannot be used (%s)", path, error)
            self._db = None

    def close(self) -> None:
        with self._writing:
            if self._db is not None:
                self._db.close()
            if self._owner is not None:
                self._owner.release()
            self._db = None

    def load(self, domain: str, version: str, window: Window) -> None:
        """Put into an empty window what was kept of it and is not too old."""
        with self._writing:
            if self._db is None:
                return
            try:
                self._db.execute("delete from row where at < ?", (time.time() - window.seconds,))
                found = self._db.execute(
                    "select kind, number, at, answer, data from row where domain = ? and version = ?", (domain, version)
                ).fetchall()
                window.restore([_read(*row) for row in found])
                self._saved[domain, version] = max((row[1] for row in found), default=0)
            except (sqlite3.Error, ValueError) as error:
                log.warning("the window of %s version %s begins anew: %s", domain, version, error)

    def save(self, domain: str, version: str, window: Window) -> None:
        """Keep the rows that came since, and drop those that left."""
        saved = self._saved.get((domain, version), 0)
        rows = window.kept(after=saved)
        values = [(domain, version, row.kind, row.mark.number, row.at, row.mark.answer, _written(row.values)) for row in rows]
        with self._writing:
            if self._db is None:
                return
            try:
                self._db.execute("begin immediate")
                self._db.executemany("insert or replace into row values (?, ?, ?, ?, ?, ?, ?)", values)
                self._db.execute(
                    "delete from row where domain = ? and version = ? and number < ?", (domain, version, window.oldest())
                )
                self._db.execute("commit")
                self._saved[domain, version] = max((row.mark.number for row in rows), default=saved)
            except sqlite3.Error as error:
                log.warning("the window of %s is not kept: %s", domain, error)
                if self._db.in_transaction:
                    self._db.execute("rollback")

    def drop(self, domain: str, version: str) -> None:
        """Forget what was kept of a version's window: it begins anew."""
        self._delete("domain = ? and version = ?", domain, version)
        self._saved.pop((domain, version), None)

    def forget(self, answer: str) -> None:
        """Forget what came with an answer."""
        self._delete("answer = ?", answer)

    def _delete(self, where: str, *values: str) -> None:
        with self._writing:
            if self._db is not None:
                try:
                    self._db.execute(f"delete from row where {where}", values)
                except sqlite3.Error as error:
                    log.warning("rows of windows are not deleted: %s", error)


def _written(values: tuple[np.ndarray, ...]) -> bytes:
    """A few short vectors as bytes: lengths, then numbers in single precision."""
    lengths = np.array([value.size for value in values], np.uint32)
    return lengths.tobytes() + b"".join(np.asarray(value, np.float32).tobytes() for value in values)


def _read(kind: str, number: int, at: float, answer: str, data: bytes) -> WindowRow:
    count = WIDTHS.get(kind, 1)
    lengths = np.frombuffer(data, np.uint32, count)
    numbers = np.frombuffer(data, np.float32, offset=4 * count)
    parts = np.split(numbers, np.cumsum(lengths)[:-1])
    values = tuple(part if kind in ("images", "texts") else part.reshape(()) for part in parts)
    return WindowRow(kind, at, Mark(number, answer), values)  # type: ignore[arg-type]  # as it was written

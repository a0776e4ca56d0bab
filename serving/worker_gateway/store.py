"""The enrollment store: who was invited and who has joined, two small tables. No secret stands in them."""

import hashlib
import logging
import re
import secrets
import shutil
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("uvicorn.error")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,38}[a-z0-9]|[a-z0-9]")
HOURS = 24.0  # that an invitation holds

TABLES = """
create table if not exists invitation (name text primary key, code text not null, until real not null);
create table if not exists worker (
    name text primary key, nonce text not null, joined real not null, seen real, device text not null default '',
    revoked real
);
"""


@dataclass(frozen=True)
class Worker:
    """A worker that joined once. Times are seconds since 1970; `revoked` is None while it may work."""

    name: str
    nonce: str
    joined: float
    seen: float | None
    device: str
    revoked: float | None


class WorkerStore:
    """The tables, in one SQLite file `workers.db`.

    Args:
        folder: made when missing. A table that an earlier release kept there, or in the folder `door` next to it, is taken over.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "workers.db"
        _adopt(path, folder / "door.db", folder.parent / "door" / "door.db")
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._lock = threading.Lock()
        self._db.execute("pragma journal_mode = wal")
        self._db.executescript(TABLES)
        self._noted: dict[str, float] = {}

    def invite(self, name: str, hours: float = HOURS) -> str:
        """A code that lets `name` join once; an older one of that name no longer does."""
        code = f"{name}.{secrets.token_urlsafe(18)}"
        self._do("insert or replace into invitation values (?, ?, ?)", name, _hashed(code), time.time() + hours * 3600)
        return code

    def invited_name(self, code: str) -> str | None:
        """Whose code this is, or None: unknown, used, or too old."""
        found = self._do("select name from invitation where code = ? and until > ?", _hashed(code), time.time())
        return str(found[0][0]) if found else None

    def join(self, code: str, device: str) -> Worker | None:
        """Use a code up. Whoever had the name before is no longer recognized."""
        with self._lock:
            # One statement decides: of two who show the same code, one joins.
            used = self._db.execute(
                "delete from invitation where code = ? and until > ? returning name", (_hashed(code), time.time())
            ).fetchall()
            if not used:
                return None
            row = (used[0][0], secrets.token_hex(16), time.time(), None, device, None)
            self._db.execute("insert or replace into worker values (?, ?, ?, ?, ?, ?)", row)
        return Worker(*row)

    def worker(self, name: str) -> Worker | None:
        found = self._do("select * from worker where name = ?", name)
        return Worker(*found[0]) if found else None

    def workers(self) -> list[Worker]:
        return [Worker(*row) for row in self._do("select * from worker order by name")]

    def invitations(self) -> dict[str, float]:
        """Names that may still join, and until when."""
        return dict(self._do("select name, until from invitation where until > ?", time.time()))

    def revoke(self, name: str) -> bool:
        """From now on `name` is turned away; whether there was anybody to turn away."""
        gone = self._do("delete from invitation where name = ? returning name", name)
        known = self._do("update worker set revoked = ? where name = ? and revoked is null returning name", time.time(), name)
        return bool(gone or known)

    def record_seen(self, name: str) -> None:
        """Note that a worker made a request, at most once in ten seconds."""
        now = time.time()
        if now - self._noted.get(name, 0) > 10:
            self._noted[name] = now
            self._do("update worker set seen = ? where name = ?", now, name)

    def _do(self, statement: str, *values: object) -> list[tuple[Any, ...]]:  # columns of either table
        with self._lock:
            return self._db.execute(statement, values).fetchall()


def _adopt(path: Path, *earlier: Path) -> None:
    """Move the first table of an earlier release that there is to `path`, unless a table is there already."""
    found = next((old for old in earlier if old.exists()), None)
    if found is None or path.exists():
        return
    for suffix in ("-wal", "-shm", ""):  # the table itself last: it alone decides whether anything is left to move
        part = found.with_name(found.name + suffix)
        if part.exists():
            shutil.move(part, path.with_name(path.name + suffix))
    log.warning("%s is called %s now; it was moved.", found, path)


def _hashed(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()

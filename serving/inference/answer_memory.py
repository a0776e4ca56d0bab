"""Which answers were given: what feedback refers to, a week later and after a restart too."""

import json
import logging
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("uvicorn.error")
DAYS = 90.0  # that an answer is remembered
MOST = 1_000_000  # answers; the oldest go first
BETWEEN = 1_000  # answers between two looks at what is too old

TABLE = """
create table if not exists answer (
    id text primary key, at real not null, domain text not null, version text not null, labels text not null,
    judged text not null default '[]'
) without rowid;
create index if not exists answer_at on answer (at);
"""


@dataclass(frozen=True)
class Answer:
    """What a version predicted for each image of a request."""

    domain: str
    version: str
    labels: list[str]


class AnswerMemory:
    """The answers, in one SQLite file. It may be asked from several threads, and several processes may share the file.

    Args:
        path: of the file; None, or a place that cannot be written, keeps them in memory alone.
    """

    def __init__(self, path: Path | None = None, *, days: float = DAYS, most: int = MOST) -> None:
        self.days, self.most = days, most
        self._lock = threading.Lock()
        self._db = _opened(path)
        self._since = 0

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def remember(self, answer_id: str, answer: Answer) -> None:
        """Keep an answer; another one of the same id is replaced."""
        row = (answer_id, time.time(), answer.domain, answer.version, json.dumps(answer.labels))
        with self._lock:
            self._db.execute("insert or replace into answer (id, at, domain, version, labels) values (?, ?, ?, ?, ?)", row)
            self._since += 1
            if self._since >= BETWEEN:
                self._since = 0
                self._db.execute("delete from answer where at < ?", (time.time() - self.days * 86400,))
                self._db.execute(
                    "delete from answer where at < (select at from answer order by at desc limit 1 offset ?)", (self.most - 1,)
                )

    def get(self, answer_id: str) -> Answer | None:
        """An answer that is remembered."""
        with self._lock:
            found = self._db.execute("select domain, version, labels from answer where id = ?", (answer_id,)).fetchone()
        return Answer(found[0], found[1], json.loads(found[2])) if found else None

    def judge(self, answer_id: str, index: int) -> bool:
        """Note that somebody said what an image shows; whether that was the first word about it."""
        with self._lock:
            self._db.execute("begin immediate")  # another process may hear of the same image
            try:
                found = self._db.execute("select judged from answer where id = ?", (answer_id,)).fetchone()
                judged = json.loads(found[0]) if found else [index]
                if index not in judged:
                    self._db.execute("update answer set judged = ? where id = ?", (json.dumps([*judged, index]), answer_id))
            finally:
                self._db.execute("commit")
        return index not in judged

    def forget(self, answer_id: str) -> bool:
        """Whether there was such an answer; it is gone."""
        with self._lock:
            return self._db.execute("delete from answer where id = ?", (answer_id,)).rowcount > 0


def _opened(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return _connected(str(path))
        except (OSError, sqlite3.Error) as error:
            log.warning("answers are remembered until the next restart only: %s cannot be used (%s)", path, error)
    return _connected(":memory:")


def _connected(name: str) -> sqlite3.Connection:
    db = sqlite3.connect(name, timeout=5, check_same_thread=False, isolation_level=None)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = normal")  # a crash of the machine may cost the last answers, never the file
    db.executescript(TABLE)
    return db

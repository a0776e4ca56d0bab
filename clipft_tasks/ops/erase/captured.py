"""Erased images that the server captured, and what it remembers of their answers."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

from ...contracts.drift import Capture, answer_hash
from ...contracts.erasure import PlaceSearched
from ...core.errors import ClipftError, TransientError
from ...core.settings import settings
from ...server.client import ServerClient

TABLES = {"answer": "id", "row": "answer"}  # of the server's database, and the column that names the answer


def of_server(domains: Iterable[str]) -> list[Capture]:
    """What the servers keep beside what lies under home; nothing where none answers."""
    found = []
    for domain in domains:
        with suppress(TransientError, ClipftError):
            found += ServerClient(timeout=5).captures(domain)
    return found


def of_home() -> Iterator[Capture]:
    """What lies under home; whatever cannot be read is passed over."""
    for path in sorted((settings().root / "captures").glob("*/*.json")):
        with suppress(OSError, ValueError):
            yield Capture.model_validate_json(path.read_bytes())


def is_remembered(answer: str) -> bool:
    """Whether the server's memory under home knows an answer."""
    path = settings().root / "answers.db"
    if path.exists():
        with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=30)) as db:
            return db.execute("select 1 from answer where id = ?", (answer,)).fetchone() is not None
    return False


def delete(captures: Iterable[Capture], requests: Sequence[str]) -> list[PlaceSearched]:
    """Delete captured images, under home and on every server that answers. Safe to repeat.

    Args:
        captures: those to delete. requests: answer ids: what is remembered of them goes too.
    """
    root, wanted = settings().root, list(captures)
    folder = root / "captures"
    looked, held = sum(1 for _ in folder.glob("*/*.json")), 0
    for capture in wanted:
        for suffix in (".json", ".image", ".json.part", ".image.part"):
            path = folder / capture.domain / f"{capture.id}{suffix}"
            held += suffix == ".json" and path.exists()
            path.unlink(missing_ok=True)
    note, hashes = "", {*map(answer_hash, requests), *(c.request for c in wanted)}
    try:
        for capture in wanted:
            with suppress(ClipftError):  # it is gone already
                ServerClient(timeout=10).delete_capture(capture.domain, capture.id)
        for answer in requests:  # with all its images, which another choice does not mean
            with suppress(ClipftError):
                ServerClient(timeout=10).forget(answer)
    except TransientError:
        note = f"the server at {settings().server_url} does not answer: what other machines keep stays until it is asked again"
    return [
        PlaceSearched(place="captured images", looked_at=looked, held=held, note=note),
        _forget(root / "answers.db", hashes),
    ]


def _forget(path: Path, hashes: set[str]) -> PlaceSearched:
    """What is remembered of answers, and the rows of drift windows that came with them."""
    looked = held = 0
    if path.exists():
        with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as db:
            db.execute("pragma secure_delete = on")
            for table, column in TABLES.items():
                with suppress(sqlite3.OperationalError):  # a release before had fewer tables
                    known = [row[0] for row in db.execute(f"select distinct {column} from {table}")]
                    looked += len(known)
                    gone = [(id,) for id in known if answer_hash(id) in hashes]
                    held += len(gone)
                    db.executemany(f"delete from {table} where {column} = ?", gone)
            db.execute("pragma wal_checkpoint(truncate)")
    return PlaceSearched(place="answers that the server remembers", looked_at=looked, held=held)

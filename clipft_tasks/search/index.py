"""One index on disk: vectors for usearch, and their ids, labels and captions in SQLite beside them."""

import json
import shutil
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from ..contracts.search import IndexCard, SearchHit
from ..core.errors import ClipftError
from ..core.settings import settings

if TYPE_CHECKING:
    from usearch.index import Index as Vectors

METRICS = {"cosine": "cos", "dot": "ip", "euclidean": "l2sq"}  # by similarity
CARD, VECTORS, ROWS = "index.json", "vectors.usearch", "rows.db"
TABLE = "create table row (number integer primary key, id text not null unique, label text not null, caption text not null)"
KEPT = 2  # indexes of a domain: that of the live version and that of the one before
AT_ONCE = 500  # variables of one statement


def folder_of(domain: str = "", version: str = "") -> Path:
    """Where a version's index lies; where all of a domain's, or all, lie."""
    return settings().root / "search" / domain / version


def cards(domain: str = "") -> list[IndexCard]:
    """The indexes that there are, the newest first. One that cannot be read is passed over."""
    found = []
    for path in folder_of().glob(f"{domain or '*'}/*/{CARD}"):
        if path.parent.name.isdecimal():
            found.append(IndexCard.from_json(json.loads(path.read_bytes()), str(path)))
    return sorted(found, key=lambda card: -card.made)


def vectors_of(similarity: str, dimensions: int) -> "Vectors":
    """An empty usearch index. Raises ClipftError for a similarity that it cannot order by, or where usearch is not installed."""
    if similarity not in METRICS:
        raise ClipftError(
            f"an index by the {similarity} similarity",
            f"only {', '.join(METRICS)} can be searched",
            "Search needs a model with another `objective.similarity`.",
            code="search.similarity",
        )
    try:
        from usearch.index import Index as Vectors
    except ImportError:
        raise ClipftError(
            "search", "usearch is not installed", "Install clipft[search].", code="search.not_installed"
        ) from None
    return Vectors(ndim=dimensions, metric=METRICS[similarity], dtype="f32")


@dataclass(frozen=True)
class Index:
    """An index that is open. Several threads may search it."""

    card: IndexCard
    folder: Path
    vectors: "Vectors"

    @classmethod
    def open(cls, folder: Path) -> "Index":
        """Raises ClipftError where it is none."""
        try:
            card = IndexCard.from_json(json.loads((folder / CARD).read_bytes()), str(folder / CARD))
            vectors = vectors_of(card.similarity, card.dimensions)
            vectors.load(str(folder / VECTORS))
        except (OSError, ValueError, RuntimeError) as error:
            raise ClipftError(
                f"the index in {folder}",
                f"it cannot be read ({error})",
                "Build it again: clipft index build.",
                code="search.unreadable",
            ) from None
        return cls(card, folder, vectors)

    def search(self, query: np.ndarray, count: int, labels: Collection[str] = ()) -> list[SearchHit]:
        """The most similar rows.

        Args:
            query: an embedding (d,) of the version that made the index.
            labels: of which one must be a row's; none: any. With labels all their rows are compared, not only near ones.
        """
        if not len(self.vectors):
            return []
        with closing(self._rows()) as db:
            if labels:
                numbers = np.array(sorted(_numbers(db, "label", labels)), np.uint64)
                numbers, scores = self._compared(query, numbers, count)
            else:
                found = self.vectors.search(query.astype(np.float32), min(count, len(self.vectors)))
                numbers, scores = found.keys, self._similarity(found.distances)
            rows = ((_row(db, int(n)), float(s)) for n, s in zip(numbers, scores, strict=True))
            return [SearchHit(**row, score=score) for row, score in rows if row]  # none: forgotten a moment ago

    def _compared(self, query: np.ndarray, numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        if not len(numbers):
            return numbers, np.zeros(0, np.float32)
        vectors = np.asarray(self.vectors.get(numbers), np.float32)
        match self.card.similarity:
            case "cosine":
                norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
                scores = vectors @ query / np.maximum(norms, 1e-12)
            case "dot":
                scores = vectors @ query
            case _:
                scores = -np.linalg.norm(vectors - query, axis=1)
        best = np.argsort(-scores, kind="stable")[:count]
        return numbers[best], scores[best]

    def _similarity(self, distances: np.ndarray) -> np.ndarray:
        """usearch's distances as similarities: more is more similar."""
        return -np.sqrt(np.maximum(distances, 0)) if self.card.similarity == "euclidean" else 1 - distances

    def _rows(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.folder / ROWS}?mode=ro", uri=True, timeout=5)

    def has(self, rows: Collection[str]) -> int:
        """How many of these ids it holds."""
        with closing(self._rows()) as db:
            return len(_numbers(db, "id", rows))


def opened(domain: str, version: str) -> Index:
    """The index that a version's embeddings may be compared with.

    Raises: ClipftError, naming both versions where there is one of another version only (`search.other_space`).
    """
    if (folder_of(domain, version) / CARD).exists():
        return Index.open(folder_of(domain, version))
    others = [card.version for card in cards(domain)]
    if others:
        raise ClipftError(
            f"the index of {domain}",
            f"it holds embeddings of version {others[0]}, and version {version} answers: the two cannot be compared",
            f"Build it anew: clipft index refresh {domain}.",
            code="search.other_space",
        )
    raise ClipftError(
        f"the index of {domain}", "there is none", f"Build it: clipft index build {domain} --source …", code="search.no_index"
    )


@contextmanager
def changing() -> Iterator[None]:
    """While indexes are replaced or rows are removed: one process at a time."""
    folder_of().mkdir(parents=True, exist_ok=True)
    with FileLock(folder_of() / ".lock"):
        yield


def put(card: IndexCard, made: Path) -> Path:
    """Let an index that is whole take its place; the oldest ones of its domain go."""
    place = folder_of(card.domain, card.version)
    with changing():
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)
        for old in cards(card.domain)[KEPT:]:
            shutil.rmtree(folder_of(card.domain, old.version), ignore_errors=True)
    return place


def forget(rows: Collection[str], domain: str = "") -> int:
    """Remove rows from every index of a domain, or of all; a server that has one open sees it within a second.

    Args:
        rows: ids, as hits name them: a source's own names for its images.
    Returns: how many rows were removed, of all indexes together.
    """
    wanted, removed = set(rows), 0
    if not wanted or not folder_of().is_dir():
        return 0
    with changing():
        for card in cards(domain):
            folder = folder_of(card.domain, card.version)
            with closing(sqlite3.connect(folder / ROWS, timeout=30)) as db:
                numbers = sorted(_numbers(db, "id", wanted))
                if not numbers:
                    continue
                index = Index.open(folder)
                index.vectors.remove(np.array(numbers, np.uint64), compact=True)
                index.vectors.save(str(folder / f"{VECTORS}.part"))
                db.execute("pragma secure_delete = on")
                db.executemany("delete from row where number = ?", [(n,) for n in numbers])
                db.commit()
                (folder / f"{VECTORS}.part").replace(folder / VECTORS)
                left = card.model_copy(update={"rows": card.rows - len(numbers)})
                (folder / CARD).write_text(left.model_dump_json(indent=1))
                removed += len(numbers)
    return removed


def _numbers(db: sqlite3.Connection, column: str, values: Collection[str]) -> set[int]:
    found: set[int] = set()
    listed = list(values)
    for start in range(0, len(listed), AT_ONCE):
        some = listed[start : start + AT_ONCE]
        marks = ",".join("?" * len(some))
        found.update(number for (number,) in db.execute(f"select number from row where {column} in ({marks})", some))
    return found


def _row(db: sqlite3.Connection, number: int) -> dict[str, str]:
    found = db.execute("select id, label, caption from row where number = ?", (number,)).fetchone()
    return dict(zip(("id", "label", "caption"), found, strict=True)) if found else {}

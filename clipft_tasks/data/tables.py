"""Tables of versions, kept in parts: a new version stores the rows that are new, and names parts that versions before it stored.

A part is a Parquet file of at most `FULL` rows, called by the hash of its content. A table is all rows of its parts. A part that holds a row
which a version does not, or of which it says something else, is none of that version's: what is left of it is stored anew. A version names
at most `MOST_SMALL` parts with less than half of `FULL` rows; the rows of more are put together.

Kept so are the manifest, and `former`: what the split ledger knows beside the rows of the manifest. Up to format 2 of the card each was
one file, the latter with the whole ledger.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..core.errors import ClipftError
from ..core.settings import settings
from . import objects
from .objects import StoredFile

if TYPE_CHECKING:
    from dvc.repo import Repo

MANIFEST, FORMER, DECISIONS = "manifest", "former", "decisions.parquet"
TABLES = (MANIFEST, FORMER, DECISIONS)  # the last two where there are any; the last in one file
ONE_FILE = {MANIFEST: "manifest.parquet", FORMER: "splits.parquet"}  # what earlier releases called them
FULL, MOST_SMALL = 4096, 16
NAME = re.compile(r"^[0-9a-f]{32}\.parquet\Z")


@dataclass(frozen=True)
class StoredTable:
    """Where a version's table lies.

    Attributes:
        path: what git calls it, below the domain. parts: by name.
        folder: the list of the parts; None of a table that is one file.
    """

    path: str
    parts: Mapping[str, StoredFile]
    folder: StoredFile | None = None

    @property
    def files(self) -> list[StoredFile]:
        return [*self.parts.values(), *([self.folder] if self.folder else [])]

    @cached_property
    def pointer(self) -> str:
        """What git holds of it."""
        if self.folder:
            return objects.pointer(self.path, self.folder, len(self.parts))
        (file,) = self.parts.values()
        return objects.pointer(self.path, file)

    @classmethod
    def one_file(cls, path: str, file: StoredFile) -> "StoredTable":
        return cls(path, {f"{file.md5}.parquet": file})


def stored(repo: Path, revision: str, domain: str, tag: str = "") -> dict[str, StoredTable]:
    """A version's tables, by name of `TABLES`. Raises as `objects.fetch`.

    Args:
        tag: how errors call the version.
    """
    paths = [(name, path) for name in TABLES for path in (name, ONE_FILE.get(name, "")) if path]
    pointers = objects.read_pointers(repo, revision, [f"{domain}/{path}" for _, path in paths])
    found: dict[str, StoredTable] = {}
    for (name, path), file in zip(paths, pointers, strict=True):
        if file and path == name and name in ONE_FILE:
            found[name] = StoredTable(path, objects.read_folder(repo, file, f"dataset {tag or domain}: {name}"), file)
        elif file:
            found.setdefault(name, StoredTable.one_file(path, file))
    return found


def fetch(repo: Path, domain: str, table: StoredTable, what: str) -> list[Path]:
    """Bring a table's parts to this machine's cache, whatever is missing. Raises as `objects.fetch`.

    Args:
        what: how errors call it.
    """
    folder = settings().folder("cache", "datasets", domain, "parts")
    for name in table.parts:
        if not NAME.match(name):
            why, fix = "that is not a part's name", "The list of parts was tampered with: restore it."
            raise ClipftError(f"part {name!r}", why, fix, code="dataset.invalid_manifest")
    missing = [(folder / name, file) for name, file in table.parts.items() if not (folder / name).is_file()]
    if missing:
        objects.fetch(repo, [objects.Wanted(file, path, f"{what} {path.name}") for path, file in missing])
    return [folder / name for name in table.parts]


def read(paths: Sequence[Path]) -> pd.DataFrame:
    """All rows of some parts, in no order; without parts a frame without columns. Raises what pyarrow does."""
    frames = [pd.read_parquet(path) for path in paths]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def store(
    dvc: "Repo", domain: str, name: str, rows: pd.DataFrame, identity: Sequence[str], before: Mapping[str, StoredFile], known: Mapping[str, pd.DataFrame]
) -> StoredTable:  # fmt: skip
    """Put a table into DVC's cache: parts of before that are right for it, and new ones.

    Args:
        rows: of the table. identity: columns of which no two rows say the same.
        before: parts of the version before. known: their rows.
    """
    kept, new = arranged(rows, identity, known)
    folder = settings().folder("cache", "datasets", domain, "parts")
    parts = {part: before[part] for part in kept}
    for some in new:
        path = write(some, folder)
        parts[path.name] = objects.add(dvc, path)
    return StoredTable(name, parts, objects.add_folder(dvc, parts))


def arranged(
    rows: pd.DataFrame, identity: Sequence[str], known: Mapping[str, pd.DataFrame]
) -> tuple[list[str], list[pd.DataFrame]]:
    """Which parts are right for a table as they are, and the rows of those that are to be added.

    Args:
        rows, identity, known: as in `store`.
    """
    names = sorted(name for name, some in known.items() if len(some) and set(some.columns) == set(rows.columns))
    every = pd.concat([rows.head(0), *(known[name] for name in names)], ignore_index=True)
    at = np.split(_places(every, rows, identity), np.cumsum([len(known[name]) for name in names])[:-1]) if names else []
    places = {name: found for name, found in zip(names, at, strict=True) if (found >= 0).all()}

    def loose() -> np.ndarray:
        free = np.ones(len(rows), bool)
        for found in places.values():
            free[found] = False
        return free

    small = [name for name, found in places.items() if len(found) < FULL // 2]
    if len(small) + (0 < loose().sum() < FULL // 2) > MOST_SMALL:
        for name in small:
            del places[name]
    left = rows[loose()]
    order = [column for column in ("shard", "offset", *identity) if column in rows.columns]  # alike rows side by side
    left = left.sort_values(order, ignore_index=True)
    chunks = np.array_split(np.arange(len(left)), -(-len(left) // FULL)) if len(left) else []
    return list(places), [left.iloc[chunk] for chunk in chunks]


def _places(some: pd.DataFrame, rows: pd.DataFrame, identity: Sequence[str]) -> np.ndarray:
    """Where each of some rows stands among `rows` with the same in every column (n,); -1 where it does not."""
    numbered = rows[list(identity)].assign(at=np.arange(len(rows)))
    found: np.ndarray = (
        some[list(identity)].merge(numbered, how="left", on=list(identity))["at"].fillna(-1).to_numpy(int, copy=True)
    )
    there = np.flatnonzero(found >= 0)
    for column in rows.columns.difference(list(identity)):
        same = np.asarray(some[column].iloc[there].array == rows[column].iloc[found[there]].array, bool)
        found[there[~same]], there = -1, there[same]
    return found


def write(rows: pd.DataFrame, folder: Path) -> Path:
    """Write a part. The same rows in the same order give the same file."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    repeated = [column for column in rows.columns if rows[column].nunique() < len(rows) / 2]
    packed = dict.fromkeys(rows.select_dtypes("int64").columns, "DELTA_BINARY_PACKED")
    packed |= dict.fromkeys(rows.columns.intersection(["name", "caption"]), "DELTA_BYTE_ARRAY")
    options = {"use_dictionary": repeated, "column_encoding": {c: how for c, how in packed.items() if c not in repeated}}
    folder.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=folder, suffix=".part")
    os.close(handle)
    try:
        # Without what a reader can do without: of a hundred rows it would take as much as they do.
        pyarrow.parquet.write_table(table, part, compression="zstd", write_statistics=False, store_schema=False, **options)
        digest = hashlib.sha256(Path(part).read_bytes()).hexdigest()
        path = folder / f"{digest[:32]}.parquet"
        Path(part).chmod(0o644)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
    return path

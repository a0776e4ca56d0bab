"""Copies of erased images on this machine and in the store: found by what they hold, and deleted.

What a version of today names is never touched: it holds none. Of the rest goes whatever holds an image that was erased, however it
came there: shards and tables of before, what a killed process pushed or staged, decoded images, what was remembered of images.
"""

import hashlib
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pandas as pd
import pyarrow
from filelock import FileLock, Timeout

from ..contracts.erasure import PlaceSearched
from ..core.files import atomic_write
from ..core.settings import settings
from . import repository, shards, staged
from .erasing import states
from .tables import DECISIONS
from .tombstones import Tombstones, drop_rows
from .versioning import STAGED_LEDGER

SEEN = "erasures-seen"  # under cache: the erasures after which this machine has looked through its own copies


@dataclass(frozen=True)
class Named:
    """What the versions of today name.

    Attributes:
        objects: by MD5. shards: by name. revisions: by domain, of all its versions.
        tombstones: by domain.
    """

    objects: set[str] = field(default_factory=set)
    shards: set[str] = field(default_factory=set)
    revisions: dict[str, set[str]] = field(default_factory=dict)
    tombstones: dict[str, Tombstones] = field(default_factory=dict)

    @classmethod
    def now(cls, repo: Path) -> "Named":
        found = cls()
        for domain in domains(repo):
            found.tombstones[domain] = Tombstones.of(domain, repo)
            for state in states(repo, domain):
                found.objects.update(state.files)
                found.shards.update(state.shards)
            listed = repository.git(repo, "for-each-ref", "--format=%(objectname) %(*objectname)", f"refs/tags/{domain}/")
            found.revisions[domain] = {line.split()[-1] for line in listed.splitlines()}
        return found

    def is_erased(self, sha256: str) -> bool:
        """Was it erased from any domain?"""
        return any(tombstones.holds(sha256) for tombstones in self.tombstones.values())


def domains(repo: Path) -> list[str]:
    """The domains that have, or had, versions."""
    listed = repository.git(repo, "for-each-ref", "--format=%(refname:strip=2)", "refs/tags/").splitlines()
    trees = repository.git(repo, "ls-tree", "-d", "--name-only", repository.head(repo)).splitlines()
    return sorted({tag.partition("/")[0] for tag in listed} | {name for name in trees if not name.startswith(".")})


def holds(content: IO[bytes], is_erased: Callable[[str], bool]) -> bool:
    """Whether a shard or a table holds an erased image, or speaks of one; False of whatever is neither."""
    start = content.read(512)
    content.seek(0)
    if start[:4] == b"PAR1":
        with suppress(pyarrow.ArrowException, ValueError, KeyError):
            return any(map(is_erased, pd.read_parquet(content, columns=["sha256"])["sha256"].unique()))
        return False
    if start[257:262] != b"ustar":
        return False
    with suppress(tarfile.TarError):  # what is cut short holds what comes before
        for member in shards.members(content):
            name = shards.stem(member)
            if len(name) != 64 and not member.name.endswith(".json"):  # of a release that called images by their rows' keys
                content.seek(member.offset_data)
                name = hashlib.sha256(content.read(member.size)).hexdigest()
            if is_erased(name):
                return True
    return False


def delete_here(repo: Path, named: Named, old: Collection[str] = ()) -> list[PlaceSearched]:
    """Delete this machine's copies. Safe to repeat.

    Args:
        old: objects that an erasure replaced, by MD5; they go without being looked at.
    """
    root = settings().root
    erased = {domain for domain, tombstones in named.tombstones.items() if tombstones}
    cache = root / "cache"

    def unnamed_shards() -> Iterator[Path]:
        for path in cache.glob("shards/*.tar"):
            if path.name not in named.shards and _file_holds(path, named):
                yield path

    def stored() -> Iterator[Path]:
        for path in repository.cache(repo).glob("??/*"):
            md5 = path.parent.name + path.name
            if md5 not in named.objects and (md5 in old or _file_holds(path, named)):
                yield path

    def decoded() -> Iterator[Path]:
        for domain in erased:
            current = {revision[:10] for revision in named.revisions.get(domain, ())}
            for path in cache.glob(f"images/{domain}/*"):
                if not any(f"-{revision}-" in path.name for revision in current):
                    yield path

    def tables() -> Iterator[Path]:
        yield from (p for domain in erased for p in cache.glob(f"datasets/{domain}/*/*"))

    def left_in_working_copy() -> Iterator[Path]:
        yield from (p for domain in erased for p in (repo / domain).rglob("*") if p.suffix in (".tar", ".parquet"))

    found = [
        _deleted("shards fetched here", cache.glob("shards/*.tar"), unnamed_shards()),
        _deleted("DVC's cache", repository.cache(repo).glob("??/*"), stored()),
        _deleted("tables fetched here", cache.glob("datasets/*/*/*.parquet"), tables()),
        _deleted("decoded images", cache.glob("images/*/*.npy"), decoded()),
        _deleted("working copy", (), left_in_working_copy()),
        _staged(root / "staging", named),
        _brought(cache / "sources", bool(erased)),
        _described(cache / "described", named),
    ]
    atomic_write(cache / SEEN, _seen(named))
    return found


def delete_where_new(domain: str) -> None:
    """Delete this machine's copies where an erasure of the domain came that it has not heard of yet.

    By what the working copy knows: whoever looked a version up has just asked the origin.
    """
    repo = settings().working_copy
    if not (repo / ".git").exists():
        return
    path = settings().root / "cache" / SEEN
    known = path.read_text().split() if path.exists() else []
    if any(e.id not in known for e in Tombstones.of(domain, repo).erasures):
        delete_here(repo, Named.now(repo))


def delete_stored(repo: Path, named: Named, old: Collection[str]) -> PlaceSearched:
    """Delete from the remote what an erasure replaced, and what nothing names that holds an erased image. Safe to repeat."""
    looked = held = 0
    with repository.dvc(repo, "gc", transient=True) as dvc:
        remote = dvc.cloud.get_remote_odb()
        for md5 in list(remote.all()):
            looked += 1
            if md5 in named.objects:
                continue
            path = remote.oid_to_path(md5)
            if md5 not in old:
                with remote.fs.open(path, "rb") as content:
                    if not holds(content, named.is_erased):
                        continue
            with suppress(FileNotFoundError):
                remote.fs.remove(path)
            held += 1
    note = (
        ""
        if "://" not in settings().remote
        else "a store that keeps versions of its objects keeps the old ones: delete them there"
    )
    return PlaceSearched(place=f"DVC remote {settings().remote}", looked_at=looked, held=held, note=note)


def _file_holds(path: Path, named: Named) -> bool:
    with suppress(OSError), path.open("rb") as content:
        return holds(content, named.is_erased)
    return False


def _deleted(place: str, all_: "Iterator[Path] | tuple[()]", found: Iterator[Path]) -> PlaceSearched:
    looked, gone = sum(1 for _ in all_), list(found)
    for path in gone:
        path.unlink(missing_ok=True)
    return PlaceSearched(place=place, looked_at=looked, held=sum(p.suffix not in (".lock", ".part") for p in gone))


def _staged(root: Path, named: Named) -> PlaceSearched:
    """Staged rows: the whole folder goes where some are erased, and the source is ingested again; else they leave its other tables."""
    looked = held = 0
    running = ""
    for path in root.glob("parts/*.json"):  # what parts of an ingest found out about images
        looked += 1
        if any(map(named.is_erased, json.loads(path.read_text()))):
            path.unlink(missing_ok=True)
            held += 1
    for folder in sorted(p for p in root.glob("*") if p.is_dir() and p.name != "parts"):
        looked += 1
        if folder.suffix == ".building":
            try:
                with FileLock(f"{folder}.lock", blocking=False):
                    pass
            except Timeout:
                running = "an ingest is at work: what it stages of the erased rows is refused when it is to become a version"
                continue
        others = [folder / name for name in (STAGED_LEDGER, DECISIONS)]
        files = [path for path in folder.rglob("*") if path.suffix in (".parquet", ".tar") and path not in others]
        if any(_file_holds(path, named) for path in files):
            shutil.rmtree(folder, ignore_errors=True)
            held += 1
        else:
            held += sum(drop_rows(path, named.is_erased) for path in others) > 0
    return PlaceSearched(place="staged rows", looked_at=looked, held=held, note=running)


def delete_handed_over(named: Named) -> PlaceSearched:
    """Staged rows in the store that tasks hand them over by, where there is one. Raises TransientError when it does not answer."""
    looked = held = 0
    if settings().staging:
        with staged.opened() as (store, base):
            gone: set[str] = set()
            for path in store.find(base):
                looked += 1
                top, _, rest = path.removeprefix(f"{base}/").partition("/")
                with store.open(path, "rb") as content:
                    if top == "parts":
                        gone |= {path} if any(map(named.is_erased, json.load(content))) else set()
                    elif rest and holds(content, named.is_erased):
                        gone.add(f"{base}/{top}")
            for path in gone:
                store.rm(path, recursive=True)
            held = len(gone)
    return PlaceSearched(place="staged rows handed over", looked_at=looked, held=held)


def _brought(folder: Path, erased: bool) -> PlaceSearched:
    """Files of sources that were brought from elsewhere: all go, since any may hold an erased image, and are brought again."""
    there = [path for path in folder.glob("*") if path.is_dir() and path.suffix != ".building"] if erased else []
    for path in there:
        shutil.rmtree(path, ignore_errors=True)
    return PlaceSearched(place="sources brought here", looked_at=len(there), held=len(there))


def _described(folder: Path, named: Named) -> PlaceSearched:
    looked = held = 0
    for path in folder.glob("*.db"):
        table = "files" if path.stem.endswith("-files") else "described"
        with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as db:
            known = [row[0] for row in db.execute(f"select sha256 from {table}")]
            gone = [(sha256,) for sha256 in known if named.is_erased(sha256)]
            looked, held = looked + len(known), held + len(gone)
            if gone:
                db.executemany(f"delete from {table} where sha256 = ?", gone)
                db.execute("vacuum")  # or the bytes would stay in the file
    return PlaceSearched(place="what is remembered of images", looked_at=looked, held=held)


def _seen(named: Named) -> str:
    return "".join(f"{e.id}\n" for tombstones in named.tombstones.values() for e in tombstones.erasures)

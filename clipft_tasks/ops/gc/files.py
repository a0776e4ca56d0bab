"""Garbage in files: work that was given up, caches that nobody reads, captured images past their age."""

import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...core.settings import settings
from ...data.describe import RULES
from ..installation import folder_size, human_size
from .report import DAY, Item, Report

MOST_DESCRIBED = 2 * 2**30  # bytes; of an image about 200 are remembered


class Busy(Protocol):
    """See airflow.Activity."""

    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class Work:
    """Work folders in which nothing was written for `days`."""

    days: float
    title: str = "work folders"

    def find(self) -> Report:
        return Report(_stale(settings().root / "work", self.days, "nothing was written there for {:.0f} days"))


@dataclass(frozen=True)
class Staging:
    """Staged rows of which nothing was written for `days`."""

    days: float
    title: str = "staged rows"

    def find(self) -> Report:
        return Report(_stale(settings().root / "staging", self.days, "rows staged {:.0f} days ago"))


def _stale(root: Path, days: float, reason: str) -> list[Item]:
    found = []
    for folder in _children(root):
        age = written(folder)
        if folder.is_dir() and age > days:
            again = _remove(folder, lambda f: written(f) > days)
            found.append(Item("work", str(folder), reason.format(age), folder_size(folder), again))
    return found


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images that nobody read for `days`, and those beyond the bound, read longest ago first."""

    days: float
    busy: Busy
    title: str = "decoded images"

    def find(self) -> Report:
        files = sorted((settings().root / "cache" / "images").rglob("*.npy"), key=lambda p: p.stat().st_mtime)
        found = _caches(files, self.days, self.busy, "decoded images that nobody read")
        going = {item.what for item in found.items}
        left = [path for path in files if str(path) not in going]
        over, items = sum(p.stat().st_size for p in left) - settings().cache_gb * 2**30, []
        for path in left:
            if over <= 0 or _unread(path) < 1:
                break
            over -= path.stat().st_size
            reason = f"decoded images take more than CLIPFT_CACHE_GB = {settings().cache_gb:g}"
            items.append(Item("caches", str(path), reason, path.stat().st_size, _remove(path, lambda p: _unread(p) >= 1)))
        return found + Report(items)


@dataclass(frozen=True)
class Described:
    """What is remembered of images' bytes: files that nobody read for `days`, of a rule of before, or larger than `MOST_DESCRIBED`."""

    days: float
    busy: Busy
    title: str = "what is remembered of images"

    def find(self) -> Report:
        files = [path for path in _children(settings().root / "cache" / "described") if path.suffix == ".db"]
        found = _caches(files, self.days, self.busy, "what is remembered of images, that nobody read")
        for path in files:
            size = path.stat().st_size
            before = path.name.partition("-")[0] != str(RULES)
            if str(path) in {item.what for item in found.items} or not (before or size > MOST_DESCRIBED) or self.busy.reason:
                continue
            reason = (
                "it was found by a rule of an earlier release" if before else f"it takes more than {human_size(MOST_DESCRIBED)}"
            )
            found += Report([Item("caches", str(path), reason, size, _remove(path, lambda p: True))])
        return found


@dataclass(frozen=True)
class Models:
    """Packages of models that nobody read for `days`, and what the server exported of them."""

    days: float
    busy: Busy
    title: str = "cached models"

    def find(self) -> Report:
        cache = settings().root / "cache"
        paths = [*_children(cache / "models"), *_children(cache / "graphs")]
        return _caches(paths, self.days, self.busy, "a model's package that nobody read")


@dataclass(frozen=True)
class Shards:
    """Shards of data sets that nobody read for `days`."""

    days: float
    busy: Busy
    title: str = "cached shards"

    def find(self) -> Report:
        shards = [p for p in _children(settings().root / "cache" / "shards") if p.suffix == ".tar"]
        return _caches(shards, self.days, self.busy, "a shard that nobody read")


@dataclass(frozen=True)
class BroughtSources:
    """Files of sources that were brought from elsewhere, and unpacked archives, that nobody read for `days`."""

    days: float
    busy: Busy
    title: str = "brought sources"

    def find(self) -> Report:
        folders = [p for p in _children(settings().root / "cache" / "sources") if p.suffix != ".building"]
        return _caches(folders, self.days, self.busy, "files of a source that nobody read")


@dataclass(frozen=True)
class DvcCache:
    """DVC's own cache in the repository of data sets: what is in the remote, and not the working copy's too."""

    days: float
    busy: Busy
    title: str = "DVC's cache"

    def find(self) -> Report:
        return _caches(self._spare(), self.days, self.busy, "DVC has it in its remote too")

    def _spare(self) -> Iterator[Path]:
        remote = settings().remote
        cache = settings().working_copy / ".dvc" / "cache" / "files" / "md5"
        for path in (path for folder in _children(cache) for path in _children(folder)):
            there = Path(remote) / "files" / "md5" / path.parent.name / path.name
            kept = "://" in remote or (there.is_file() and there.stat().st_size == path.stat().st_size)
            if kept and path.stat().st_nlink == 1:
                yield path


def _caches(paths: Iterable[Path], days: float, busy: Busy, what: str) -> Report:
    """Cached files and folders that were not read for some days; all stay while a task may be about to read them."""
    stale = [(p, age) for p in paths if p.suffix not in (".lock", ".part") and (age := _unread(p)) > days]
    if stale and busy.reason:
        return Report(skipped=[f"{len(stale)} of {stale[0][0].parent}: {busy.reason}; they go another time"])
    return Report([
        Item("caches", str(path), f"{what} for {age:.0f} days", _size(path), _remove(path, lambda p: _unread(p) > days))
        for path, age in stale
    ])  # fmt: skip


@dataclass(frozen=True)
class Captures:
    """Captured images past their age, and halves of one that was never whole. The server does the same while it runs."""

    days: float
    title: str = "captured images"

    def find(self) -> Report:
        found = []
        for domain in _children(settings().root / "captures"):
            old = [path for path in _children(domain) if self._too_old(path)]
            if old:
                both = sorted({half for path in old for half in (path, path.with_suffix(".image")) if half.exists()})
                size = sum(p.stat().st_size for p in both)
                reason = f"captured more than {self.days:g} days ago"
                found.append(Item("captures", f"{len(old)} images of {domain.name}", reason, size, remove_all(both)))
        return Report(found)

    def _too_old(self, path: Path) -> bool:
        """Of the JSON of a capture, or of a file that has none."""
        if path.suffix != ".json":
            return not path.with_suffix(".json").exists() and written(path) > self.days
        age = written(path)
        with suppress(OSError, ValueError, KeyError, TypeError):
            age = (time.time() - float(json.loads(path.read_text())["time"])) / DAY
        return age > self.days


# Ages and removal ----------------------------------------------------------------------------------------------------


def _children(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.is_symlink()) if folder.is_dir() else []


def _size(path: Path) -> int:
    return folder_size(path) if path.is_dir() else path.stat().st_size


def _age(path: Path, times: Callable[[os.stat_result], float]) -> float:
    """Days since the newest of the times of a file, or of the files below a folder."""
    newest = 0.0
    for p in (path, *(path.rglob("*") if path.is_dir() else ())):
        with suppress(FileNotFoundError):
            newest = max(newest, times(p.stat()))
    return (time.time() - newest) / DAY


def written(path: Path) -> float:
    """Days since anything of it was written."""
    return _age(path, lambda s: s.st_mtime)


def _unread(path: Path) -> float:
    """Days since it was read or written; a disk that does not note reads counts from writing."""
    return _age(path, lambda s: s.st_mtime if stat.S_ISDIR(s.st_mode) else max(s.st_atime, s.st_mtime))


def _remove(path: Path, still: Callable[[Path], bool]) -> Callable[[], int]:
    def remove() -> int:
        if not path.exists() or not still(path):
            return 0
        size = _size(path)
        if path.is_dir():
            gone = path.with_name(path.name + ".going")  # at once, for whoever looks
            path.replace(gone)
            shutil.rmtree(gone)
        else:
            path.unlink()
        return size

    return remove


def remove_all(paths: list[Path]) -> Callable[[], int]:
    """What removes these files and returns their bytes."""

    def remove() -> int:
        freed = 0
        for path in paths:
            with suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
                freed += size
        return freed

    return remove

"""Files that are whole or not there."""

import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def atomic_write(path: Path, content: bytes | str, mode: int | None = None, durable: bool = False) -> None:
    """Write a file so that readers see the one before or this one, never a part, whenever this process ends.

    Args:
        content: text is written as UTF-8.
        mode: permissions, such as 0o600, in force before a byte is written; default: what the umask gives.
        durable: wait until the disk has it, so that it outlives a power cut.
    Raises: OSError.
    """
    with atomic_path(path, mode, durable) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def atomic_path(path: Path, mode: int | None = None, durable: bool = False, alone: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends well and is removed when not.

    Two writers at once do not meet: each has a path of its own, and the last to end wins.

    Args:
        alone: the caller holds a lock, so that what lies there half-written is a killed process's, and is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f".{path.name[:100]}.", ".part"
    for left in path.parent.glob(f"{glob.escape(prefix)}*{suffix}") if alone else ():
        left.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        part.chmod(0o666 & ~_umask() if mode is None else mode)
        yield part
        if durable:
            _sync(part)
        os.replace(part, path)
        if durable and os.name == "posix":
            _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill; it takes the place of `path` when the block ends well and is removed when not.

    What a killed process left half-filled is removed by the next one. One writer at a time: hold a lock where there may be two.
    """
    building = path.with_name(path.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        shutil.rmtree(path, ignore_errors=True)
        os.replace(building, path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """An empty folder of one's own below `parent` to fill, for any number of writers at once; what is not moved away is removed.

    Halves that killed processes left there are removed; those of processes at work are not, since they hold a lock.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob("*.building"):
        with suppress(Timeout), FileLock(f"{left}.lock", blocking=False):
            shutil.rmtree(left, ignore_errors=True)
            Path(f"{left}.lock").unlink(missing_ok=True)
    building = parent / f"{uuid.uuid4().hex[:12]}.building"
    with FileLock(f"{building}.lock"):
        building.mkdir()
        try:
            yield building
        finally:
            shutil.rmtree(building, ignore_errors=True)
            Path(f"{building}.lock").unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that is never written again a second name, on another disk a copy."""
    try:
        os.link(source, target)
    except OSError:
        with atomic_path(target) as part:
            shutil.copyfile(source, part)


def rename_suffix(folder: Path, old: str, new: str) -> int:
    """Give the files below a folder whose suffix an earlier release wrote another; returns how many there were."""
    renamed = 0
    for path in sorted(folder.rglob(f"*{old}")):
        try:
            path.rename(path.with_suffix(new))
            renamed += 1
        except FileNotFoundError:  # somebody else was quicker
            pass
    return renamed


def evict(files: Iterable[Path], limit: int, keep: Callable[[Path], bool]) -> None:
    """Delete the files that were used longest ago until all take at most `limit` bytes.

    Args:
        keep: whether a file stays in any case.
    """
    used = sorted((status.st_mtime, status.st_size, file) for file in files for status in [file.stat()])
    total = sum(size for _, size, _ in used)
    for _, size, file in used:
        if total <= limit:
            return
        if not keep(file):
            file.unlink(missing_ok=True)
            total -= size


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """The process's umask, which can only be read by setting it; another thread may then write, so it is set to the strictest."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

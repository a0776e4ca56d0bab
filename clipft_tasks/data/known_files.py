"""Which image a file holds, as of when: a file that nobody has written to since need not be read again.

A file is known again by its path, device, inode, size and the times of its last change, of content and of attributes. The latter cannot
be set, so a file that was replaced by one of the same size and time is seen. Who writes twice within one tick of the file system's clock
changes no time: a file that was changed in the last seconds is not remembered, as in git's index. What is remembered holds
for the code and the decoders that read it.
"""

import hashlib
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from ..core import versions
from ..core.settings import settings
from .describe import REMEMBER, RULES
from .images import BadImageError
from .readers.base import ImageFile

AT_ONCE = 100_000  # files that are looked up all at once, which takes a tenth of the time; of more, each by itself
SETTLED = 4.0  # seconds; the times of some file systems are multiples of two
DECODERS = (
    "pillow",
    "pydicom",
    "numpy",
    "tifffile",
    "nibabel",
    "pylibjpeg-openjpeg",
    "pylibjpeg-libjpeg",
    "imagecodecs",
    "pillow-heif",
)


@dataclass(frozen=True)
class FileState:
    """A file as it is now. at: a digest of its path and what is read of it; "" for bytes that are in no file. sha256: "" where unknown."""

    at: str = ""
    state: str = ""
    settled: bool = False
    sha256: str = ""


class KnownFiles:
    """A small database under home, shared by all processes of it. One that cannot be used costs time, and nothing else."""

    def __init__(self) -> None:
        self.fresh: list[tuple[str, str, str]] = []
        self.there: sqlite3.Connection | None = None
        with suppress(sqlite3.Error):
            self.there = sqlite3.connect(settings().folder("cache", "described") / f"{RULES}-files.db", timeout=30)
            self.there.execute("create table if not exists files (at text primary key, state text, sha256 text) without rowid")
        self.all: dict[str, tuple[str, str]] | None = None
        with suppress(sqlite3.Error):
            if self.there and self.there.execute("select count(*) from files").fetchone()[0] <= AT_ONCE:
                self.all = {at: (state, sha256) for at, state, sha256 in self.there.execute("select * from files")}

    def look(self, read: Callable[[], bytes]) -> FileState:
        """What is known of the file that `read` reads, before it is read."""
        if not isinstance(read, ImageFile):
            return FileState()
        try:
            path, about = read.find()
        except (BadImageError, OSError):  # reading it says why
            return FileState()
        at = hashlib.blake2b(f"{path}\0{read.part}".encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        times = (about.st_mtime_ns, about.st_ctime_ns)
        state = " ".join(map(str, (about.st_dev, about.st_ino, about.st_size, *times, _readers())))
        settled = max(times) < time.time_ns() - SETTLED * 1e9
        known = self._known(at)
        return FileState(at, state, settled, known[1] if known and known[0] == state else "")

    def _known(self, at: str) -> tuple[str, str] | None:
        """State and image of a file when it was read last."""
        if self.all is not None:
            return self.all.get(at)
        found: tuple[str, str] | None = None
        with suppress(sqlite3.Error):
            if self.there:
                found = self.there.execute("select state, sha256 from files where at = ?", (at,)).fetchone()
        return found

    def add(self, file: FileState, sha256: str) -> None:
        """Remember the image that was read from a file after it was looked at."""
        if file.settled and file.sha256 != sha256:
            self.fresh.append((file.at, file.state, sha256))
            if len(self.fresh) >= REMEMBER:
                self._write()

    def _write(self) -> None:
        with suppress(sqlite3.Error):
            if self.there:
                with self.there:
                    self.there.executemany("insert or replace into files values (?, ?, ?)", self.fresh)
        self.fresh.clear()

    def close(self) -> None:
        self._write()
        if self.there:
            self.there.close()


@cache
def _readers() -> str:
    """A digest of what decides how a file becomes an image's bytes."""
    found = [versions.digest()]
    for package in DECODERS:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return hashlib.blake2b("\n".join(found).encode(), digest_size=8).hexdigest()

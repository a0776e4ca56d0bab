"""Staged rows between tasks that share no disk: by way of a store that settings name (`CLIPFT_STAGING`), else by a folder under home.

A staging folder is named by its content, so what was handed over once is not written again. What parts of an ingest found out about
images goes the same way.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..contracts.dataset import RowsChecked
from ..core.console import progress
from ..core.errors import ClipftError, TransientError
from ..core.files import atomic_path
from ..core.settings import settings
from .describe import Described

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

AT_ONCE = 8  # files
WHOLE = "files.json"  # names and sizes; written last
FOLDER, FILE, PART = (re.compile(form) for form in (r"[\w-]+", r"(shards/)?[\w-]+\.\w+", r"[0-9a-f]{32}\.json"))


def publish(folder: Path) -> str:
    """Hand a staging folder over. Returns: what `fetch` finds it by. Raises TransientError when the store does not answer."""
    if not settings().staging:
        return str(folder)
    address = f"{settings().staging.rstrip('/')}/{folder.name}"
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    with _Store(address) as store:
        if store.read(WHOLE) is None:
            store.each(sizes, lambda name: store.write(name, folder / name), "files handed over")
            store.write_text(WHOLE, json.dumps(sizes))
    return address


def fetch(staging: str, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """A staging folder on this machine.

    Args:
        wanted: which files are needed, by name in it (`shards/….tar`).
    Raises: TransientError when the store does not answer. ClipftError where nothing was handed over there.
    """
    if "://" not in staging and not settings().staging:
        return Path(staging)
    place, _, name = staging.rpartition("/")
    if place != settings().staging.rstrip("/") or not FOLDER.fullmatch(name):
        why = f"they are not in the store of this machine, CLIPFT_STAGING={settings().staging}"
        raise ClipftError(f"staged rows {staging}", why, "Set it alike on all machines.", code="dataset.not_staged")
    folder = settings().folder("staging", name)
    with _Store(staging) as store:
        if (told := store.read(WHOLE)) is None:
            why, fix = "nothing whole was handed over there, or it was removed", "Ingest the source again."
            raise ClipftError(f"staged rows {staging}", why, fix, code="dataset.not_staged")
        sizes = {name: size for name, size in json.loads(told).items() if FILE.fullmatch(name) and wanted(name)}
        missing = [name for name, size in sizes.items() if not _is_here(folder / name, size)]
        store.each(missing, lambda name: store.get(name, folder / name), "files fetched")
    return folder


def publish_described(found: Mapping[str, Described]) -> str:
    """Hand over what a part of an ingest found out about images, by sha256. Returns: what `described` finds it by."""
    return _publish_part(json.dumps({sha256: asdict(found[sha256]) for sha256 in sorted(found)}))


def described(names: Iterable[str]) -> dict[str, Described]:
    """What parts found out, by sha256. One that is missing costs time, and nothing else. Raises TransientError."""
    found: dict[str, Described] = {}
    with _Store(_parts()) as store:
        for name in names:
            told = json.loads((PART.fullmatch(name) and store.read(name)) or "{}")
            found |= {sha256: Described(**said) for sha256, said in told.items()}
    return found


def publish_checked(found: RowsChecked) -> str:
    """Hand over what a part of the checks found out of rows. Returns: what `checked` finds it by."""
    return _publish_part(found.model_dump_json())


def checked(name: str, part: int, of: int, rows: int) -> RowsChecked | None:
    """What a part found out, None where that is gone or of other rows. Raises TransientError."""
    with _Store(_parts()) as store:
        told = PART.fullmatch(name) and store.read(name)
    found = RowsChecked.from_json(json.loads(told), name) if told else None
    return found if found and (found.part, found.of, found.rows) == (part, of, rows) else None


def _publish_part(text: str) -> str:
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    with _Store(_parts()) as store:
        store.write_text(name, text)
    return name


@contextmanager
def opened() -> Iterator[tuple["AbstractFileSystem", str]]:
    """The store that settings name, and where in it everything lies. Raises TransientError when it does not answer."""
    with _Store(settings().staging.rstrip("/")) as store:
        yield store.fs, store.base.rstrip("/")


def _parts() -> str:
    return f"{settings().staging.rstrip('/') or settings().folder('staging')}/parts"


def _is_here(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


class _Store:
    """The files below an address, or below a path. Errors of a store's own library come out as TransientError."""

    def __init__(self, address: str) -> None:
        from fsspec.core import url_to_fs

        self.fs: AbstractFileSystem
        self.fs, self.base = url_to_fs(address, use_listings_cache=False) if "://" in address else url_to_fs(address)
        self.address = address

    def __enter__(self) -> "_Store":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, (ClipftError, TransientError)):
            raise TransientError(f"staged rows {self.address}: {type(error).__name__}: {str(error)[:300]}.") from error

    def read(self, name: str) -> bytes | None:
        """None where it is not there."""
        try:
            return bytes(self.fs.cat_file(f"{self.base}/{name}"))
        except FileNotFoundError:
            return None

    def write_text(self, name: str, text: str) -> None:
        self.fs.makedirs(self.base, exist_ok=True)
        if "file" in self.fs.protocol:
            with atomic_path(Path(self.base) / name) as part:
                part.write_text(text)
        else:
            self.fs.pipe_file(f"{self.base}/{name}", text.encode())

    def write(self, name: str, path: Path) -> None:
        target = f"{self.base}/{name}"
        self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.fs.put_file(str(path), target)

    def get(self, name: str, path: Path) -> None:
        with atomic_path(path) as part:
            self.fs.get_file(f"{self.base}/{name}", str(part))

    def each(self, names: Iterable[str], one: Callable[[str], None], what: str) -> None:
        names = list(names)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            done = pool.map(one, names)
            for _ in progress(done, what, len(names)) if len(names) > AT_ONCE else done:
                pass

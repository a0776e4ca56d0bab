"""The bytes of versions: files known by their MD5, in the store that DVC reads (its cache, and the remote behind it).

A version's pointers lie in git, as `dvc add` writes them, so `dvc pull` works in a clone of the repository. They are written and
read here object by object: a new version neither brings the shards of the last one to this machine nor looks at them.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import yaml

from ..core.console import progress, say
from ..core.errors import ClipftError, TransientError
from ..core.files import atomic_path
from . import repository, shards

if TYPE_CHECKING:
    from dvc.repo import Repo
    from fsspec.callbacks import Callback

AT_ONCE = 8  # files that are fetched at a time
HALF_FETCHED = 86_400  # seconds after which what lies half-fetched is a killed process's


@dataclass(frozen=True)
class StoredFile:
    """A file in the store. `size` in bytes; 0 where an earlier release did not write it down."""

    md5: str
    size: int = 0


@dataclass(frozen=True)
class Wanted:
    """A file to fetch: which, where to, and how errors call it."""

    file: StoredFile
    target: Path
    name: str


def read_pointers(repo: Path, revision: str, paths: Sequence[str]) -> list[StoredFile | None]:
    """What git says at a revision of files, or of folders, that DVC keeps (`general/shards`); None where it says nothing."""
    found: list[StoredFile | None] = []
    for content in repository.cat_files(repo, [f"{revision}:{path}.dvc" for path in paths]):
        out = yaml.safe_load(content)["outs"][0] if content is not None else None
        found.append(StoredFile(out["md5"], int(out.get("size", 0))) if out else None)
    return found


def pointer(name: str, file: StoredFile, files: int | None = None) -> str:
    """What git says of a file or folder that DVC keeps."""
    said = {"md5": file.md5, "size": file.size} | ({} if files is None else {"nfiles": files})
    return yaml.safe_dump({"outs": [said | {"hash": "md5", "path": name}]}, sort_keys=False)


def read_folder(repo: Path, folder: StoredFile, what: str) -> dict[str, StoredFile]:
    """The files of a stored folder, by name. Raises as `fetch`, calling it `what`."""
    target = repository.cache(repo) / folder.md5[:2] / folder.md5[2:]
    if not target.exists():
        fetch(repo, [Wanted(folder, target, f"{what} (list of files)")])
    return {entry["relpath"]: StoredFile(entry["md5"]) for entry in json.loads(target.read_bytes())}


def fetch(repo: Path, wanted: Iterable[Wanted]) -> None:
    """Bring files to their places, several at a time; each appears whole, and a shard only where its bytes are what its name says.

    Raises:
        TransientError: the remote does not answer.
        ClipftError: a file is nowhere, or a shard's bytes are not what its name says.
    """
    local, away = repository.cache(repo), []
    for file in wanted:
        there = local / file.file.md5[:2] / file.file.md5[2:]
        if there.exists():
            _bring(file, partial(shutil.copyfile, there))
        else:
            away.append(file)
    if not away:
        return
    with repository.dvc(repo, "fetch", transient=True, reading=True) as dvc, ThreadPoolExecutor(AT_ONCE) as pool:
        remote = dvc.cloud.get_remote_odb()

        def one(file: Wanted) -> None:
            _bring(file, lambda part: remote.fs.get_file(remote.oid_to_path(file.file.md5), str(part)))

        done = pool.map(one, away)
        for _ in progress(done, "files fetched", len(away)) if len(away) > AT_ONCE else done:
            pass


def _bring(file: Wanted, get: Callable[[Path], object]) -> None:
    _remove_half_fetched(file.target)
    with atomic_path(file.target) as part:
        try:
            get(part)
        except FileNotFoundError as error:
            why = f"{file.name} is neither in the cache nor in the remote"
            fix = "Push it again, or put it back from a backup."
            raise ClipftError("the store of data sets", why, fix, code="dataset.incomplete") from error
        except Exception as error:  # a store's own library raises what it likes
            raise TransientError(f"{file.name} cannot be fetched ({error}).") from error
        if shards.NAME.match(file.target.name):
            shards.check(part, file.target.name)  # before it has its name: what stands in the cache is whole
        elif file.target.suffix == ".parquet" and (found := _md5(part)) != file.file.md5:
            why, fix = f"its bytes are not those that were stored ({found})", "Put it back from a backup."
            raise ClipftError(file.name, why, fix, code="dataset.damaged_table")


@contextmanager
def opened(repo: Path, file: StoredFile) -> Iterator[IO[bytes]]:
    """A stored file, to look at where it lies. Raises as `fetch`."""
    there = repository.cache(repo) / file.md5[:2] / file.md5[2:]
    if there.exists():
        with there.open("rb") as content:
            yield content
        return
    with repository.dvc(repo, "open", transient=True, reading=True) as dvc:
        remote = dvc.cloud.get_remote_odb()
        with remote.fs.open(remote.oid_to_path(file.md5), "rb") as content:
            yield content


def size_of(repo: Path, file: StoredFile) -> int:
    """Bytes of a stored file. Raises as `fetch`."""
    there = repository.cache(repo) / file.md5[:2] / file.md5[2:]
    if there.exists():
        return there.stat().st_size
    with repository.dvc(repo, "stat", transient=True, reading=True) as dvc:
        remote = dvc.cloud.get_remote_odb()
        return int(remote.fs.size(remote.oid_to_path(file.md5)))


def add(dvc: "Repo", path: Path) -> StoredFile:
    """Put a file into DVC's cache; its own file and the cache's are one where the disk allows it: write neither again."""
    from dvc.fs import LocalFileSystem

    md5 = _md5(path)
    dvc.cache.local.add(str(path), LocalFileSystem(), md5, hardlink=True)
    return StoredFile(md5, path.stat().st_size)


def _md5(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def add_folder(dvc: "Repo", files: Mapping[str, StoredFile]) -> StoredFile:
    """Put the list of a folder's files into DVC's cache."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()  # type: ignore[no-untyped-call]
    for name, file in files.items():
        tree.add((name,), None, HashInfo("md5", file.md5))
    tree.digest()
    dvc.cache.local.add(tree.path, tree.fs, tree.oid)
    return StoredFile(str(tree.oid), sum(file.size for file in files.values()))


def push(dvc: "Repo", files: Iterable[StoredFile]) -> None:
    """Bring files to the remote that it does not hold yet, several at a time, lists of folders after what they list.

    Raises: ClipftError when a file is neither in the cache nor in the remote; what a store's own library raises.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.transfer import transfer

    named = {file.md5 for file in files}
    remote = dvc.cloud.get_remote_odb()
    done = transfer(dvc.cache.local, remote, {HashInfo("md5", md5) for md5 in named}, callback=_told(), shallow=False)
    if done.failed:
        raise OSError(f"{len(done.failed)} of {len(named)} files did not arrive")
    if missing := named - set(remote.oids_exist(sorted(named))):
        why = f"{len(missing)} of its {len(named)} files are neither in the cache nor in the remote, e.g. {min(missing)}"
        raise ClipftError("a new version", why, "Put them back from a backup.", code="dataset.incomplete")


def _told() -> "Callback":
    from fsspec.callbacks import Callback

    class Told(Callback):  # type: ignore[misc]
        """Says how far a push is, every few seconds."""

        last = time.monotonic()

        def call(self, hook_name: str | None = None, **kwargs: object) -> None:
            if time.monotonic() - self.last > 5:
                self.last = time.monotonic()
                say(f"files pushed: {self.value}/{self.size}")

    return Told()


def _remove_half_fetched(target: Path) -> None:
    for left in target.parent.glob(f".{target.name[:100]}.*.part"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > HALF_FETCHED:
                left.unlink()

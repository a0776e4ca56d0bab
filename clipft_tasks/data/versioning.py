"""Dataset versions: a git repository with DVC, one folder a domain, one tag a version (`industrial/v3`).

    <domain>/shards/           DVC: only the shards that the manifest names
    <domain>/manifest.parquet  DVC
    <domain>/splits.parquet    DVC: the split of every image that any version of the domain ever held
    <domain>/datacard.json     git: counts, source, license, content digest, parents

Data is pushed before the commit, and the tag comes last: a tag never points at bytes that are not there. Whatever a
killed process leaves behind is put back by the next one.
"""

import base64
import json
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from filelock import FileLock

from ..core.errors import ClipftError, Transient
from ..core.settings import is_url, settings
from . import manifest, shards

if TYPE_CHECKING:
    from dvc.repo import Repo

REFUSED = re.compile(r"returned error: 40[13]|Authentication failed|could not read Username")  # trying again does not help
TAG = re.compile(r"^(?P<domain>[a-z_][a-z0-9_]*)/v(?P<number>\d+)$")


@dataclass(frozen=True)
class Version:
    """An immutable dataset version."""

    domain: str
    number: int
    revision: str  # git commit
    card: dict[str, Any]

    @property
    def tag(self) -> str:
        return f"{self.domain}/v{self.number}"


@dataclass(frozen=True)
class Dataset:
    """A version's rows and shards, on this machine."""

    version: Version
    frame: pd.DataFrame
    folder: Path  # of the shards

    def split(self, name: str) -> pd.DataFrame:
        return self.frame[self.frame["split"] == name].reset_index(drop=True)

    @property
    def classes(self) -> list[str]:
        return sorted(set(self.frame["label"]) - {""})

    def added(self, frame: pd.DataFrame) -> np.ndarray:
        """Which rows came with this version (n,), bool: captured and judged since its parent. All False without a parent."""
        card = self.version.card
        if not card.get("source", "").startswith("captures:") or not card.get("parents"):
            return np.zeros(len(frame), dtype=bool)
        parent = read_manifest(find(card["parents"][-1], self.version.domain))
        return ~frame["sha256"].isin(set(parent["sha256"])).to_numpy()

    def image_bytes(self, row: Any) -> bytes:
        """The bytes of a row's image (a Series or named tuple with shard, offset, length)."""
        return shards.read(self.folder, shards.Place(row.shard, int(row.offset), int(row.length)))


def versions(domain: str) -> list[Version]:
    """The domain's versions, oldest first; empty before the first."""
    with _repo() as repo:
        return _versions(repo, domain)


def find(name: str, domain: str) -> Version:
    """The version called `name` (`industrial/v3`), or the newest of `domain` when `name` is empty.

    Raises:
        ClipftError: no such version, with those that exist.
    """
    match = TAG.match(name) if name else None
    if name and not match:
        raise ClipftError(f"dataset {name!r}", "it is not <domain>/v<number>", "For example industrial/v1.")
    found = versions(match["domain"] if match else domain)
    if not name:
        if not found:
            raise ClipftError(f"dataset of {domain}", "there is no version yet", "Run the dataset DAG or `clipft ingest`.")
        return found[-1]
    for version in found:
        if version.tag == name:
            return version
    known = ", ".join(v.tag for v in found) or "none"
    raise ClipftError(f"dataset {name}", "there is no such version", f"Known: {known}.")


def splits_ledger(domain: str) -> dict[str, str]:
    """sha256 of an image -> its split, for every image any version of the domain ever held."""
    with _repo() as repo:
        found = _versions(repo, domain)
        if not found:
            return {}
        frame = pd.read_parquet(_fetch_file(repo, found[-1], "splits.parquet"))
    return dict(zip(frame["sha256"], frame["split"], strict=True))


def read_manifest(version: Version) -> pd.DataFrame:
    with _repo() as repo:
        return manifest.read(_fetch_file(repo, version, "manifest.parquet"))


def fetch(version: Version) -> Dataset:
    """Bring a version's manifest and shards to this machine's cache, whatever is missing, and check them by their names.

    Raises:
        Transient: the remote does not answer.
        ClipftError: bytes that are not what their name says.
    """
    folder = settings().folder("cache", "shards")
    with _repo() as repo:
        frame = manifest.read(_fetch_file(repo, version, "manifest.parquet"))
        for name in sorted(frame["shard"].unique()):
            if not shards.NAME.match(name):
                shards.path_of(folder, name)  # refuses it with the reason
            if not (folder / name).is_file():
                _fetch_file(repo, version, f"shards/{name}", folder / name)
        if settings().shards_gb:
            _make_room(folder, int(settings().shards_gb * 2**30), set(frame["shard"]))
    return Dataset(version, frame, folder)


def _make_room(folder: Path, limit: int, needed: set[str]) -> None:
    """Drop the shards that were needed longest ago until all take at most `limit` bytes; those needed now stay in any case."""
    kept = []
    for path in folder.iterdir():
        if path.name in needed:
            os.utime(path)
        if shards.NAME.match(path.name):
            kept.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total > limit and path.name not in needed:
            path.unlink()
            total -= size


def commit(domain: str, staging: Path, card: dict[str, Any]) -> tuple[Version, bool]:
    """Make a version of a staged manifest and its new shards, or find the one that holds the same content.

    Args:
        staging: folder with `manifest.parquet`, `splits.parquet` and `shards/` (only those that are new).
        card: the data card; `content` is the digest that makes two versions equal.
    Returns:
        the version, and whether it is new.
    Raises:
        Transient: the remote or the repository's origin does not answer; nothing was tagged.
        ClipftError: this machine may only read.
    """
    if settings().reads_only:
        raise ClipftError(
            f"a new version of {domain}",
            "this machine reads data over HTTP and cannot push any",
            "Make it on the control plane.",
        )
    with _repo() as repo:
        found = _versions(repo, domain)
        for version in reversed(found):
            if version.card.get("content") == card["content"]:
                return version, False
        number = found[-1].number + 1 if found else 1
        tag = f"{domain}/v{number}"

        home = repo / domain
        kept = home / "shards"
        kept.mkdir(parents=True, exist_ok=True)
        if found and (home / "shards.dvc").exists():
            with _dvc(repo, "pull", transient=True) as dvc:
                dvc.pull([str(home / "shards.dvc"), str(home / "splits.parquet.dvc")], force=True)
        frame = manifest.read(staging / "manifest.parquet")
        wanted = set(frame["shard"])
        for path in kept.iterdir():
            if path.name not in wanted:
                path.unlink()
        for name in sorted(wanted - {p.name for p in kept.iterdir()}):
            shutil.copyfile(shards.path_of(staging / "shards", name), kept / name)
        for name in ("manifest.parquet", "splits.parquet"):
            (home / name).unlink(missing_ok=True)  # a hard link into DVC's cache is never written through
            shutil.copyfile(staging / name, home / name)
        (home / "datacard.json").write_text(json.dumps(card | {"version": tag}, indent=1, sort_keys=True) + "\n")

        tracked = [str(home / name) for name in ("shards", "manifest.parquet", "splits.parquet")]
        with _dvc(repo, "add") as dvc:
            dvc.add(tracked)
        with _dvc(repo, "push", transient=True) as dvc:
            dvc.push([f"{t}.dvc" for t in tracked])
        _git(repo, "add", "--all", domain, ".dvc", ".dvcignore")
        if _git(repo, "status", "--porcelain"):  # a process killed before the tag has committed already
            _git(repo, "commit", "--quiet", "--message", f"{tag}: {card['rows']} rows from {card['source']}")
        _git(repo, "tag", "--annotate", tag, "--message", json.dumps(card["counts"]))
        _publish(repo, tag)
        return _versions(repo, domain)[-1], True


def remote_bytes() -> int:
    """Bytes in the DVC remote when it is a folder; what a push added is the difference of two calls."""
    root = Path(settings().remote)
    return sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) if root.is_dir() else 0


def bundle(target: Path) -> bool:
    """Write the whole repository, every version of every domain, to one file. Returns False when there is no repository yet."""
    path = working_copy()
    if not is_url(settings().datasets) and not (path / ".git").exists():
        return False
    with _repo() as repo:
        _git(repo, "bundle", "create", str(target), "--all")
    return True


def unbundle(source: Path) -> None:
    """Make the repository anew from a bundle, where there is none, with the remote that settings name.

    Raises:
        ClipftError: there is a repository with versions already, or the bundle is none.
        Transient: the repository's origin does not answer.
    """
    path, origin = working_copy(), settings().datasets
    if path.exists() and any(path.iterdir()):
        raise ClipftError(f"repository {path}", "there is one already", "Restore into an empty home.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path) + ".lock"):
        building = path.with_name(path.name + ".building")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        _git(building, "init", "--quiet", "--initial-branch", "main")
        _git(
            building,
            "fetch",
            "--quiet",
            "--update-head-ok",
            str(source),
            "refs/heads/*:refs/heads/*",
            "refs/tags/*:refs/tags/*",
        )
        if is_url(origin):
            if _git(building, "ls-remote", "--tags", origin, transient=True):
                raise ClipftError(f"repository {origin}", "it holds versions already", "Restore into an empty repository.")
            _git(building, "remote", "add", "origin", origin)
            _git(building, "push", "--quiet", "--force", "origin", "main", "--tags", transient=True)
        _git(building, "reset", "--quiet", "--hard", "main")
        _init(building, None)
        _git(building, "update-server-info")
        if path.exists():  # empty: where a volume is mounted, perhaps
            for child in list(building.iterdir()):
                shutil.move(child, path / child.name)
            building.rmdir()
        else:
            os.replace(building, path)
        with _dvc(path, "remote modify") as dvc, dvc.config.edit("local") as config:
            config["remote"]["store"] = {"url": settings().remote}  # as here, whatever the versions say


def working_copy() -> Path:
    """Where the repository lies on this machine."""
    return settings().working_copy


# The repository ------------------------------------------------------------------------------------------------------


@contextmanager
def _repo() -> Iterator[Path]:
    """The local working copy, alone: created or cloned on first use, put back if a killed process left it half-changed."""
    source, path = settings().datasets, working_copy()
    remote = is_url(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path) + ".lock"):
        if not (path / ".dvc" / "config").exists() or not (path / ".git").exists():
            _create(path, source if remote else None)
        for stale in (path / ".git").rglob("*.lock"):  # ours alone, under the lock above
            stale.unlink()
        if remote:
            # Tags too are the origin's: one that never arrived there is made again, one that lost a race gives way.
            _git(
                path,
                "fetch",
                "--prune",
                "origin",
                "+refs/heads/*:refs/remotes/origin/*",
                "+refs/tags/*:refs/tags/*",
                transient=True,
            )
            _git(path, "reset", "--quiet", "--hard", "origin/main")
        elif _git(path, "status", "--porcelain"):
            _git(path, "reset", "--quiet", "--hard")
            _git(path, "clean", "--quiet", "-fd")
        yield path


def _create(path: Path, url: str | None) -> None:
    if url:  # cloned beside its place, so that a first push that fails leaves nothing behind
        building = path.with_name(path.name + ".building")
        shutil.rmtree(building, ignore_errors=True)
        _git(path.parent, "clone", "--quiet", url, str(building), transient=True)
        _init(building, url)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(building, path)
    else:
        _init(path, None)


def _init(path: Path, url: str | None) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if settings().reads_only and not (path / ".dvc" / "config").exists():
        raise ClipftError("the data sets", f"there is none at {url} yet", "Run the dataset DAG first.")
    if not (path / ".git").exists():
        _git(path, "init", "--quiet", "--initial-branch", "main")
    _git(path, "config", "user.name", "clipft")
    _git(path, "config", "user.email", "clipft@localhost")
    if (path / ".dvc" / "config").exists():
        return
    with _dvc(path, "init", new=True) as dvc, dvc.config.edit() as config:
        config["core"] |= {"analytics": "false", "remote": "store"}
        config["cache"]["type"] = "reflink,hardlink,copy"
        config["remote"]["store"] = {"url": settings().remote}
    if "://" not in settings().remote:
        Path(settings().remote).mkdir(parents=True, exist_ok=True)
    (path / "README.md").write_text("Dataset versions. One folder a domain, one tag a version; written by clipft.\n")
    _git(path, "add", "--all")
    _git(path, "commit", "--quiet", "--message", "An empty repository of data sets")
    if url:
        _git(path, "push", "--quiet", "origin", "HEAD:main", transient=True)


def _versions(repo: Path, domain: str) -> list[Version]:
    listed = _git(repo, "for-each-ref", "--format=%(refname:strip=2) %(*objectname)", f"refs/tags/{domain}/")
    found = []
    for line in listed.splitlines():
        tag, revision = line.split()
        match = TAG.match(tag)
        if match:
            card = json.loads(_git(repo, "show", f"{revision}:{domain}/datacard.json"))
            found.append(Version(domain, int(match["number"]), revision, card))
    return sorted(found, key=lambda v: v.number)


def _publish(repo: Path, tag: str) -> None:
    _git(repo, "update-server-info")  # a plain file server may hand the repository on
    if _git(repo, "remote"):
        _git(repo, "push", "--quiet", "--atomic", "origin", "HEAD:main", f"refs/tags/{tag}", transient=True)


def _fetch_file(repo: Path, version: Version, name: str, target: Path | None = None) -> Path:
    """A DVC-tracked file of a version, through the repository's cache or its remote; never through the working copy."""
    target = target or settings().folder("cache", "datasets", version.domain, f"v{version.number}") / name
    stamp = target.with_name(target.name + f".{version.revision[:12]}")
    if name.startswith("shards/") or not (target.exists() and stamp.exists()):
        from dvc.api import DVCFileSystem

        part = target.with_name(target.name + ".part")
        try:
            files = DVCFileSystem(repo=str(repo), rev=version.revision, config=_reading())
            files.get_file(f"{version.domain}/{name}", str(part))
        except FileNotFoundError as error:
            raise ClipftError(
                f"dataset {version.tag}", f"{name} is neither in the cache nor in the remote", "Push it again."
            ) from error
        except OSError as error:
            raise Transient(f"dataset {version.tag}: {name} cannot be fetched ({error}).") from error
        if name.startswith("shards/"):
            shards.check(part, target.name)  # before it has its name: what stands in the cache is whole
        os.replace(part, target)
        if not name.startswith("shards/"):
            stamp.touch()
    return target


def _reading() -> dict[str, Any] | None:
    """Where a reader over HTTP finds the bytes; the repository itself names the remote that versions are pushed to."""
    if not settings().reads_only:
        return None
    remote: dict[str, Any] = {"url": settings().remote}
    if who := settings().credentials:
        remote |= {"auth": "basic", "user": who[0], "password": who[1]}
    return {"core": {"remote": "reader"}, "remote": {"reader": remote}}


def _git(cwd: Path, *args: str, transient: bool = False) -> str:
    # A repository must behave the same under any user's git configuration.
    callers = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")
    inherited = {k: v for k, v in os.environ.items() if k not in callers}  # set inside a git hook
    env = {**inherited, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0"}
    if who := settings().credentials:  # by the environment: neither a command line nor a file shows it
        basic = base64.b64encode(":".join(who).encode()).decode()
        env |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"http.{settings().datasets}.extraHeader"}
        env |= {"GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}"}
    done = subprocess.run(["git", *args], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise _failed(f"git {' '.join(args)}", cwd, " ".join(reason[-3:]), transient)
    return done.stdout.strip()


@contextmanager
def _dvc(path: Path, command: str, *, new: bool = False, transient: bool = False) -> Iterator["Repo"]:
    """DVC's repository, for what `command` says, in this process: in its own, DVC takes longer to import than to do it."""
    from dvc.logger import set_loggers_level
    from dvc.repo import Repo

    reasons = _Reasons()
    logger = logging.getLogger("dvc_data")
    logger.addHandler(reasons)
    try:
        with set_loggers_level(logging.ERROR), Repo.init(str(path), force=True) if new else Repo(str(path)) as repo:
            yield repo  # what it says when all is well is advice to a person at its own command line
    except Exception as error:  # a store's own library raises what it likes
        raise _failed(f"dvc {command}", path, " ".join([str(error), *reasons.said[-1:]]), transient) from error
    finally:
        logger.removeHandler(reasons)


class _Reasons(logging.Handler):
    """Why files did not arrive: DVC's exceptions only count them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        why = record.exc_info[1] if record.exc_info else None
        self.said.append(f"{record.getMessage()}: {why}" if why else record.getMessage())


def _failed(command: str, cwd: Path, reason: str, transient: bool) -> ClipftError | Transient:
    message = f"`{command}` in {cwd} failed: {reason}"
    if transient and not REFUSED.search(message):
        return Transient(message)
    return ClipftError("the repository of data sets", message, "Mend the repository, then run again.")

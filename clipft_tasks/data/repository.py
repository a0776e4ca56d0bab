"""The repository of data sets: git with DVC, one working copy a machine, changed by one process at a time.

Data is pushed before the commit, and the tag comes last: a tag never points at bytes that are not there. Whatever a
killed process leaves behind is put back by the next one that changes it.

Two locks: whoever makes a version holds the one of `opened` from begin to end, its pushes included; the other is held for the
moments in which git's references change, so nobody who only reads waits for a push.
"""

import base64
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from ..core.errors import ClipftError, TransientError
from ..core.files import atomic_folder
from ..core.settings import is_url, settings

if TYPE_CHECKING:
    from dvc.repo import Repo

REFUSED = re.compile(r"returned error: 40[13]|Authentication failed|could not read Username")  # trying again does not help


@contextmanager
def opened() -> Iterator[Path]:
    """The local working copy, to change it, alone; put back if a killed process left it half-changed.

    Raises:
        TransientError: the repository's origin does not answer.
        ClipftError: there is none, and this machine may only read.
    """
    path = settings().working_copy
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.writing.lock"):
        with references() as path:
            if is_url(settings().datasets):
                git(path, "reset", "--quiet", "--hard", "origin/main")
            elif git(path, "status", "--porcelain"):
                git(path, "reset", "--quiet", "--hard")
                git(path, "clean", "--quiet", "-fd")
        yield path


def latest() -> Path:
    """The local working copy with the origin's newest tags, to read from. Raises as `opened`."""
    path = settings().working_copy
    if not is_url(settings().datasets) and _is_whole(path):
        return path
    with references() as path:
        return path


@contextmanager
def references() -> Iterator[Path]:
    """The local working copy while git's references change: created or cloned on first use, up to date with its origin."""
    source, path = settings().datasets, settings().working_copy
    remote = is_url(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not _is_whole(path):
            _create(path, source if remote else None)
        for stale in (path / ".git").rglob("*.lock"):  # ours alone, under the lock above
            stale.unlink()
        if remote:
            # Tags too are the origin's: one that never arrived there is made again, one that lost a race gives way.
            refs = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
            git(path, "fetch", "--prune", "origin", *refs, transient=True)
        yield path


def head(repo: Path) -> str:
    """The newest commit by name: the origin's, where there is one."""
    return "refs/remotes/origin/main" if is_url(settings().datasets) else "refs/heads/main"


def publish(repo: Path, tag: str) -> None:
    """Hand a new version on to the origin, where there is one. Raises TransientError when it does not answer."""
    git(repo, "update-server-info")  # a plain file server may hand the repository on
    if git(repo, "remote"):
        git(repo, "push", "--quiet", "--atomic", "origin", "HEAD:main", f"refs/tags/{tag}", transient=True)


def cat_files(repo: Path, names: Sequence[str]) -> list[bytes | None]:
    """Files of git by `<revision>:<path>`, in one go; None for one that is not there."""
    out = git_bytes(repo, "cat-file", "--batch", given="".join(f"{name}\n" for name in names).encode())
    found: list[bytes | None] = []
    at = 0
    for _ in names:
        head, at = out[at : (end := out.index(b"\n", at))].split(b" "), end + 1
        if head[-1] == b"missing":
            found.append(None)
        else:
            size = int(head[-1])
            found.append(out[at : at + size])
            at += size + 1
    return found


def cache(repo: Path) -> Path:
    """The folder of DVC's own cache."""
    return repo / ".dvc" / "cache" / "files" / "md5"


def remote_bytes() -> int:
    """Bytes in the DVC remote when it is a folder; what a push added is the difference of two calls."""
    root = Path(settings().remote)
    return sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) if root.is_dir() else 0


def bundle(target: Path) -> bool:
    """Write the whole repository, every version of every domain, to one file. Returns False when there is no repository yet."""
    if not is_url(settings().datasets) and not (settings().working_copy / ".git").exists():
        return False
    git(latest(), "bundle", "create", str(target), "--all")
    return True


def unbundle(source: Path) -> None:
    """Make the repository anew from a bundle, where there is none, with the remote that settings name.

    Raises:
        ClipftError: there is a repository with versions already, or the bundle is none.
        TransientError: the repository's origin does not answer.
    """
    path, origin = settings().working_copy, settings().datasets
    if path.exists() and any(path.iterdir()):
        raise ClipftError(
            f"repository {path}", "there is one already", "Restore into an empty home.", code="dataset.repository_exists"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path) + ".lock"):
        restored = path.with_name(path.name + ".restored")
        with atomic_folder(restored) as building:
            git(building, "init", "--quiet", "--initial-branch", "main")
            refs = ("refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*")
            git(building, "fetch", "--quiet", "--update-head-ok", str(source), *refs)
            if is_url(origin):
                if git(building, "ls-remote", "--tags", origin, transient=True):
                    raise ClipftError(
                        f"repository {origin}",
                        "it holds versions already",
                        "Restore into an empty repository.",
                        code="dataset.repository_exists",
                    )
                git(building, "remote", "add", "origin", origin)
                git(building, "push", "--quiet", "--force", "origin", "main", "--tags", transient=True)
            git(building, "reset", "--quiet", "--hard", "main")
            _init(building, None)
            git(building, "update-server-info")
        _take_place(restored, path)
        with dvc(path, "remote modify") as repo, repo.config.edit("local") as config:
            config["remote"]["store"] = {"url": _remote_url()}  # as here, whatever the versions say


def git(cwd: Path, *args: str, transient: bool = False) -> str:
    """What a git command prints.

    Args:
        transient: whether its failure is worth another try: it talks to another machine.
    Raises: TransientError or ClipftError when it fails, with its own words.
    """
    return git_bytes(cwd, *args, transient=transient).decode(errors="replace").strip()


def git_bytes(cwd: Path, *args: str, given: bytes = b"", transient: bool = False) -> bytes:
    """The same as it is, of a command that reads `given`."""
    # A repository must behave the same under any user's git configuration.
    callers = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")
    inherited = {k: v for k, v in os.environ.items() if k not in callers}  # set inside a git hook
    env = {**inherited, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0"}
    if who := settings().credentials:  # by the environment: neither a command line nor a file shows it
        basic = base64.b64encode(":".join(who).encode()).decode()
        env |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"http.{settings().datasets}.extraHeader"}
        env |= {"GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}"}
    done = subprocess.run(["git", *args], cwd=cwd, env=env, capture_output=True, input=given, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace")
        raise _failed(f"git {' '.join(args)}", cwd, " ".join(said.splitlines()[-3:]), transient)
    return done.stdout


@contextmanager
def dvc(path: Path, command: str, *, new: bool = False, transient: bool = False, reading: bool = False) -> Iterator["Repo"]:
    """DVC's repository, for what `command` says, in this process: in its own, DVC takes longer to import than to do it.

    Args:
        reading: the remote is the one that a reader over HTTP reads from, where this machine is one.
    Raises: as `git`; a ClipftError or TransientError of the block as it is.
    """
    from dvc.logger import set_loggers_level
    from dvc.repo import Repo

    reasons = _Reasons()
    logger = logging.getLogger("dvc_data")
    logger.addHandler(reasons)
    try:
        config = _reading() if reading else None
        with (
            set_loggers_level(logging.ERROR),
            Repo.init(str(path), force=True) if new else Repo(str(path), config=config) as repo,
        ):
            yield repo  # what it says when all is well is advice to a person at its own command line
    except (ClipftError, TransientError):
        raise
    except Exception as error:  # a store's own library raises what it likes
        raise _failed(f"dvc {command}", path, " ".join([str(error), *reasons.found[-1:]]), transient) from error
    finally:
        logger.removeHandler(reasons)


def _is_whole(path: Path) -> bool:
    """Whether a repository has its first commit, which comes after all that makes it one."""
    committed = (path / ".git" / "refs" / "heads" / "main").exists() or (path / ".git" / "packed-refs").exists()
    return committed and (path / ".dvc" / "config").exists()


def _create(path: Path, url: str | None) -> None:
    if url:  # cloned beside its place, so that a first push that fails leaves nothing behind
        with atomic_folder(path) as building:
            git(path.parent, "clone", "--quiet", url, str(building), transient=True)
            _init(building, url)
    else:
        _init(path, None)


def _init(path: Path, url: str | None) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if settings().reads_only and not (path / ".dvc" / "config").exists():
        raise ClipftError(
            "the data sets", f"there is none at {url} yet", "Run the dataset DAG first.", code="dataset.no_repository"
        )
    if not (path / ".git").exists():
        git(path, "init", "--quiet", "--initial-branch", "main")
    git(path, "config", "user.name", "clipft")
    git(path, "config", "user.email", "clipft@localhost")
    if _is_whole(path):
        return
    with dvc(path, "init", new=True) as repo, repo.config.edit() as config:
        config["core"] |= {"analytics": "false", "remote": "store"}
        config["cache"]["type"] = "reflink,hardlink,copy"
        config["remote"]["store"] = {"url": _remote_url()}
    if "://" not in settings().remote:
        Path(settings().remote).mkdir(parents=True, exist_ok=True)
    (path / "README.md").write_text("Dataset versions. One folder a domain, one tag a version; written by clipft.\n")
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message", "An empty repository of data sets")
    if url:
        git(path, "push", "--quiet", "origin", "HEAD:main", transient=True)


def _remote_url() -> str:
    """The DVC remote as DVC's config takes it: that is written in ASCII, and a folder may be called anything but from here."""
    from dvc.config_schema import RelPath

    remote = settings().remote
    return remote if remote.isascii() else RelPath(remote)


def _take_place(built: Path, path: Path) -> None:
    """Move a repository to its place, which may be an empty folder: where a volume is mounted, perhaps."""
    if not path.exists():
        os.replace(built, path)
        return
    for child in list(built.iterdir()):
        shutil.move(child, path / child.name)
    built.rmdir()


def _reading() -> dict[str, dict[str, object]] | None:
    """Where a reader over HTTP finds the bytes; the repository itself names the remote that versions are pushed to."""
    if not settings().reads_only:
        return None
    remote: dict[str, object] = {"url": settings().remote}
    if who := settings().credentials:
        remote |= {"auth": "basic", "user": who[0], "password": who[1]}
    return {"core": {"remote": "reader"}, "remote": {"reader": remote}}


class _Reasons(logging.Handler):
    """Why files did not arrive: DVC's exceptions only count them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        why = record.exc_info[1] if record.exc_info else None
        self.found.append(f"{record.getMessage()}: {why}" if why else record.getMessage())


def _failed(command: str, cwd: Path, reason: str, transient: bool) -> ClipftError | TransientError:
    message = f"`{command}` in {cwd} failed: {reason}"
    if transient and not REFUSED.search(message):
        return TransientError(message)
    return ClipftError(
        "the repository of data sets", message, "Mend the repository, then run again.", code="dataset.repository_failed"
    )

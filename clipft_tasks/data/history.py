"""The history of the repository of data sets, written anew: the same commits and tags, with other files in them.

The new history is built beside the old one, and takes its place in one step: in the origin by an atomic push, on this machine by
replacing the one file that holds all references. Until then nothing has changed, afterwards nothing of the old one can be reached.
"""

import io
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ClipftError, TransientError
from ..core.files import atomic_write
from . import repository

BUILT = "refs/erasing"  # where the new references stand until they take their places


@dataclass(frozen=True)
class Change:
    """What is other in the new history.

    Attributes:
        files: by the name that git gives to a file's content: the new content.
        tags: by tag: its new message.
        added: by path: files of a last commit. message: of that commit.
    """

    files: Mapping[str, bytes]
    tags: Mapping[str, str]
    added: Mapping[str, bytes]
    message: str


def build(repo: Path, change: Change, work: Path) -> dict[str, tuple[str, str]]:
    """Write the new history beside the old one. Returns each tag's commit, before and after."""
    before = _commits(repo, "refs/tags")
    old = repository.git_bytes(repo, "fast-export", "--show-original-ids", "--signed-tags=strip", "--tags", "refs/heads/main")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    repository.git(work, "init", "--quiet", "--bare", "--initial-branch", "main")
    repository.git_bytes(work, "fast-import", "--quiet", "--force", given=_changed(old, change))
    for ref in repository.git(repo, "for-each-ref", "--format=%(refname)", BUILT).split():
        repository.git(repo, "update-ref", "-d", ref)
    refs = ("+refs/heads/main:refs/erasing/heads/main", "+refs/tags/*:refs/erasing/tags/*")
    repository.git(repo, "fetch", "--quiet", "--no-tags", str(work), *refs)
    after = _commits(repo, f"{BUILT}/tags")
    if before.keys() != after.keys():
        lost = sorted(before.keys() ^ after.keys())
        raise ClipftError(
            "the repository of data sets", f"{lost[0]} is no tag of its main branch", "Mend it by hand.", code="erase.history"
        )
    return {tag: (before[tag], after[tag]) for tag in before}


def take_place(repo: Path) -> None:
    """Let the new history be the history: all references at once.

    Raises: TransientError when another machine made a version meanwhile, or the origin does not answer; ClipftError where it takes
        no history that was written anew. Nothing has changed then.
    """
    if repository.git(repo, "remote"):
        was = repository.git(repo, "rev-parse", repository.head(repo))
        refs = (f"{BUILT}/heads/main:refs/heads/main", f"+{BUILT}/tags/*:refs/tags/*")
        try:
            repository.git(
                repo, "push", "--quiet", "--atomic", f"--force-with-lease=main:{was}", "origin", *refs, transient=True
            )
        except TransientError as error:
            if "stale info" in str(error):
                raise TransientError("Another machine made a version meanwhile.") from error
            if "denied" in str(error) or "deny" in str(error) or "hook declined" in str(error):
                why = "it takes no history that was written anew, which an erasure needs"
                fix = "Allow it there (git config receive.denyNonFastForwards false; no protected branch), then go on: clipft erase."
                raise ClipftError("the origin of the data sets", why, fix, code="erase.origin_refuses") from error
            raise
    repository.git(repo, "pack-refs", "--all", "--prune")
    others = {f"refs/{ref}": to for ref, to in _objects(repo, "refs").items() if not ref.startswith(("tags/", "erasing/"))}
    lines = ["# pack-refs with: peeled fully-peeled sorted "]
    for ref, (name, commit) in sorted((others | {f"refs/{ref}": to for ref, to in _objects(repo, BUILT).items()}).items()):
        lines += [f"{name} {ref}", *([f"^{commit}"] if commit != name else [])]
    atomic_write(repo / ".git" / "packed-refs", "\n".join(lines) + "\n", durable=True)


def forget_old(repo: Path) -> None:
    """Remove what only the old history held, on this machine. Safe to repeat."""
    for ref in repository.git(repo, "for-each-ref", "--format=%(refname)", BUILT).split():
        repository.git(repo, "update-ref", "-d", ref)
    repository.git(repo, "reset", "--quiet", "--hard", repository.head(repo))
    for left in ("ORIG_HEAD", "FETCH_HEAD"):
        (repo / ".git" / left).unlink(missing_ok=True)
    repository.git(repo, "reflog", "expire", "--expire=now", "--all")
    repository.git(repo, "gc", "--quiet", "--prune=now")
    repository.git(repo, "update-server-info")


def _commits(repo: Path, below: str) -> dict[str, str]:
    return {ref: commit for ref, (_, commit) in _objects(repo, below).items()}


def _objects(repo: Path, below: str) -> dict[str, tuple[str, str]]:
    """Of each reference below a name: what it points to, and the commit that this is or names."""
    out = {}
    form = "--format=%(if)%(symref)%(then)%(else)%(refname) %(objectname) %(*objectname)%(end)"
    for line in repository.git(repo, "for-each-ref", form, below).splitlines():
        if not line.strip():
            continue  # the name of another reference
        ref, name, *commit = line.split()
        out[ref.removeprefix(f"{below}/")] = (name, commit[0] if commit else name)
    return out


def _changed(stream: bytes, change: Change) -> bytes:
    """What `git fast-export` wrote, changed."""
    given, out, content, tag = io.BytesIO(stream), io.BytesIO(), None, ""
    for line in iter(given.readline, b""):
        word, _, rest = line.rstrip(b"\n").partition(b" ")
        if word == b"data":
            data = given.read(int(rest))
            if content is not None:
                data = content
            elif tag in change.tags:
                data = change.tags[tag].encode() + b"\n"
            out.write(b"data %d\n%s" % (len(data), data))
            content, tag = None, ""
            continue
        if word == b"tag":
            tag = rest.decode()
        elif word in (b"blob", b"commit", b"reset"):
            tag = ""
        elif word == b"original-oid":
            content = change.files.get(rest.decode())
            continue
        out.write(line)
    files = "".join(f"M 100644 inline {path}\ndata {len(data)}\n{data.decode()}\n" for path, data in change.added.items())
    out.write(
        f"commit refs/heads/main\ncommitter clipft <clipft@localhost> {int(time.time())} +0000\n"
        f"data {len(change.message.encode())}\n{change.message}\n{files}".encode()
    )
    return out.getvalue()

"""Readers: whatever a source is, it becomes a stream of `Row`s. One file each; which there are is in `spec.reader_catalog`.

One of your own: `--source my_package.readers:MyReader:argument`, a subclass of `Reader`; or an entry point of the group
`clipft.readers`, then `--source name:argument`.
"""

import os
import platform
import re
from pathlib import Path

from ...core.errors import ClipftError
from ...core.plugins import classes
from ...spec import DataSpec
from ...spec.reader_catalog import READERS, reader_of, sources
from .. import addresses, archives, remote
from ..account import Account
from ..images import ENDINGS
from .base import Reader, Row, Source, read_inside

__all__ = ["REGISTRY", "Reader", "Row", "Source", "open_source", "read_inside"]

REGISTRY = classes("reader", Reader, {name: f"{__name__}.{entry.path}" for name, entry in READERS.items()})  # type: ignore[type-abstract]  # only subclasses are made
OF_FILES = [name for name, entry in READERS.items() if entry.files]
OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # with a drive's letter, or of a share
OF_ONES_OWN = re.compile(r"(?P<reader>[A-Za-z_][\w.]*:[A-Z]\w*)(?::(?P<argument>.*))?", re.DOTALL)  # module:Class[:argument]


def open_source(source: str, options: DataSpec) -> Source:
    """Open what `source` names: a path, `reader:argument`, or `module:Class:argument`.

    Raises:
        ClipftError: the source is missing or of no known kind.
    """
    if not source:
        raise ClipftError(
            "source", "nothing was given to ingest", "Name a table, a folder, or elpv:mono.", code="source.not_given"
        )
    name, argument = _named(source)
    if name and name not in OF_FILES:
        return REGISTRY.load(name).open(argument, options)
    here, told = _here(argument, name)
    name = name or _plain(here, source)
    opened = REGISTRY.load(name).open(here if name in OF_FILES else "", options)
    for sentence in told.understood:
        opened.account.understand(sentence)
    for sentence in told.warnings:
        opened.account.warn(sentence)
    opened.account.passed_over.update(told.passed_over)
    return opened


def _named(source: str) -> tuple[str, str]:
    """The reader that a source names, "" for none, and its argument."""
    name, colon, argument = source.partition(":")
    if addresses.is_remote(source):
        return "", source
    if colon and name in REGISTRY.names():
        return name, argument
    if name != "file" and (own := OF_ONES_OWN.fullmatch(source)):
        return own["reader"], own["argument"] or ""
    return "", source.removeprefix("file://")


def _here(argument: str, reader: str) -> tuple[str, Account]:
    """The path of what lies elsewhere or is packed, and what must be said about that."""
    told, path = Account(), argument
    if addresses.is_remote(argument):
        brought = remote.bring(argument)
        path = str(brought.path)
        told.understand(f"Brought from an address: {brought.files} files.")
        told.pass_over("files whose names no file here can have", brought.left_out)
    whole = _path(path, argument)
    for archive in (whole, *whole.parents):  # `images.zip/table.csv` is the table in it
        if not archive.is_file():
            continue
        suffix = archives.suffix_of(archive)
        shard = suffix == ".tar" and (reader == "webdataset" or not archives.is_folder(archive))
        if not suffix or shard or (reader == "webdataset" and suffix in archives.PACKED_TAR):
            break
        unpacked = archives.unpack(archive)
        path = str(_inside(unpacked.folder, whole.relative_to(archive), path))
        told.understand(f"Read as the folder of a {'zip' if suffix == '.zip' else 'tar'} archive.")
        told.passed_over.update(unpacked.passed_over)
        if lost := unpacked.passed_over[archives.UNKNOWN_NAMES]:
            told.warn(
                f"{lost} files were left in the archive: folders' names are neither ASCII nor UTF-8. Unpack it and name the folder."
            )
        break
    return path, told


def _inside(folder: Path, below: Path, source: str) -> Path:
    """What a source names in an archive's folder: all of it, or a table or folder there."""
    found = folder / below
    if ".." in below.parts or not found.exists():
        why = f"the archive holds no {below.as_posix()}"
        raise ClipftError(f"source {source}", why, "Check the spelling.", code="source.not_found")
    return found


def _plain(plain: str, source: str) -> str:
    """The reader of a path without one."""
    path = _path(plain, source)
    if path.is_dir() and path.suffix.lower() != ".tar":
        return "folder"
    if reader := reader_of(path.suffix):
        return reader
    if source in REGISTRY.names():
        return source
    why, fix = f"no reader is called so; a source is {sources()}", "Check the spelling."
    if path.is_file():
        why = f"it is a file, and no reader takes {path.suffix or 'one without a suffix'}; a source is {sources()}"
        fix = (
            f"Name the folder that it is in: {path.parent}."
            if path.suffix.lower() in ENDINGS
            else "Unpack it, or save it as CSV, JSON lines or xlsx."
        )
    elif OF_WINDOWS.match(source) and os.name != "nt":
        why = f"it is a path of Windows, and {platform.node()} runs {platform.system()}"
        fix = "Name the folder as that machine sees it, such as /mnt/c/…; sources are read where the task runs."
    elif {"/", "~"} & set(source):
        why = f"{platform.node()} has no such folder or file"
        fix = "Check the spelling. Sources are read where the task runs, which may be another machine or container than yours."
    raise ClipftError(f"source {source}", why, fix, code="source.unknown")


def _path(path: str, source: str) -> Path:
    """The path that is named. Raises: ClipftError for what can be none."""
    try:
        found = Path(path).expanduser()
        found.exists()
        return found
    except (OSError, RuntimeError) as error:  # a name that is too long, a folder of somebody else, a home of nobody
        why = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ClipftError(f"source {source[:200]}", f"it cannot be looked at ({why})", "Check the spelling.", code="source.unknown") from None  # fmt: skip

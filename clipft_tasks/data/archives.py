"""Zip archives as folders: unpacked once under home (`cache/sources`), within bounds, and never outside of their folder."""

import hashlib
import json
import re
import stat
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..core.console import progress
from ..core.errors import ClipftError
from ..core.files import own_folder
from ..core.settings import settings

SUFFIX = ".zip"
MOST_FILES = 5_000_000
MOST_BYTES = 2**40  # of all files
MOST_RATIO, FREE_BYTES = 200, 2**28  # of unpacked to packed bytes, beyond the first
BLOCK = 2**20
PASSED_OVER = "passed-over.json"


@dataclass(frozen=True)
class Unpacked:
    """An archive's folder. passed_over: what was left in the archive, by kind."""

    folder: Path
    passed_over: Counter[str] = field(default_factory=Counter)


def unpack(path: Path) -> Unpacked:
    """The folder of an archive's files; a second time, and after a kill, what is there already is taken.

    Raises: ClipftError for one that cannot be read, that unpacks to more than an archive of images would, or has a password.
    """
    try:
        about = path.stat()
        told = json.dumps([str(path.resolve()), about.st_size, about.st_mtime_ns])
        place = settings().folder("cache", "sources") / hashlib.sha256(told.encode()).hexdigest()[:16]
        if not place.exists():
            with own_folder(place.parent) as building:
                _unpack(path, building, about.st_size)
                try:
                    building.rename(place)
                except OSError:  # another run was quicker
                    if not place.exists():
                        raise
        (place / PASSED_OVER).touch()  # says when it was last used
        passed_over: Counter[str] = Counter(json.loads((place / PASSED_OVER).read_text()))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        why = f"it cannot be unpacked: {str(error)[:200] or type(error).__name__}"
        raise ClipftError(
            f"archive {path}", why, "Is it whole, and without a password?", code="source.unreadable_file"
        ) from error
    [folder] = (child for child in place.iterdir() if child.is_dir())
    return Unpacked(_meant(folder), passed_over)


def _unpack(path: Path, building: Path, packed: int) -> None:
    name = re.sub(r"[^\w.-]+", "_", path.stem).strip(".")[:100] or "archive"
    folder, passed_over = building / name, Counter[str]()
    folder.mkdir()
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        most = min(MOST_BYTES, packed * MOST_RATIO + FREE_BYTES)
        if len(members) > MOST_FILES or sum(member.file_size for member in members) > most:
            raise ValueError(f"its {len(members):,} files unpack to more than {most:,} bytes")
        if any(member.flag_bits & 1 for member in members):
            raise ValueError("it has a password")
        left = most
        for member in progress(members, "files unpacked", len(members)):
            parts = member.filename.replace("\\", "/").split("/")
            if kind := _left_out(member, parts):
                passed_over[kind] += 1
                continue
            target = folder.joinpath(*parts)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    raise FileExistsError(target)
            except (FileExistsError, NotADirectoryError):
                passed_over["files of an archive with the name of another"] += 1
                continue
            with archive.open(member) as source, target.open("xb") as out:
                while block := source.read(BLOCK):
                    left -= len(block)
                    if left < 0:  # whatever its list says
                        raise ValueError(f"it unpacks to more than {most:,} bytes")
                    out.write(block)
    (building / PASSED_OVER).write_text(json.dumps(passed_over))


def _left_out(member: zipfile.ZipInfo, parts: list[str]) -> str:
    """Why a member is not unpacked; "" where it is."""
    if any(part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > 250 for part in parts) or ":" in parts[0]:
        return "files of an archive that lead out of it"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "links in an archive"
    return ""


def _meant(folder: Path) -> Path:
    """The folder that the archive is about: many hold one folder, with everything in it."""
    while True:
        inside = [child for child in folder.iterdir() if child.name != "__MACOSX" and not child.name.startswith(".")]
        if len(inside) != 1 or not inside[0].is_dir():
            return folder
        below = list(inside[0].iterdir())
        if not any(child.is_dir() or child.suffix.lower() in (".csv", ".jsonl", ".parquet", ".txt", ".tar") for child in below):
            return folder  # a class, with its images
        folder = inside[0]

"""Archives (zip, tar) as folders: unpacked once under home (`cache/sources`), within bounds, and never outside of their folder."""

import hashlib
import json
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from ..core.console import progress
from ..core.errors import ClipftError
from ..core.files import own_folder
from ..core.settings import settings
from .images import ENDINGS

PACKED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
SUFFIXES = (".zip", ".tar", *PACKED_TAR)
OTHERS = (".7z", ".rar", ".tar.zst", ".tar.lz4")  # that no library here reads
MOST_FILES = 5_000_000
MOST_BYTES = 2**40  # of all files
MOST_RATIO, FREE_BYTES = 200, 2**28  # of unpacked to packed bytes, beyond the first
BLOCK, END = 2**20, tarfile.BLOCKSIZE
MOST_HEADER = 2**20  # bytes of a name or of what else stands before a member
PASSED_OVER = "passed-over.json"
UNKNOWN_NAMES = "files of an archive in folders whose names are in an unknown encoding"
LEADS_OUT, LINK, NO_FILE = "files of an archive that lead out of it", "links in an archive", "devices in an archive"
BESIDE = {".txt", ".cls", ".json"}  # endings of texts beside the images of WebDataset
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, OSError, EOFError, NotImplementedError, RuntimeError, ValueError)  # fmt: skip


@dataclass(frozen=True)
class Unpacked:
    """An archive's folder. passed_over: what was left in the archive, by kind."""

    folder: Path
    passed_over: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Member:
    """What an archive holds under a name; `left_out` says why it stays there, "" where it does not."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]
    left_out: str = ""


def suffix_of(path: Path) -> str:
    """What a path ends in that makes it an archive; "" for none. Raises ClipftError for an archive of a kind that is not read."""
    name = path.name.lower()
    if other := next((end for end in OTHERS if name.endswith(end)), ""):
        fix = "Unpack it and name the folder, or pack it as .zip or .tar.gz."
        raise ClipftError(f"archive {path}", f"{other} archives are not read", fix, code="source.unreadable_file")
    return max((end for end in SUFFIXES if name.endswith(end)), key=len, default="")


def is_folder(path: Path) -> bool:
    """Whether a plain tar file is a packed folder of images, and no WebDataset: no image has a text of its name beside it."""
    images: set[str] = set()
    texts: set[str] = set()
    try:
        with tarfile.open(path, "r:", tarinfo=_Bounded) as archive:
            for member in archive:
                stem, dot, ending = member.name.rpartition(".")
                if member.isfile() and dot:
                    ending = f".{ending.lower()}"
                    for names, endings in ((images, ENDINGS), (texts, BESIDE)):
                        names.update([stem] if ending in endings else [])
    except (tarfile.TarError, OSError):
        return False
    return bool(images) and not images & texts


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
    except BROKEN as error:
        why = f"it cannot be unpacked: {str(error)[:200] or type(error).__name__}"
        raise ClipftError(
            f"archive {path}", why, "Is it whole, and without a password?", code="source.unreadable_file"
        ) from error
    [folder] = (child for child in place.iterdir() if child.is_dir())
    return Unpacked(_meant(folder), passed_over)


def _unpack(path: Path, building: Path, packed: int) -> None:
    suffix = suffix_of(path)
    name = re.sub(r"[^\w.-]+", "_", path.name[: -len(suffix)]).strip(".")[:100] or "archive"
    folder, passed_over = building / name, Counter[str]()
    folder.mkdir()
    most = min(MOST_BYTES, packed * MOST_RATIO + FREE_BYTES)
    left, claimed = most, 0
    with closing((_of_zip if suffix == ".zip" else _of_tar)(path)) as members:
        for number, member in enumerate(progress(members, "files unpacked")):
            claimed += member.size
            if number >= MOST_FILES or claimed > most:
                raise ValueError(f"its files are more than {MOST_FILES:,}, or unpack to more than {most:,} bytes")
            parts = member.name.replace("\\", "/").split("/")
            if kind := member.left_out or _leads_out(parts):
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
            with member.open() as source, target.open("xb") as out:
                while block := source.read(BLOCK):
                    left -= len(block)
                    if left < 0:  # whatever its list says
                        raise ValueError(f"it unpacks to more than {most:,} bytes")
                    out.write(block)
    if passed_over and not any(child.is_file() for child in folder.rglob("*")):
        raise ValueError(f"it holds nothing but {', '.join(f'{count} {kind}' for kind, count in passed_over.items())}")
    (building / PASSED_OVER).write_text(json.dumps(passed_over))


def _of_zip(path: Path) -> Generator[_Member, None, None]:
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if any(member.flag_bits & 1 for member in members):
            raise ValueError("it has a password")
        if len(members) > MOST_FILES:
            raise ValueError(f"it holds {len(members):,} files")
        for member in members:
            name, known = _name_of(member)
            kind = LINK if stat.S_ISLNK(member.external_attr >> 16) else "" if known else UNKNOWN_NAMES
            yield _Member(name, member.file_size, partial(archive.open, member), kind)


def _name_of(member: zipfile.ZipInfo) -> tuple[str, bool]:
    """A member's name, and whether its folders are known: only names that say so are UTF-8, and zipfile takes all others for those of DOS.

    Many say nothing and are UTF-8 after all. What is neither is in the code page of whoever packed it: a wrong guess would be a class.
    """
    if member.flag_bits & 0x800 or member.filename.isascii():
        return member.filename, True
    try:
        return member.filename.encode("cp437").decode(), True
    except UnicodeError:
        return member.filename, member.filename.replace("\\", "/").rpartition("/")[0].isascii()


class _Bounded(tarfile.TarInfo):
    """A member of a tar file whose name and attributes take little memory: tarfile reads them whole, whatever size they claim."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE) and self.size > MOST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc, no-any-return]  # a hook that tarfile documents in its source alone


def _of_tar(path: Path) -> Generator[_Member, None, None]:
    with tarfile.open(path, "r:*", tarinfo=_Bounded) as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # of which it keeps all
            if member.isdir():
                continue
            kind = LINK if member.issym() or member.islnk() else "" if member.isreg() else NO_FILE
            name = re.sub(r"^(\./)+", "", member.name)
            yield _Member(name, member.size, partial(_opened, archive, member), kind)
        if archive.fileobj is None or (archive.fileobj.seek(archive.offset), archive.fileobj.read(END))[1] != bytes(END):
            raise ValueError("it is cut short or broken")  # tarfile takes a missing end for the end


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    if (file := archive.extractfile(member)) is None:
        raise ValueError(f"{member.name} is no file")
    return file


def _leads_out(parts: list[str]) -> str:
    """Why a member of that path is not unpacked; "" where it is."""
    if any(part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > 250 for part in parts) or ":" in parts[0]:
        return LEADS_OUT
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

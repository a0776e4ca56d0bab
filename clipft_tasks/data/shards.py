"""Shards: WebDataset tar files, known by the hash of their content, read by offset without unpacking.

A shard holds each image once, as `<key>.<ext>`: its bytes as they came, so the webdataset library reads it too. What is said of an
image (captions, label, group, split) stands in the manifest, with the place where it lies, and changes without touching a
shard. Shards of earlier releases also hold `<key>.json` beside each image.
"""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..core.errors import ClipftError
from ..core.files import own_folder

NAME = re.compile(r"^[0-9a-f]{32}\.tar\Z")
TARGET_BYTES = 64 * 2**20
END = 2 * tarfile.BLOCKSIZE  # that say that nothing follows
EXTENSIONS = {"JPEG": "jpg", "TIFF": "tif", "HEIF": "heic", "JPEG2000": "jp2"}


@dataclass(frozen=True)
class Entry:
    """An image to be packed, or packed."""

    key: str  # hash of its bytes
    extension: str
    data: bytes


@dataclass(frozen=True)
class Place:
    """Where a packed image lies."""

    shard: str
    offset: int
    length: int


def extension(format: str) -> str:
    """The ending of an image's file: of most formats the name in small letters."""
    return EXTENSIONS.get(format, format.lower())


def pack(entries: Iterable[Entry], folder: Path, target_bytes: int = TARGET_BYTES) -> Iterator[tuple[str, Place]]:
    """Write entries to shards of about `target_bytes`, in the order given; yields (key, place).

    Deterministic: the same entries give the same bytes, hence the same shard names. A shard appears under its name only
    when it is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    building = folder / "shard.building"
    tar: tarfile.TarFile | None = None
    places: list[tuple[str, int, int]] = []

    def finish() -> Iterator[tuple[str, Place]]:
        nonlocal tar
        if tar is None:
            return
        end = tar.offset + END
        tar.close()
        tar = None
        with building.open("r+b") as file:
            file.truncate(end)  # nobody reads what tapes needed
            name = hashlib.file_digest(file, "sha256").hexdigest()[:32] + ".tar"
            os.fsync(file.fileno())
        os.replace(building, folder / name)
        for key, offset, length in places:
            yield key, Place(name, offset, length)
        places.clear()

    for entry in entries:
        if tar is None:
            # No copy of file times or owners into the archive: TarInfo's zeros keep it deterministic.
            tar = tarfile.open(building, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed in finish()
        info = tarfile.TarInfo(f"{entry.key}.{entry.extension}")
        info.size = len(entry.data)
        offset = tar.offset + tarfile.BLOCKSIZE
        tar.addfile(info, io.BytesIO(entry.data))
        places.append((entry.key, offset, len(entry.data)))
        if tar.offset >= target_bytes:
            yield from finish()
    yield from finish()


def members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """What a shard holds, by its headers alone. Raises tarfile.TarError where it is no tar file."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        yield from tar


def stem(member: tarfile.TarInfo) -> str:
    """What a member is called without its ending: the key of an image."""
    return member.name.partition(".")[0]


def packed_bytes(lengths: Iterable[int]) -> int:
    """Bytes of a shard that holds images of these lengths and nothing else."""
    return sum(tarfile.BLOCKSIZE + _padded(length, tarfile.BLOCKSIZE) for length in lengths) + END


def without(path: Path, gone: Container[str], folder: Path) -> tuple[str, dict[int, int]]:
    """Copy a shard but for some of its images, all others byte for byte.

    Args:
        gone: keys of those images. folder: for the copy.
    Returns:
        the copy's name, "" where nothing is left; and where each image's bytes begin in it, by where they began.
    """
    moved: dict[int, int] = {}
    with own_folder(folder) as building:
        part = building / "shard"
        with path.open("rb") as file, path.open("rb") as source, part.open("wb") as out:
            for member in members(file):
                if stem(member) in gone:
                    continue
                moved[member.offset_data] = out.tell() + member.offset_data - member.offset
                source.seek(member.offset)
                out.write(source.read(member.offset_data + member.size - member.offset))
                out.write(bytes(-member.size % tarfile.BLOCKSIZE))  # not what lies there: it might be anything
            out.write(bytes(END))
        if not moved:
            return "", {}
        with part.open("rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()[:32] + ".tar"
        os.replace(part, folder / name)
    return name, moved


def _padded(length: int, block: int) -> int:
    return -(-length // block) * block


def path_of_name(folder: Path, shard: str) -> Path:
    """Where a shard of that name lies, or would; a name that is not a shard's (a path, a link out) is refused.

    Raises: ClipftError: a name with a path in it.
    """
    if not NAME.fullmatch(shard):
        raise ClipftError(
            f"shard {shard!r}",
            "that is not a shard's name",
            "The manifest was tampered with: restore it.",
            code="dataset.invalid_shard_name",
        )
    return folder / shard


def path_of(folder: Path, shard: str) -> Path:
    """The file of a shard.

    Raises:
        ClipftError: a name with a path in it, a missing file, or a file that leads elsewhere.
    """
    path = path_of_name(folder, shard)
    if path.is_symlink():
        raise ClipftError(
            f"shard {shard}",
            "it is a link, not a file",
            "Remove it and fetch the data set again.",
            code="dataset.shard_is_link",
        )
    if not path.is_file():
        raise ClipftError(
            f"shard {shard}", f"it is missing in {folder}", "Fetch the data set again.", code="dataset.missing_shard"
        )
    return path


def read(folder: Path, place: Place) -> bytes:
    """The bytes of one image. Raises ClipftError when the place lies outside its shard."""
    path = path_of(folder, place.shard)
    if place.offset < 0 or place.length < 0 or place.offset + place.length > path.stat().st_size:
        raise ClipftError(
            f"shard {place.shard}",
            f"bytes {place.offset}+{place.length} lie outside its {path.stat().st_size}",
            "The shard was cut short or the manifest is another's: fetch the data set again.",
            code="dataset.damaged_shard",
        )
    with path.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.length)


def check(path: Path, shard: str) -> None:
    """Raises ClipftError when the bytes at `path` are not those that a shard's name promises."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    if not shard.startswith(found):
        raise ClipftError(
            f"shard {shard}", "its bytes do not match its name", "Fetch the data set again.", code="dataset.damaged_shard"
        )

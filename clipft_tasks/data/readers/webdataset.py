"""WebDataset shards: tar files in which members of one name and different endings are one row.

`x.jpg` (or another image) is the image, `x.txt` the caption, `x.cls` the label, and `x.json` an object with the columns that
the spec names (caption, label, group, split). Images are read by their offset, so nothing is unpacked.
"""

import json
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ...core.errors import ClipftError
from ...spec import DataSpec
from ..images import BadImage, Limits
from .base import Reader, Row, Source
from .folder import IMAGES

MAX_TEXT = 1 << 20  # bytes of a text or JSON member


class WebDataset(Reader):
    """One shard, or all shards (`*.tar`) of a folder."""

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        """Open the shards at a path. Raises ClipftError when there is none, or one is no uncompressed tar file."""
        path = Path(argument).expanduser()
        shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not shards or not all(shard.is_file() for shard in shards):
            raise ClipftError(
                f"source webdataset:{path}",
                "there is no shard (*.tar)",
                "Check the path; it is read on the worker.",
                code="source.no_images",
            )
        for shard in shards:
            try:
                tarfile.open(shard, "r:").close()
            except (tarfile.TarError, OSError) as error:
                raise ClipftError(
                    f"shard {shard}",
                    f"it is no plain tar file: {error}",
                    "Unpack .tar.gz to .tar first.",
                    code="source.unreadable_file",
                ) from error

        def rows() -> Iterator[Row]:
            for shard in shards:
                yield from _rows_of(shard, options)

        return Source(rows, name=path.name)


def _rows_of(shard: Path, options: DataSpec) -> Iterator[Row]:
    """A row once its last member is seen: WebDataset keeps the members of one name together."""
    name, members = "", dict[str, tuple[int, int]]()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, _, ending = file.partition(".")
                own = f"{folder}/{stem}" if folder else stem
                if own != name and members:
                    yield _row(shard, name, members, options)
                    members = {}
                name = own
                members["." + ending.lower()] = (member.offset_data, member.size)
            whole = _zeros_at(shard, tar.offset)
    except tarfile.TarError:
        whole = False
    if members:
        yield _row(shard, name, members, options)
    if not whole:  # tarfile takes a missing end for the end
        where = f"{shard.name} after {name or 'its start'}"
        yield Row(where, partial(_refuse, "the shard is cut short here"), f"{shard.name} (rest)", caption=where)


def _row(shard: Path, name: str, members: dict[str, tuple[int, int]], options: DataSpec) -> Row:
    where, key = f"{shard.name}/{name}", f"{shard.stem}/{name}"
    kind = next((kind for kind in members if kind in IMAGES), None)
    if kind is None:  # the name stands for a caption, or the reason would be that there is none
        return Row(where, partial(_refuse, f"there is no image beside {', '.join(sorted(members))}"), key, caption=name)
    try:
        told = json.loads(_read(shard, *members[".json"], MAX_TEXT)) if ".json" in members else {}
        told = told if isinstance(told, dict) else {}
        caption = _text(shard, members, ".txt") or _one_line(told.get(options.caption_column))
        label = _text(shard, members, ".cls") or _one_line(told.get(options.label_column))
    except (ValueError, OSError) as error:
        return Row(where, partial(_refuse, f"its texts cannot be read: {error}"), key, caption=name)
    return Row(
        where=where,
        image_bytes=partial(_read, shard, *members[kind], Limits().bytes),
        key=key,
        caption=caption,
        label=label,
        group=_one_line(told.get(options.group_column)),
        split=_one_line(told.get(options.split_column)).lower(),
    )


def _zeros_at(shard: Path, offset: int) -> bool:
    """Whether the block that ends a tar file stands there."""
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _text(shard: Path, members: dict[str, tuple[int, int]], ending: str) -> str:
    return _read(shard, *members[ending], MAX_TEXT).decode("utf-8", errors="replace").strip() if ending in members else ""


def _one_line(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _read(shard: Path, offset: int, size: int, limit: int) -> bytes:
    if size > limit:
        raise BadImage(f"{size:,} bytes, more than the limit of {limit:,}")
    with shard.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise BadImage(f"the shard is cut short: {len(data):,} of {size:,} bytes are there")
    return data


def _refuse(reason: str) -> bytes:
    raise BadImage(reason)

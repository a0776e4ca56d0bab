"""WebDataset shards: tar files in which members of one name and different endings are one row.

`x.jpg` (or another image) is the image, `x.txt` the caption, `x.cls` the label, and `x.json` an object with the columns that
the spec names (caption, label, group, split). A shard or a folder called `train…`, `val…`, `test…` says the split. Members of one
name need not lie together. Images are read by their offset, so nothing is unpacked.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ...core.errors import ClipftError
from ...spec import DataSpec
from ..account import Account
from ..images import ENDINGS, BadImageError, Limits
from ..splits import SPLITS
from .base import Reader, Row, Source, as_image, refuse
from .text import captions_of, cell, decoded, split_of
from .tree import system_file

ENDING = re.compile(r"[A-Za-z0-9_.-]*")
Members = dict[str, tuple[int, int]]  # ending → offset and size
MAX_TEXT = 1 << 20  # bytes of a text or JSON member


class WebDataset(Reader):
    """One shard, or all shards (`*.tar`) of a folder."""

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        """Open the shards at a path. Raises ClipftError when there is none, or one is no uncompressed tar file."""
        path = Path(argument).expanduser()
        shards = sorted(path.rglob("*.tar")) if path.is_dir() else [path]
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

        account = Account()

        def rows() -> Iterator[Row]:
            for shard in shards:
                folder = shard.parent.name if path.is_dir() and shard.parent != path else ""
                named = {split_of(word) for word in (re.split(r"[-_.]", shard.stem)[0], folder)} & set(SPLITS)
                yield from _rows_of(shard, options, min(named, default=""), account)

        return Source(rows, name=path.name, account=account)


def _rows_of(shard: Path, options: DataSpec, split: str, account: Account) -> Iterator[Row]:
    every: dict[str, Members] = {}
    last = ""
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                account.seen += 1
                if kind := system_file(member.name):
                    account.pass_over(kind)
                    continue
                last, ending = _split_name(member.name)
                every.setdefault(last, {})[ending] = (member.offset_data, member.size)
            whole = _zeros_at(shard, tar.offset)
    except tarfile.TarError:
        whole = False
    for name, members in every.items():
        yield from _rows(shard, name, members, options, split)
    if not whole:  # tarfile takes a missing end for the end
        where = f"{shard.name} after {last or 'its start'}"
        reason = partial(refuse, "the shard is cut short here", "cut short or broken")
        yield Row(where, reason, f"{shard.name} (rest)", caption=where)


def _split_name(name: str) -> tuple[str, str]:
    """(key, ending) of a member: the ending begins at the first period, unless what follows is no ending but part of a name."""
    folder, _, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    if not ENDING.fullmatch(ending):
        stem, _, ending = file.rpartition(".")
    return f"{folder}/{stem}" if folder else stem, "." + ending.lower()


def _rows(shard: Path, name: str, members: Members, options: DataSpec, split: str) -> Iterator[Row]:
    where, key = f"{shard.name}/{name}", f"{shard.stem}/{name}"
    kind = next((kind for kind in members if kind in ENDINGS), None)
    if kind is None:  # the name stands for a caption, or the reason would be that there is none
        reason = f"there is no image beside {', '.join(sorted(members))}"
        if any("." + ending.rpartition(".")[2] in ENDINGS for ending in members):
            reason += ": what follows the first period of a name is its ending, so names can hold no period"
        yield Row(where, partial(refuse, reason, "no image"), key, caption=name)
        return
    try:
        told = json.loads(decoded(_read(shard, *members[".json"], MAX_TEXT))) if ".json" in members else {}
        told = told if isinstance(told, dict) else {}
        caption = _text(shard, members, ".txt")
        captions = [caption] if caption else captions_of(told.get(options.caption_column))
        label = _text(shard, members, ".cls") or cell(told.get(options.label_column), "label")
        group = cell(told.get(options.group_column), "group")
        split = split_of(cell(told.get(options.split_column), "split")) or split
        texts = [cell(caption, "caption") for caption in captions or [""]]
    except (ValueError, OSError, RecursionError) as error:
        kind_of = getattr(error, "kind", "texts that cannot be read")
        yield Row(where, partial(refuse, f"its texts cannot be read: {error}", kind_of), key, caption=name)
        return
    read = partial(_image, shard, *members[kind])
    yield from (Row(where, read, key, text, label, group, split) for text in texts)


def _zeros_at(shard: Path, offset: int) -> bool:
    """Whether the block that ends a tar file stands there."""
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _text(shard: Path, members: Members, ending: str) -> str:
    return decoded(_read(shard, *members[ending], MAX_TEXT)) if ending in members else ""


def _image(shard: Path, offset: int, size: int) -> bytes:
    return as_image(_read(shard, offset, size, Limits().bytes))


def _read(shard: Path, offset: int, size: int, limit: int) -> bytes:
    if size > limit:
        raise BadImageError(f"{size:,} bytes, more than the limit of {limit:,}", "too large")
    with shard.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise BadImageError(f"the shard is cut short: {len(data):,} of {size:,} bytes are there", "cut short or broken")
    return data

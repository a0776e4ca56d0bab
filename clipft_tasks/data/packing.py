"""From a source's rows to described images in shards: every row is looked at, and an image is packed once."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from ..contracts.dataset import RejectedRow
from ..core.console import progress
from ..core.errors import ClipftError, TransientError
from ..domains import spoken
from . import shards, splits
from .describe import ENDED, Described, Piece, describe_all, reason_of
from .images import BadImageError
from .known_files import KnownFiles
from .metadata import stripped
from .readers import Row, Source

MAX_WORDS = 1000


@dataclass
class TakenRow:
    """A row whose image was decoded; `where` a person finds it, the rest as in a manifest. Its place comes when it is packed."""

    key: str
    name: str
    caption: str
    label: str
    group: str
    split: str
    width: int
    height: int
    mode: str
    format: str
    sha256: str
    phash: str
    where: str
    kin: str = ""  # of the row, a name a line
    shard: str = ""
    offset: int = 0
    length: int = 0


def describe_part(source: Source, gray_bits: int, part: int, of: int) -> dict[str, Described]:
    """What the images of every `of`-th row are, by sha256. Rows that cannot be read are left to whoever reads them all."""

    def pieces() -> Iterator[Piece[None]]:
        for number, row in enumerate(progress(source.rows(), "rows", source.total)):
            if number % of != part:
                continue
            try:
                data = stripped(row.image_bytes())
            except (ClipftError, TransientError):
                raise
            except Exception:  # whatever it is: who reads all rows says it
                continue
            yield Piece(None, data, hashlib.sha256(data).hexdigest())

    return {piece.sha256: said for piece, said in describe_all(pieces(), gray_bits) if said.refused != ENDED}


def take(
    rows: Iterable[Row],
    template: str,
    gray_bits: int,
    earlier: pd.DataFrame,
    folder: Path,
    described: Mapping[str, Described] = MappingProxyType({}),
    is_erased: Callable[[str, str], bool] = lambda sha256, group: False,
) -> tuple[list[TakenRow], list[RejectedRow]]:
    """Every row is described; an image is packed once, whatever is said of it, and not at all if the last version holds it.

    Args:
        template: caption of a row that has a label alone.
        gray_bits: see `images.deep_gray`.
        earlier: manifest of the last version. folder: for new shards. described: what images are known to be, by sha256.
        is_erased: by SHA-256 and group, whether a row was erased from the domain: it is passed over.
    """
    taken: dict[str, TakenRow] = {}
    rejected: dict[int, RejectedRow] = {}  # by position in the source
    known, places = dict(described), dict[str, shards.Place]()
    columns = ("sha256", "shard", "offset", "length", "width", "height", "mode", "format", "phash")
    for sha256, shard, offset, length, *seen in zip(*(earlier[name].to_numpy(object) for name in columns), strict=True):
        places[sha256] = shards.Place(shard, int(offset), int(length))
        known[sha256] = Described(int(seen[0]), int(seen[1]), *seen[2:])
    texts = zip(*(earlier[name].to_numpy(object) for name in ("key", "sha256", "caption", "label", "group")), strict=True)
    keys = {_texts(*of): key for key, *of in texts}
    names: dict[str, int] = {}

    def reject(number: int, row: Row, reason: str, kind: str) -> None:
        rejected[number] = RejectedRow(where=row.where, name=row.key, reason=reason, kind=kind)

    def pieces(files: KnownFiles) -> Iterator[Piece[tuple[int, Row, str, str]]]:
        for number, row in enumerate(rows):
            key, data = "", b""
            try:
                caption = caption_of(row, template)
                if row.split and row.split not in splits.SPLITS:
                    raise BadImageError(f"split {row.split!r} is none of {', '.join(splits.SPLITS)}", "unknown split")
                file = files.look(row.image_bytes)
                if (
                    file.sha256
                ):  # of a file that is as it was, and needs no reading where the version holds its image under these texts
                    key = keys.get(_texts(file.sha256, caption, row.label, row.group), "")
                sha256 = file.sha256
                if not key:
                    data = stripped(row.image_bytes())
                    key, sha256 = key_of(data, caption, row.label, row.group), hashlib.sha256(data).hexdigest()
                    files.add(file, sha256)
            except (ClipftError, TransientError):  # something is missing here, for every row
                raise
            except Exception as error:  # whatever one row raises is that row's reason, and the others go on
                reject(number, row, *reason_of(error))
                continue
            if not is_erased(sha256, row.group):
                yield Piece((number, row, caption, key), data, sha256)

    def entries(files: KnownFiles) -> Iterator[shards.Entry]:
        for piece, said in describe_all(pieces(files), gray_bits, known):
            number, row, caption, key = piece.of
            if said.refused:
                reject(number, row, said.refused, said.kind)
                continue
            if key in taken:
                reason = f"exact duplicate of {taken[key].name} (same image, caption and label)"
                reject(number, row, reason, "exact duplicates")
                continue
            names[row.key] = names.get(row.key, 0) + 1
            taken[key] = TakenRow(
                key=key,
                name=row.key if names[row.key] == 1 else f"{row.key}#{names[row.key]}",
                caption=caption,
                label=row.label,
                group=row.group,
                split=row.split,
                width=said.width,
                height=said.height,
                mode=said.mode,
                format=said.format,
                sha256=piece.sha256,
                phash=said.phash,
                where=row.where,
                kin="\n".join(row.kin),
            )
            if piece.sha256 not in places:
                places[piece.sha256] = shards.Place("", 0, 0)  # on its way
                yield shards.Entry(piece.sha256, shards.extension(said.format), piece.data)

    with closing(KnownFiles()) as files:
        for sha256, where in shards.pack(entries(files), folder / "shards"):
            places[sha256] = where
    for taken_row in taken.values():
        place = places[taken_row.sha256]
        taken_row.shard, taken_row.offset, taken_row.length = place.shard, place.offset, place.length
    return list(taken.values()), [rejected[number] for number in sorted(rejected)]


def key_of(data: bytes, caption: str, label: str, group: str) -> str:
    """A row's identity, of its image and texts."""
    meta = {"caption": caption, "label": label, "group": group}
    return hashlib.sha256(data + json.dumps(meta, sort_keys=True).encode()).hexdigest()[:32]


def _texts(sha256: str, caption: str, label: str, group: str) -> bytes:
    """The same without the image's bytes, in few of its own: there is one for each row of a version."""
    return hashlib.blake2b("\0".join((sha256, caption, label, group)).encode(), digest_size=16).digest()


def caption_of(row: Row, template: str) -> str:
    """A row's caption on one line, made of its label where it has none. Raises BadImageError with the reason where it cannot be."""
    caption = " ".join(row.caption.split())
    try:
        "".join((row.key, caption, row.label, row.group)).encode()
    except UnicodeEncodeError as error:
        raise BadImageError("a name or text of it holds half a character", "text of unknown encoding") from error
    if not caption and row.label:
        caption = template.replace("{}", spoken(row.label))
    if not caption:
        raise BadImageError("it has neither a caption nor a label", "neither caption nor label")
    words = caption.count(" ") + 1
    if words > MAX_WORDS:
        raise BadImageError(f"its caption has {words:,} words, more than the limit of {MAX_WORDS:,}", "caption too long")
    return caption

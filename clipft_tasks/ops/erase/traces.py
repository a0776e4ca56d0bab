"""Traces of erased rows in files: what names them, their thumbnails, their lines in tables; and the files without these."""

import base64
import binascii
import html
import io
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import pandas as pd
from PIL import Image

from ...contracts.base import Record
from ...data.images import BadImageError, open_image, perceptual_hash, square

GONE = "(erased)"
BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACH5BAEAAAAALAAAAAABAAEAAAICRAEAOw=="
IMAGE = re.compile(rb"data:image/[a-z+.-]+;base64,([A-Za-z0-9+/=]+)")
ALIKE = 12  # bits of 256 in which a thumbnail may differ from its image
SHORT = 4  # letters: a name of fewer is replaced only where it stands alone, or it would be found in every text
TEXTS = (".html", ".json", ".jsonl", ".csv", ".tsv", ".md", ".txt", ".log", ".yaml")
COLUMNS = ("key", "sha256")


class Traces(Record):
    """What erased rows are known by.

    Args:
        keys, images: keys of the rows, SHA-256 of the images.
        names: what the source called them, their captions and groups: those that no other row of the domain has.
        captions: those of `names` that are captions.
        rows: what the source called them, though it may have called others the same.
        looks: perceptual hashes of each image, whole and as models see it.
    """

    keys: list[str] = []
    images: list[str] = []
    names: list[str] = []
    captions: list[str] = []
    rows: list[str] = []
    looks: list[str] = []

    def in_text(self, content: bytes) -> bytes:
        """A page, a record or a log without them."""
        out = IMAGE.sub(lambda m: BLANK.encode() if self.shows(m[1]) else m[0], content)
        return self._names.sub(GONE.encode(), out) if self._names else out

    def in_table(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A table without their rows."""
        gone = pd.Series(data=False, index=frame.index)
        for column in frame.columns.intersection(COLUMNS):
            gone |= frame[column].isin(self._known)
        return frame[~gone]

    def shows(self, encoded: bytes | str) -> bool:
        """Whether an image in base64 looks like one of them."""
        try:
            image = open_image(base64.b64decode(encoded), gray_bits=8).rgb
        except (BadImageError, binascii.Error, ValueError, OSError):
            return False
        return self.looks_like(perceptual_hash(image))

    def looks_like(self, phash: bytes) -> bool:
        found = int.from_bytes(phash)
        return any((look ^ found).bit_count() <= ALIKE for look in self._looks)

    @cached_property
    def _looks(self) -> list[int]:
        return [int(look, 16) for look in self.looks]

    @cached_property
    def _known(self) -> set[str]:
        return {*self.keys, *self.images}

    @cached_property
    def _names(self) -> re.Pattern[bytes] | None:
        words = {
            spelled for name in (*self.keys, *self.images, *self.names) if len(name) >= SHORT for spelled in spellings(name)
        }
        alone = {spelled for name in self.names if 0 < len(name) < SHORT for spelled in spellings(name)}
        either = [rb"(?<![\w.-])" + re.escape(w) + rb"(?![\w-])" for w in sorted(words, key=len, reverse=True)]
        either += [rb'(?<=[">])' + re.escape(w) + rb'(?=["<])' for w in sorted(alone, key=len, reverse=True)]
        return re.compile(b"|".join(either)) if either else None


def spellings(name: str) -> set[bytes]:
    """A text as pages and records write it."""
    pages = {html.escape(name), html.escape(name).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")}
    records = {json.dumps(name)[1:-1], json.dumps(name, ensure_ascii=False)[1:-1]}
    return {text.encode() for text in {name, *pages, *records}}


def looks_of(data: bytes, gray_bits: int) -> list[str]:
    """The perceptual hashes of an image: whole, and as the squares that models see."""
    try:
        rgb = open_image(data, gray_bits=gray_bits).rgb
    except (BadImageError, OSError):
        return []
    squares = [Image.fromarray(square(rgb, 224, aspect).transpose(1, 2, 0)) for aspect in ("crop", "pad", "squeeze")]
    return [perceptual_hash(image).hex() for image in (rgb, *squares)]


def without(path: Path, traces: Traces) -> bytes | None:
    """What a file is without the traces; None where it holds none, or is of a kind that holds none."""
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
        kept = traces.in_table(frame)
        if len(kept) == len(frame):
            return None
        out = io.BytesIO()
        kept.reset_index(drop=True).to_parquet(out, index=False)
        return out.getvalue()
    if path.suffix not in TEXTS:
        return None
    content = path.read_bytes()
    changed = traces.in_text(content)
    return changed if changed != content else None


def distinct(erased: Iterable[str], others: Iterable[str]) -> list[str]:
    """What only erased rows are called."""
    return sorted(set(erased) - set(others) - {""})

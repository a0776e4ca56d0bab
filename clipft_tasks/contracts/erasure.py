"""What was erased from the data sets, said without what it was."""

import hmac
from typing import ClassVar

from .base import Record, VersionedRecord


class Erasure(VersionedRecord):
    """One erasure, as git keeps it beside the versions for good (`<domain>/erasures.jsonl`). It names nothing of what is gone.

    Args:
        id: of the erasure; several domains may share it.
        at: when, UTC. by: who.
        chosen: how the rows were named: row, group, request or image.
        salt: of the digests below, hexadecimal; one a domain.
        images: salted digests of the images' SHA-256: who has such an image can tell that it was erased, nobody else anything.
        groups: likewise of groups that were erased as groups: whatever comes of them later is passed over.
        rows: how many rows each version lost.
        revisions: of each version whose commit is another one now: before and after.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "the record of an erasure"

    id: str
    at: str
    by: str
    domain: str
    chosen: list[str]
    salt: str
    images: list[str] = []
    groups: list[str] = []
    rows: dict[str, int] = {}
    revisions: dict[str, tuple[str, str]] = {}


def salted(salt: str, value: str) -> str:
    """What stands for a digest or a name in a record: nothing that the same value gives elsewhere."""
    return hmac.digest(bytes.fromhex(salt), value.encode(), "sha256").hex()


class SeenIn(Record):
    """A registered model, or a run with a model, that saw erased rows.

    Args:
        model: the version (`clipft-general/3`) or the run. aliases: of the version.
        dataset: version of the data that it was made of.
        rows: erased rows by split: it learned from those in `train`, and was measured on the others.
        start: the model that it began with, where that saw the rows and this one did not.
        packed: what its package holds of them, and what became of that.
    """

    model: str
    aliases: list[str] = []
    dataset: str = ""
    rows: dict[str, int] = {}
    start: str = ""
    packed: str = ""


class PlaceSearched(Record):
    """A kind of place that was looked at, how many things there held erased rows, and a word about it."""

    place: str
    looked_at: int = 0
    held: int = 0
    note: str = ""


class ErasureAccount(Record):
    """What an erasure does, or did.

    Args:
        id: "" before it is done.
        images: by domain. rows: by version.
        names: of the rows, a few, before it is done; [] in the account afterwards.
        alike: near-duplicates that are not erased with them: name, and bits that differ.
        places: everything that was looked at.
        models: who saw the rows. running: runs that hold them now.
        backups: that hold them: by folder, when it was made and what it holds.
    """

    id: str = ""
    done: bool = False
    images: dict[str, int] = {}
    rows: dict[str, int] = {}
    names: list[str] = []
    alike: list[str] = []
    captures: int = 0
    places: list[PlaceSearched] = []
    models: list[SeenIn] = []
    running: list[str] = []
    backups: dict[str, str] = {}

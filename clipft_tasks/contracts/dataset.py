"""What a dataset version says of itself, and what is said of a row that was not taken."""

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from .base import Record, VersionedRecord
from .review import Review

CAPTURES = "captures:"  # before the domain, in a source that holds what the server captured


LONGEST = 200  # letters of what a source makes us say


def shortened(text: str) -> str:
    """At most `LONGEST` letters: names and reasons may hold whatever a file holds."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


Short = Annotated[str, BeforeValidator(shortened)]


class SourceAccount(Record):
    """What was found in a source and how it was understood. It lies in git: it names no file, no folder and no person.

    Args:
        seen: files, table rows or shard members that were looked at. taken: rows.
        refused: rows by kind of reason. passed_over: what is no row, by kind.
        understood: how labels, groups and splits were found, a sentence each.
        warnings: what a person should look at, likewise.
    """

    seen: int = 0
    taken: int = 0
    refused: dict[str, int] = {}
    passed_over: dict[str, int] = {}
    understood: list[str] = []
    warnings: list[str] = []


class DatasetCard(VersionedRecord):
    """The card of a dataset version: `datacard.json`, which lies in git beside the pointers of DVC.

    Args:
        source: what was ingested. license, origin, consent: of it; "" where nobody states them.
        rows, rejected: how many were taken and how many refused.
        counts: rows by split. classes: rows by label.
        content: digest of the rows and their splits: versions with the same content are the same.
        parents: tags of the versions that it continues.
        version: its tag; "" while it is staged.
        account: what the reader found.
        major: how often the domain was split anew, from 1. Rows keep their split in all versions of one major; between two,
            a test row of one may be a training row of the other.
        kept_splits: rows that keep the split of earlier versions, though the source names another now.
        parted: rows left out, because they, or what resembles them, stood on two sides of a split before.
        absent: classes that have no row in some split, and in which.
        reviews: what people decided of rows, counted; the decisions themselves are in `decisions.parquet`.
        erased: rows that it held and that were erased since.
    """

    FORMAT: ClassVar[int] = 3  # tables of a version lie in parts
    WHAT: ClassVar[str] = "the dataset card"

    domain: str
    source: str
    license: str = ""
    origin: str = ""
    consent: str = ""
    rows: int
    rejected: int
    counts: dict[str, int]
    classes: dict[str, int]
    content: str
    parents: list[str] = []
    version: str = ""
    account: SourceAccount = SourceAccount()
    major: int = 1
    kept_splits: int = 0
    parted: int = 0
    absent: dict[str, list[str]] = {}
    reviews: list[Review] = []
    erased: int = 0

    @property
    def captured(self) -> bool:
        """Whether it holds traffic that the server captured and people judged."""
        return self.source.startswith(CAPTURES)

    @classmethod
    def upgraded(cls, data: dict[str, Any], written: int) -> dict[str, Any]:
        if not written:
            if "licence" in data:  # the spelling before formats were numbered
                data["license"] = data.pop("licence")
            data = {name: value for name, value in data.items() if name in cls.model_fields}
        return data


class RejectedRow(Record):
    """A row that was not taken: where a person finds it, what the source calls it, and why, at most 200 letters each.

    Attributes:
        kind: of reason, in words that name no file.
    """

    where: Short
    name: Short
    reason: Short
    kind: str = "other reasons"


class RowsChecked(VersionedRecord):
    """What was found out of staged rows, all of them or every `of`-th from `part` on, by number: it says nothing of what they hold.

    Args:
        rows: that there are in all.
        pairs: that join all near-duplicates of the part. named: rows whose texts may name a person.
        tokens: of each of the part's captions. context: tokens that the start model reads.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "what was found out of staged rows"

    part: int
    of: int
    rows: int
    pairs: list[tuple[int, int]]
    named: list[int]
    tokens: list[int] = []
    context: int = 0


class ChangedImages(Record):
    """How many images changed in one way, and the names of some."""

    count: int
    examples: list[str]


class Range(Record):
    """Of a number over all rows."""

    low: int
    median: int
    high: int


class DatasetDiff(Record):
    """What differs between two dataset versions. Pairs are of the old and the new one.

    Attributes:
        comparable: whether they are of one major, so that no test row of one is a training row of the other.
        added, removed: images by their bytes. relabeled, recaptioned, regrouped, moved: of those that both hold; moved means to
            another split, from where to where is in `moves`.
        counts: rows by split. classes: rows by label, where they differ.
    """

    old: str
    new: str
    comparable: bool
    images: tuple[int, int]
    rows: tuple[int, int]
    added: ChangedImages
    removed: ChangedImages
    relabeled: ChangedImages
    recaptioned: ChangedImages
    regrouped: ChangedImages
    moved: ChangedImages
    moves: dict[str, int]
    counts: dict[str, tuple[int, int]]
    classes: dict[str, tuple[int, int]]
    shorter_side: tuple[Range, Range]

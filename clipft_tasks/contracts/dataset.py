"""What a dataset version says of itself, and what is said of a row that was not taken."""

from typing import Any, ClassVar

from .base import Record, VersionedRecord

CAPTURES = "captures:"  # before the domain, in a source that holds what the server captured


class DatasetCard(VersionedRecord):
    """The card of a dataset version: `datacard.json`, which lies in git beside the pointers of DVC.

    Args:
        source: what was ingested. license: of it; "" where it states none.
        rows, rejected: how many were taken and how many refused.
        counts: rows by split. classes: rows by label.
        content: digest of the rows and their splits: versions with the same content are the same.
        parents: tags of the versions that it continues.
        version: its tag; "" while it is staged.
    """

    WHAT: ClassVar[str] = "the dataset card"

    domain: str
    source: str
    license: str = ""
    rows: int
    rejected: int
    counts: dict[str, int]
    classes: dict[str, int]
    content: str
    parents: list[str] = []
    version: str = ""

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
    """A row that was not taken: where a person finds it, what the source calls it, and why."""

    where: str
    name: str
    reason: str

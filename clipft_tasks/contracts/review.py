"""What people decided of rows whose labels were looked at: as the review page writes it, and as a dataset version keeps it."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from .base import Record, VersionedRecord

Action = Literal["keep", "relabel", "drop"]


class RowDecision(Record):
    """What a person decided of one row.

    Args:
        key: the row's, in the manifest of the version that was looked at.
        label: the new one; "" unless it is to be relabeled.
        at: when, as ISO 8601.
    """

    key: str = Field(max_length=64)
    action: Action
    label: str = ""
    at: str = Field("", max_length=40)

    @model_validator(mode="after")
    def _label_where_relabeled(self) -> Self:
        if (self.action == "relabel") != bool(self.label.strip()):
            raise ValueError("a row has a new label where it is relabeled, and there alone")
        return self


class DecisionsFile(VersionedRecord):
    """The file that a review page writes: one person's decisions on one dataset version.

    Args:
        version: its tag. by: who decided.
    """

    WHAT: ClassVar[str] = "the decisions file"

    version: str
    by: str = Field("", max_length=200)
    decisions: list[RowDecision]


class Review(Record):
    """One person's decisions on one version, counted, for the dataset card.

    Args:
        version: the one that was looked at. by: who. at: when the last was made, as ISO 8601.
        kept, relabeled, dropped: rows by what was decided.
    """

    version: str
    by: str = ""
    at: str = ""
    kept: int = 0
    relabeled: int = 0
    dropped: int = 0

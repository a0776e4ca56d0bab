"""What every record has in common."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ..core.errors import ClipftError


class Record(BaseModel):
    """An immutable record whose fields are all declared; an unknown or missing one is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> dict[str, Any]:  # plain JSON has no narrower type
        """Plain JSON values: what XCom, an artifact or an HTTP body holds."""
        return self.model_dump(mode="json")


class VersionedRecord(Record):
    """A record that outlives the software that wrote it: it says in which format it is written.

    A subclass raises `FORMAT` when its fields change and teaches `upgraded` to read the formats before.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "a record"  # how errors name it

    format: int = 1

    @classmethod
    def from_json(cls, data: object, where: str = "") -> Self:
        """Read a record of this or an earlier format.

        Args:
            data: decoded JSON.
            where: file or artifact that it came from, for errors.
        Raises: ClipftError where a newer release wrote it, or where it is none.
        """
        named = f"{cls.WHAT} {where}".strip()
        try:
            if not isinstance(data, Mapping):
                raise TypeError
            written = int(data.get("format", 0))
        except (TypeError, ValueError):
            raise ClipftError(
                named, "it is not a record with a format number", "Make it again.", code="record.unreadable"
            ) from None
        if written > cls.FORMAT:
            raise ClipftError(
                named,
                f"a newer release wrote it (format {written}, this one reads {cls.FORMAT})",
                "Upgrade clipft.",
                code="record.newer_format",
            )
        try:
            return cls.model_validate(cls.upgraded(dict(data), written) | {"format": cls.FORMAT})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ClipftError(named, f"{place}: {first['msg']}", "Make it again.", code="record.invalid") from None
        except (KeyError, TypeError, AttributeError) as error:  # an earlier format in name only
            raise ClipftError(
                named, f"format {written} has other fields ({error!r})", "Make it again.", code="record.invalid"
            ) from None

    @classmethod
    def upgraded(cls, data: dict[str, Any], written: int) -> dict[str, Any]:
        """The fields of an earlier format (0: from before formats were numbered) as those of today."""
        return data


class StageResult(Record):
    """What every stage says of its work, beside what it is for."""

    seconds: float = 0.0  # how long it took, added by whoever ran it
    links: dict[str, str] = {}  # pages to look at, by name

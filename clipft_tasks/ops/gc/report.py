"""What garbage collection finds: things that may go, and things that stay although they look old."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from ...core.errors import ClipftError
from ...core.settings import EnvironmentSettings

DAY = 86400.0
Kind = Literal["runs", "work", "caches", "captures", "logs", "metadata"]


@dataclass(frozen=True)
class Item:
    """Something that may go.

    Attributes:
        what, reason: for a person.
        bytes: that come back; 0 where that is only known afterwards.
        remove: does it; returns the bytes that came back. Looks again first: what has changed since stays.
    """

    kind: Kind
    what: str
    reason: str
    bytes: int
    remove: Callable[[], int]


@dataclass(frozen=True)
class Report:
    """What may go, and what was skipped although it looks old, each with the reason."""

    items: list[Item] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, found: Iterable[Item | str]) -> Self:
        """A report of items, and of sentences about what was skipped, in any order."""
        both = list(found)
        return cls([i for i in both if isinstance(i, Item)], [i for i in both if isinstance(i, str)])

    def __add__(self, other: "Report") -> "Report":
        return Report(self.items + other.items, self.skipped + other.skipped)


class Collector(Protocol):
    """Finds one kind of garbage, and changes nothing. Raises TransientError or OSError when it cannot look."""

    @property
    def title(self) -> str:
        """What it looks at, for a person."""

    def find(self) -> Report: ...


class Policy(EnvironmentSettings):
    """How long things are kept, in days, from `CLIPFT_KEEP_<NAME>`. At least one day: what is younger may be in use."""

    model_config = SettingsConfigDict(env_prefix="CLIPFT_KEEP_", extra="ignore", populate_by_name=True)

    runs: float = Field(
        60, ge=1, description="runs that ended and are no version's: candidates that were not registered, failed ones"
    )
    deleted: float = Field(7, ge=1, description="runs and models that somebody deleted in MLflow")
    work: float = Field(7, ge=1, description="checkpoints and staged rows of work that was given up")
    caches: float = Field(14, ge=1, description="fetched models, shards and DVC objects that nobody read")
    captures: float = Field(30, ge=1, validation_alias="CLIPFT_SERVING_CAPTURE_DAYS", description="captured images")
    logs: float = Field(30, ge=1, description="logs of tasks")
    metadata: float = Field(90, ge=1, description="Airflow's records of runs and tasks")

    @classmethod
    def of_environment(cls) -> Self:
        """Raises ClipftError, with the variable's name."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            name = name if name.startswith("CLIPFT_") else f"CLIPFT_KEEP_{name.upper()}"
            raise ClipftError(name, first["msg"], "Give days, at least 1.", code="gc.invalid_setting") from None

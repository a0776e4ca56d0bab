"""An automatic decision is a value and its reason."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Decision"]

T = TypeVar("T")


@dataclass(frozen=True)
class Decision(Generic[T]):
    """What was decided by itself, why, and what was measured for it, by name with the unit."""

    value: T
    reason: str
    measured: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"

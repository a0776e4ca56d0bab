"""An automatic decision is a value and its reason."""

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Decision"]


@dataclass(frozen=True)
class Decision:
    """What was decided by itself, why, and what was measured for it, by name with the unit."""

    value: Any
    reason: str
    measured: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

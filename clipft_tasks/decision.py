"""An automatic decision is a value and its reason."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Decision:
    """What was decided by itself, why, and (if anything was measured) on what figure."""

    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

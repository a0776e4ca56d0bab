"""A section of a spec, and how a field that waits for the plan is read."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from ..core.errors import ClipftError


class Section(BaseModel):
    """A group of fields; unknown names are refused so that a typing error never passes silently."""

    model_config = ConfigDict(extra="forbid", frozen=True)


V = TypeVar("V")


def settled(name: str, value: V | None) -> V:
    """The value of a field that the plan decides where the spec leaves it open. Raises ClipftError where it did not."""
    if not value:
        raise ClipftError(
            name, "it follows from the start model, and nobody has looked at that yet", "Run plan first.", code="spec.open"
        )
    return value

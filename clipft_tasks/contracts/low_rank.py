"""What a low-rank update is like, and the card of a folder that holds one beside its base."""

from typing import ClassVar, Literal

from .base import Record, VersionedRecord

Variant = Literal["plain", "rslora", "dora"]


class LowRankForm(Record):
    """The updates that a model's frozen weights were given.

    Args:
        image_rank, text_rank: of those of each tower; 0 gives a tower none.
        alpha: numerator of their factor; None: a tower's own rank.
        variant: `plain` (alpha / rank), `rslora` (alpha / √rank), `dora` (plain, and each output's length apart).
    """

    image_rank: int
    text_rank: int
    alpha: float | None = None
    variant: Variant = "plain"

    def factor(self, rank: int) -> float:
        """What an update is multiplied with."""
        alpha = rank if self.alpha is None else self.alpha
        return alpha / (rank**0.5 if self.variant == "rslora" else rank)


class AdapterCard(VersionedRecord):
    """What an adapter belongs to: without that base, unchanged, it says nothing.

    Args:
        base: the start model, as `model.start` names it. digest: of its weights.
        form: of the updates.
        numbers: that it holds.
    """

    WHAT: ClassVar[str] = "the adapter's card"

    base: str
    digest: str
    form: LowRankForm
    numbers: int

"""The cyclic consistency of CyCLIP."""

from torch import Tensor

from ..spec.ranges import Range
from .base import Objective, Pairs
from .blocks import in_blocks


class Cyclic(Objective):
    """Distances must agree: image to another's text with text to the other's image, and images' with their texts'.

    Add it to a contrastive objective when zero-shot classes and retrieval should follow one geometry, above all where the
    data drift: a text may then stand for its image. Alone it would let everything fall into one point.

    Args:
        cross: weight of the first, between images and texts.
        within: weight of the second, among images and among texts.
    Source: CyCLIP, Goel et al. 2022, https://arxiv.org/abs/2205.14459, with its weights
    Example:
        >>> losses = Cyclic()(pairs)  # cross_loss, within_loss
    """

    auxiliary_only = True
    space = {"cross": Range(0.0, 1.0), "within": Range(0.0, 1.0)}

    def __init__(self, cross: float = 0.25, within: float = 0.25) -> None:
        super().__init__()
        self.cross = cross
        self.within = within

    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        def cross(rows: slice) -> Tensor:
            return (pairs.similarities("image", rows) - pairs.similarities("text", rows)).square().sum()

        def within(rows: slice) -> Tensor:
            compare = pairs.similarity
            return (compare(pairs.image[rows], pairs.image) - compare(pairs.text[rows], pairs.text)).square().sum()

        n = len(pairs)
        return {"cross_loss": self.cross * in_blocks(n, cross) / n, "within_loss": self.within * in_blocks(n, within) / n}

"""InfoNCE without the negatives that the start model takes for positives."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..spec.ranges import Range
from .base import Anchor, Objective, Pairs
from .blocks import MASKED, own, symmetric


class Guided(Objective):
    """InfoNCE in which the frozen start model strikes out false negatives: what it finds more similar than the pair itself.

    Use it when captions are noisy or say the same in many ways, and the start model knows the domain a little.

    Args:
        margin: by how much a negative must exceed the pair, in the start model's similarity, to be struck out. Below 0 more
            are; a large one strikes out nothing, which is InfoNCE.
        positives: rows that are no negatives either: "pair" (only the row itself), "caption" or "label".
        text_weight: share of the direction in which texts look for images, 0 to 1.
    Source: GISTEmbed, Solatorio 2024, https://arxiv.org/abs/2402.16829, between images and texts only: cosines within one
        kind are far higher than across, and would strike out nearly everything
    Example:
        >>> loss = Guided(margin=0.05)(pairs)["contrastive_loss"]
    """

    needs_start = True
    space = {"margin": Range(-0.1, 0.2), "text_weight": Range(0.25, 0.75)}

    def __init__(self, margin: float = 0.0, positives: str = "caption", text_weight: float = 0.5) -> None:
        super().__init__()
        self.margin = margin
        self.positives = positives
        self.text_weight = text_weight

    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        assert pairs.start is not None
        start, every = pairs.start, torch.arange(len(pairs), device=pairs.image.device)

        def rows_loss(anchor: Anchor, rows: slice) -> Tensor:
            guide = start.similarities(anchor, rows)
            struck = (guide > own(guide, rows) + self.margin) | pairs.same(self.positives, rows)
            logits = pairs.logits(anchor, rows).masked_fill(struck & ~pairs.same("pair", rows), MASKED)
            return cross_entropy(logits, every[rows], reduction="sum")

        return {"contrastive_loss": symmetric(pairs, rows_loss, self.text_weight)}

"""InfoNCE, the objective of CLIP."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..spec.ranges import Range
from .base import Anchor, Objective, Pairs
from .blocks import symmetric


class InfoNCE(Objective):
    """Symmetric cross-entropy over the batch: each image finds its own caption, each caption its own image.

    Use it when captions are nearly all different. Rows that share a caption are treated as each other's negatives.

    Args:
        smoothing: share of the target spread evenly over all rows, 0 <= smoothing < 1.
        text_weight: share of the direction in which texts look for images, 0 to 1.
    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020
    Example:
        >>> loss = InfoNCE()(pairs)["contrastive_loss"]
    """

    space = {"text_weight": Range(0.25, 0.75)}

    def __init__(self, smoothing: float = 0.0, text_weight: float = 0.5) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.text_weight = text_weight

    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        every = torch.arange(len(pairs), device=pairs.image.device)

        def rows_loss(anchor: Anchor, rows: slice) -> Tensor:
            logits = pairs.logits(anchor, rows)
            return cross_entropy(logits, every[rows], label_smoothing=self.smoothing, reduction="sum")

        return {"contrastive_loss": symmetric(pairs, rows_loss, self.text_weight)}

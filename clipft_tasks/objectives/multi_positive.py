"""Multi-positive InfoNCE: rows that say the same thing are positives of each other."""

from torch import Tensor
from torch.nn.functional import log_softmax

from ..spec.ranges import Range
from .base import Anchor, Objective, Pairs
from .blocks import symmetric


class MultiPositive(Objective):
    """Cross-entropy against all rows that share the caption (or the label), in both directions.

    Use it when many images share few captions: there InfoNCE would push an image away from its own caption's twins.
    With all captions different it equals InfoNCE.

    Args:
        positives: what makes two rows the same thing: "pair" (only the row itself), "caption" or "label" (rows without a
            label fall back to their caption).
        smoothing: share of the target spread evenly over all rows, 0 <= smoothing < 1.
        text_weight: share of the direction in which texts look for images, 0 to 1.
    Source: Khosla et al. 2020, equation 2, https://arxiv.org/abs/2004.11362, with images against texts;
        UniCL, Yang et al. 2022, https://arxiv.org/abs/2204.03610
    Example:
        >>> loss = MultiPositive("label")(pairs)["contrastive_loss"]
    """

    space = {"text_weight": Range(0.25, 0.75)}

    def __init__(self, positives: str = "caption", smoothing: float = 0.0, text_weight: float = 0.5) -> None:
        super().__init__()
        self.positives = positives
        self.smoothing = smoothing
        self.text_weight = text_weight

    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        def rows_loss(anchor: Anchor, rows: slice) -> Tensor:
            logits = pairs.logits(anchor, rows)
            target = pairs.same(self.positives, rows).to(logits.dtype)
            target = target / target.sum(dim=1, keepdim=True)  # symmetric relation: rows and columns have equal sums
            target = (1 - self.smoothing) * target + self.smoothing / len(pairs)
            return -(target * log_softmax(logits, dim=1)).sum()

        return {"contrastive_loss": symmetric(pairs, rows_loss, self.text_weight)}

"""The sigmoid loss of SigLIP."""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..spec.ranges import Range
from .base import Anchor, Objective, Pairs
from .blocks import symmetric


class Sigmoid(Objective):
    """Each of the n² pairs is a question by itself: do these two belong together?

    Use it when batches are small, or when the start model is a SigLIP: no pair depends on which others are in the batch, and
    several positives need no special care.

    Args:
        positives: what makes two rows belong together: "pair" (only the row itself), "caption" or "label".
        bias: where the learned bias of the logits begins, for models that have none of their own. At the paper's -10 nearly
            all pairs begin as negatives; with a sharp temperature (CLIP's 0.01) it belongs near minus the logit of a pair.
    Source: Zhai et al. 2023, https://arxiv.org/abs/2303.15343
    Example:
        >>> loss = Sigmoid()(pairs)["sigmoid_loss"]
    """

    space = {"bias": Range(-30.0, 0.0)}

    def __init__(self, positives: str = "caption", bias: float = -10.0) -> None:
        super().__init__()
        self.positives = positives
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        def rows_loss(anchor: Anchor, rows: slice) -> Tensor:
            logits = pairs.logits(anchor, rows)
            if pairs.bias is None:
                logits = logits + self.bias
            return -logsigmoid(torch.where(pairs.same(self.positives, rows), logits, -logits)).sum()

        return {"sigmoid_loss": symmetric(pairs, rows_loss, text_weight=0)}  # one direction holds every pair once

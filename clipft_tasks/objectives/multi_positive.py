"""Multi-positive InfoNCE: rows that say the same thing are positives of each other."""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from .base import Objective
from .softmax import symmetric


class MultiPositive(Objective):
    """Cross-entropy against all rows that share the caption (or the label), in both directions.

    Use it when many pictures share few captions: there InfoNCE would push a picture away from its own caption's twins.
    With all captions different it equals InfoNCE.

    Args:
        positives: what makes two rows the same thing: "pair" (only the row itself), "caption" or "label" (rows without a
            label fall back to their caption).
        smoothing: share of the target spread evenly over all rows, 0 <= smoothing < 1.
    Source: Khosla et al. 2020, equation 2, https://arxiv.org/abs/2004.11362, with pictures against texts;
        UniCL, Yang et al. 2022, https://arxiv.org/abs/2204.03610
    Example:
        >>> loss = MultiPositive("label")(image=i, text=t, scale=s, captions=c, labels=l)["contrastive_loss"]
    """

    def __init__(self, positives: str = "caption", smoothing: float = 0.0, **_: object) -> None:
        super().__init__()
        self.positives = positives
        self.smoothing = smoothing

    def forward(self, *, image, text, scale, captions, labels, bias=None) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        def rows_loss(logits: Tensor, rows: slice) -> Tensor:
            target = self._same(captions, labels, rows).to(logits.dtype)
            target = target / target.sum(dim=1, keepdim=True)  # symmetric relation: rows and columns have equal sums
            target = (1 - self.smoothing) * target + self.smoothing / len(captions)
            return -(target * log_softmax(logits, dim=1)).sum()

        return {"contrastive_loss": symmetric(image, text, scale, bias, rows_loss)}

    def _same(self, captions: Tensor, labels: Tensor, rows: slice) -> Tensor:
        """Which of all rows say the same as each of `rows`: (k, n)."""
        if self.positives == "pair":
            every = torch.arange(len(captions), device=captions.device)
            return every[rows, None] == every
        same = captions[rows, None] == captions[None]
        if self.positives == "label":
            same = same | ((labels[rows, None] == labels[None]) & (labels[rows] >= 0)[:, None])
        return same

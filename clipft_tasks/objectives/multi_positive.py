"""Multi-positive InfoNCE: rows that say the same thing are positives of each other."""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from .base import Objective


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
        logits = scale * image @ text.T
        if bias is not None:
            logits = logits + bias
        target = self._same(captions, labels).to(logits.dtype)
        target = target / target.sum(dim=1, keepdim=True)  # symmetric relation: rows and columns have equal sums
        target = (1 - self.smoothing) * target + self.smoothing / len(target)
        rows = -(target * log_softmax(logits, dim=1)).sum(dim=1).mean()
        columns = -(target * log_softmax(logits.T, dim=1)).sum(dim=1).mean()
        return {"contrastive_loss": (rows + columns) / 2}

    def _same(self, captions: Tensor, labels: Tensor) -> Tensor:
        if self.positives == "pair":
            return torch.eye(len(captions), dtype=torch.bool, device=captions.device)
        same = captions[:, None] == captions[None]
        if self.positives == "label":
            same = same | ((labels[:, None] == labels[None]) & (labels >= 0)[:, None])
        return same

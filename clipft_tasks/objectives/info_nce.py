"""InfoNCE, the objective of CLIP."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .base import Objective


class InfoNCE(Objective):
    """Symmetric cross-entropy over the batch: each picture finds its own caption, each caption its own picture.

    Use it when captions are nearly all different. Rows that share a caption are treated as each other's negatives.

    Args:
        smoothing: share of the target spread evenly over all rows, 0 <= smoothing < 1.
    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020
    Example:
        >>> loss = InfoNCE()(image=i, text=t, scale=s, captions=c, labels=l)["contrastive_loss"]
    """

    def __init__(self, smoothing: float = 0.0, **_: object) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, *, image, text, scale, captions, labels, bias=None) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        logits = scale * image @ text.T
        if bias is not None:
            logits = logits + bias
        target = torch.arange(len(logits), device=logits.device)
        rows = cross_entropy(logits, target, label_smoothing=self.smoothing)
        columns = cross_entropy(logits.T, target, label_smoothing=self.smoothing)
        return {"contrastive_loss": (rows + columns) / 2}

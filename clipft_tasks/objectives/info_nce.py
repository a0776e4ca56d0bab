"""InfoNCE, the objective of CLIP."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .base import Objective
from .softmax import symmetric


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
        own = torch.arange(len(image), device=image.device)

        def rows_loss(logits: Tensor, rows: slice) -> Tensor:
            return cross_entropy(logits, own[rows], label_smoothing=self.smoothing, reduction="sum")

        return {"contrastive_loss": symmetric(image, text, scale, bias, rows_loss)}

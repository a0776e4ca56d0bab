"""Losses that are sums over rows of logits, in memory that does not grow with the square of the batch."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .base import Anchor, Pairs

LOGITS = 2**24  # at once: 64 MiB in fp32

RowsLoss = Callable[[Tensor, Anchor, slice], Tensor]


def symmetric(pairs: Pairs, rows_loss: RowsLoss, text_weight: float = 0.5) -> Tensor:
    """Mean of `rows_loss` over pictures against all texts, and over texts against all pictures.

    A batch whose logits are many is worked through in blocks of rows, which are computed again in the backward pass; the
    result is the same.

    Args:
        rows_loss: logits (k, n) of an anchor's rows, which anchor, which rows -> the sum of their losses.
        text_weight: share of the second direction, texts that look for pictures.
    """
    n = len(pairs)
    rows = max(1, LOGITS // n)
    blocks = [slice(start, min(start + rows, n)) for start in range(0, n, rows)]

    def part(anchor: Anchor, which: slice) -> Tensor:
        return rows_loss(pairs.logits(anchor, which), anchor, which)

    total = pairs.image.new_zeros(())
    anchors: tuple[tuple[Anchor, float], ...] = (("image", 1 - text_weight), ("text", text_weight))
    for which in blocks:
        for anchor, weight in anchors:
            if len(blocks) == 1:
                loss = part(anchor, which)
            else:
                loss = checkpoint(part, anchor, which, use_reentrant=False, preserve_rng_state=False)
            total = total + weight * loss
    return total / n

"""Sums over rows of the matrix of all pairs, in memory that does not grow with the square of the batch."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .base import Anchor, Pairs

__all__ = ["in_blocks", "own", "symmetric"]

LOGITS = 2**24  # at once: 64 MiB in fp32
MASKED = -1e9  # in the place of a logit that must not count; finite, so that a row of nothing else has no NaN gradient


def in_blocks(n: int, part: Callable[[slice], Tensor]) -> Tensor:
    """The sum of `part` over all of n rows.

    A batch whose pairs are many is worked through in blocks of rows, which are computed again in the backward pass; the
    result is the same.

    Args:
        part: which rows -> the sum of their losses. It may make a few matrices of (rows, n).
    """
    rows = max(1, LOGITS // n)
    if rows >= n:
        return part(slice(0, n))
    total: Tensor | int = 0
    for first in range(0, n, rows):
        which = slice(first, min(first + rows, n))
        total = total + checkpoint(part, which, use_reentrant=False, preserve_rng_state=False)
    return total  # type: ignore[return-value]


def symmetric(pairs: Pairs, rows_loss: Callable[[Anchor, slice], Tensor], text_weight: float = 0.5) -> Tensor:
    """Mean of `rows_loss` over images against all texts, and over texts against all images.

    Args:
        rows_loss: anchor, some of its rows -> the sum of their losses.
        text_weight: share of the second direction, texts that look for images.
    """
    anchors: tuple[tuple[Anchor, float], ...] = (("image", 1 - text_weight), ("text", text_weight))
    sums = [weight * in_blocks(len(pairs), partial(rows_loss, anchor)) for anchor, weight in anchors if weight]
    return sum(sums[1:], start=sums[0]) / len(pairs)


def own(matrix: Tensor, rows: slice) -> Tensor:
    """What each of some rows has with its own partner: (k, n) -> (k, 1)."""
    return matrix.diagonal(rows.start or 0)[:, None]

"""The symmetric softmax over a batch, in memory that does not grow with its square."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS = 2**24  # at once: 64 MiB in fp32

RowsLoss = Callable[[Tensor, slice], Tensor]


def symmetric(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, rows_loss: RowsLoss) -> Tensor:
    """Mean of `rows_loss` over pictures against all texts, and over texts against all pictures.

    A batch whose logits are many is worked through in blocks of rows, which are computed again in the backward pass; the
    result is the same.

    Args:
        image, text: unit embeddings (n, d).
        scale, bias: of the logits.
        rows_loss: logits (k, n) of the rows `slice` -> the sum of their losses.
    """
    n = len(image)
    rows = max(1, LOGITS // n)

    def part(a: Tensor, b: Tensor, which: slice) -> Tensor:
        logits = scale * a[which] @ b.T
        return rows_loss(logits if bias is None else logits + bias, which)

    if rows >= n:
        whole = slice(0, n)
        return (part(image, text, whole) + part(text, image, whole)) / (2 * n)
    total = image.new_zeros(())
    for start in range(0, n, rows):
        which = slice(start, min(start + rows, n))
        for a, b in ((image, text), (text, image)):
            total = total + checkpoint(part, a, b, which, use_reentrant=False, preserve_rng_state=False)
    return total / (2 * n)

"""Alignment of new data with old: one distribution of image embeddings, whatever the camera."""

import torch
from torch import Tensor

from ..spec.ranges import Range
from .base import Objective, Pairs
from .blocks import in_blocks


class Alignment(Objective):
    """The distance between the distributions of old and new rows' image embeddings, within a batch.

    Add it to a contrastive objective when a data set grew by images from another device, site or season (`pairs.new`),
    and what the model sees in them should not depend on where they came from. Without rows of both kinds it is zero.

    Args:
        distance: "coral", between covariances, in proportion to their size so that a weight means the same at any width; or
            "mmd", between whole distributions, by five Gaussian kernels around the mean distance.
    Source: Deep CORAL, Sun and Saenko 2016, https://arxiv.org/abs/1607.01719; MMD, Gretton et al. 2012,
        https://jmlr.org/papers/v13/gretton12a.html, with the kernels of DAN, Long et al. 2015, https://arxiv.org/abs/1502.02791
    Example:
        >>> loss = Alignment("mmd")(pairs)["mmd_loss"]
    """

    auxiliary_only = True
    space = {"distance": Range.of("coral", "mmd")}
    BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the mean squared distance

    def __init__(self, distance: str = "coral") -> None:
        super().__init__()
        if distance not in ("coral", "mmd"):
            raise ValueError(f"distance must be coral or mmd, not {distance!r}")
        self.distance = distance

    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        # Weights in place of selected rows: shapes stay those of the batch, and the device is never asked how many there are.
        new = pairs.new.to(pairs.image.dtype)
        shares = [side / side.sum().clamp_min(1) for side in (new, 1 - new)]
        both = new.sum() * (1 - new).sum() > 0
        distance = _coral if self.distance == "coral" else _mmd
        return {f"{self.distance}_loss": distance(pairs.image, *shares) * both}


def _coral(x: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Squared distance between two covariances over the sum of their squares. Shares of rows (n,) of x (n, d) -> scalar."""

    def covariance(share: Tensor) -> Tensor:
        centered = (x - share @ x) * share.sqrt()[:, None]
        return centered.T @ centered

    a, b = covariance(one), covariance(other)
    return (a - b).square().sum() / (a.square().sum() + b.square().sum()).clamp_min(1e-12)


def _mmd(x: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Squared maximum mean discrepancy (biased, so never negative). Shares of rows (n,) of x (n, d) -> scalar."""
    squares, sign = x.square().sum(dim=1), one - other
    mean = 2 * (squares.mean() - x.mean(dim=0).square().sum()).clamp_min(1e-12)  # squared distance of two rows

    def part(rows: slice) -> Tensor:
        apart = (squares[rows, None] + squares - 2 * x[rows] @ x.T).clamp_min(0) / mean
        kernel = torch.stack([(-apart / width).exp() for width in Alignment.BANDWIDTHS]).mean(dim=0)
        return sign[rows] @ kernel @ sign

    return in_blocks(len(x), part)

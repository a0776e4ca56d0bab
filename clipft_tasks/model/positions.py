"""Stored position embeddings on another grid: a fixed linear map, made once a size.

Training and evaluating at several sizes therefore keeps one set of weights and one optimizer state; nothing is ever
resampled back and forth.
"""

import torch
from torch import Tensor
from torch.nn import functional

Grid = tuple[int, int]  # rows, columns

_matrices: dict[tuple[object, ...], Tensor] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # a compiler keeps the matrix instead of making it each time
def resampling(old: Grid, new: Grid, device: torch.device) -> Tensor:
    """The matrix (new positions, old positions) of bicubic resampling with antialiasing between two grids, fp32.

    Resampling is linear, so its matrix is what it does to each unit grid. Made once a size, on the CPU; the gradient of a
    matrix product exists everywhere, that of the resampling does not (MPS).
    """
    key = (old, new, device)
    if key not in _matrices:
        with torch.inference_mode(False):  # kept, so it must serve training too, whoever asks first
            unit = torch.eye(old[0] * old[1]).view(-1, 1, *old)
            spread = functional.interpolate(unit, size=new, mode="bicubic", antialias=True, align_corners=False)
            _matrices[key] = spread.flatten(1).T.contiguous().to(device)
    return _matrices[key]


def resampled(positions: Tensor, prefix: int, old: Grid, new: Grid) -> Tensor:
    """Position embeddings (..., prefix + old positions, width) -> (..., prefix + new positions, width)."""
    matrix = resampling(old, new, positions.device)
    with torch.autocast(positions.device.type, enabled=False):
        return torch.cat([positions[..., :prefix, :], matrix @ positions[..., prefix:, :].float()], dim=-2)

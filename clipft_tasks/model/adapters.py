"""LoRA: low-rank updates beside frozen weights (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

As parametrisations of the weights themselves, so every kind of layer has them, packed attention projections too, and merging
leaves the ordinary model behind.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .parameter_names import BLOCK, is_head


class LowRank(nn.Module):
    """weight + up @ down * alpha / rank; zero at first."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1], device=weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down * self.scale


def add_low_rank(model: nn.Module, rank: int, seed: int) -> int:
    """Freeze `model` but for its heads, and give every linear weight inside its blocks an update of `rank`.

    Args:
        seed: of the updates' start values.
    Returns: how many weights were given one.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_head(name))
    torch.manual_seed(seed)
    count = 0
    for path, module in list(model.named_modules()):
        names = {nn.Linear: ("weight",), nn.MultiheadAttention: ("in_proj_weight",)}
        for kind, weights in names.items():
            for name in weights if isinstance(module, kind) else ():
                weight = getattr(module, name, None)
                if isinstance(weight, Tensor) and BLOCK.match(f"{path}.{name}"):
                    parametrize.register_parametrization(module, name, LowRank(weight, rank, alpha=rank))
                    count += 1
    return count


def merge_low_rank(model: nn.Module) -> None:
    """Write every update into its weight; the model is an ordinary one again."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)

"""LoRA: low-rank updates beside frozen weights, never multiplied out (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

A layer with an update computes W x + s · up (down x): the frozen weight gets no gradient and no second copy, and autograd sees two
small matrices. Its names and weights stay what they were, so a state dict of the base fits, and merging leaves the ordinary
model behind. rsLoRA (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732) is another factor s, DoRA (Liu et al. 2024,
https://arxiv.org/abs/2402.09353) a learned length of each output's weights; a convolution's update is one to `rank` channels and a
1x1 one back.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from ..contracts.low_rank import LowRankForm
from ..core.errors import ClipftError
from .fastpath import PackedAttention, PatchConv2d
from .parameter_names import BLOCK, is_head, tower_of

CONVOLUTIONS = (nn.Conv2d.forward, PatchConv2d.forward, Conv2dSame.forward)
RUN = re.compile(r"^(visual|text|transformer)\.")  # not a decoder, which no embedding passes through


class LowRank(nn.Module):
    """The update of one weight; zero at first.

    Args:
        down: a layer of the base's kind, to `rank` outputs and without a bias.
        weight: the base's (out, in, …).
        factor: what the update is multiplied with.
        dora: with a length of each output's weights that is learned apart from their direction.
    """

    def __init__(self, down: nn.Linear | nn.Conv2d, weight: Tensor, factor: float, dora: bool) -> None:
        super().__init__()
        self.down, self.factor = down, factor
        self.up = nn.Parameter(torch.zeros(len(weight), len(down.weight), device=weight.device, dtype=weight.dtype))
        self.magnitude: nn.Parameter | None = None
        if dora:
            squares = weight.detach().flatten(1).square().sum(1)
            self.squares: Tensor
            self.register_buffer("squares", squares, persistent=False)
            self.magnitude = nn.Parameter(squares.sqrt())

    def forward(self, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the base made of its input, with the update."""
        low: Tensor = self.down(input)
        if isinstance(self.down, nn.Conv2d):
            out = out + self.factor * functional.conv2d(low, self.up[:, :, None, None])
        else:  # one pass over the output; its type is that of the product, whatever autocast does
            up = self.up.t().to(low.dtype)
            out = torch.addmm(out.flatten(0, -2), low.flatten(0, -2), up, alpha=self.factor).view(out.shape)
        if self.magnitude is None:
            return out
        gain: Tensor = self.magnitude / self.lengths(weight)
        shift = None if bias is None else (1 - gain) * bias  # the bias is none of the weights
        shape = (-1, 1, 1) if isinstance(self.down, nn.Conv2d) else (-1,)
        out = out * gain.to(out.dtype).view(shape)
        return out if shift is None else out + shift.to(out.dtype).view(shape)

    @torch.no_grad()
    def lengths(self, weight: Tensor) -> Tensor:
        """Lengths (out,) of the rows of the weight with its update, a constant to the gradient as in DoRA (section 4.3); without
        the sum of the two."""
        with torch.autocast(weight.device.type, enabled=False):
            down = self.down.weight.flatten(1)
            squares: Tensor = self.squares + 2 * self.factor * ((weight.flatten(1) @ down.t()) * self.up).sum(1)
            squares = squares + self.factor**2 * ((self.up @ (down @ down.t())) * self.up).sum(1)
        lengths: Tensor = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
        return lengths

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        """The weight with its update, multiplied out."""
        whole: Tensor = weight + self.factor * (self.up @ self.down.weight.flatten(1)).view(weight.shape)
        if self.magnitude is None:
            return whole
        gain: Tensor = self.magnitude / whole.flatten(1).norm(dim=1).clamp_min(torch.finfo(whole.dtype).tiny)
        return whole * gain.view(-1, *[1] * (whole.ndim - 1))


class _Adapted(nn.Module):
    """A linear or convolutional layer with an update, before its own class."""

    adapter: LowRank
    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        return self.adapter(super().forward(input), input, self.weight, self.bias)  # type: ignore[no-any-return]


class _AdaptedAttention(PackedAttention):
    """Self-attention whose packed projection has an update."""

    adapter: LowRank

    def project(self, x: Tensor) -> Tensor:
        return self.adapter(super().project(x), x, self.in_proj_weight, self.in_proj_bias)  # type: ignore[no-any-return]

    def general(self, *arguments: object) -> tuple[Tensor, Tensor | None]:
        raise ClipftError(
            "attention with a low-rank update", "this call is not plain self-attention, and would pass the update by",
            "Merge the updates first.", code="model.update_not_applied",
        )  # fmt: skip


_KINDS: dict[type[nn.Module], type[nn.Module]] = {PackedAttention: _AdaptedAttention}


def _adapted(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a layer of this kind that has an update."""
    if kind not in _KINDS:
        _KINDS[kind] = type(f"Adapted{kind.__name__}", (_Adapted, kind), {})
    return _KINDS[kind]


@dataclass(frozen=True)
class Adapted:
    """What became of the weights inside a model's blocks.

    Args:
        image, text: weights of each tower with an update.
        passed_over: those that stay as they are, by reason.
    """

    image: int
    text: int
    passed_over: dict[str, int]

    def __str__(self) -> str:
        passed = ", ".join(f"{count} {reason}" for reason, count in self.passed_over.items())
        return f"{self.image} weights of the image tower and {self.text} of the text tower have updates" + (
            f"; passed over: {passed}" if passed else ""
        )


def add_low_rank(model: nn.Module, form: LowRankForm, seed: int) -> Adapted:
    """Freeze a model but for its heads, and give weights inside its blocks an update each: of linear layers, of convolutions and
    of packed attention projections, where the update has fewer numbers than the weight.

    Args:
        seed: of the updates' start values.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_head(name))
    torch.manual_seed(seed)
    counts, passed = {"visual": 0, "text": 0}, dict[str, int]()
    by_hand = _read_by_hand(model)
    for path, module in list(model.named_modules()):
        inside = RUN.match(path) and BLOCK.match(f"{path}.weight")
        if not inside or not isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
            continue
        tower = tower_of(path)
        if not (rank := form.image_rank if tower == "visual" else form.text_rank):
            continue
        made = "whose tower reads them by hand" if module in by_hand else _down(module, rank)
        if isinstance(made, str):
            passed[made] = passed.get(made, 0) + 1
            continue
        weight = module.in_proj_weight if isinstance(module, PackedAttention) else module.weight
        module.adapter = LowRank(made, weight, form.factor(rank), form.variant == "dora")  # type: ignore[arg-type]
        object.__setattr__(module, "__class__", _adapted(type(module)))
        counts[tower] += 1
    return Adapted(counts["visual"], counts["text"], passed)


def merge_low_rank(model: nn.Module) -> None:
    """Write every update into its weight; the model is an ordinary one again."""
    for module in _layers(model):
        weight = module.in_proj_weight if isinstance(module, PackedAttention) else module.weight
        with torch.no_grad():
            weight.copy_(module.adapter.merged(weight))
    remove_low_rank(model)


def remove_low_rank(model: nn.Module) -> None:
    """Drop every update; the model is what it was before, but that its weights stay frozen."""
    for module in _layers(model):
        del module.adapter
        plain = PackedAttention if isinstance(module, PackedAttention) else type(module).__mro__[2]
        object.__setattr__(module, "__class__", plain)


def _layers(model: nn.Module) -> "list[_Adapted | _AdaptedAttention]":
    return [m for m in model.modules() if isinstance(m, _Adapted | _AdaptedAttention)]


def _down(module: nn.Linear | nn.Conv2d | nn.MultiheadAttention, rank: int) -> nn.Linear | nn.Conv2d | str:
    """The first half of a layer's update; or why it has none."""
    if isinstance(module, nn.MultiheadAttention):
        if type(module) is not PackedAttention:
            return "attention projections that are not packed"
        weight: Tensor = module.in_proj_weight
    else:
        weight = module.weight
    down: nn.Linear | nn.Conv2d
    if not isinstance(module, nn.Conv2d):
        if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward:
            return "linear layers of a kind of their own"
        down = nn.Linear(weight.shape[1], rank, bias=False)
    elif module.groups > 1:
        return "convolutions of channels apart"
    elif type(module).forward not in CONVOLUTIONS:
        return "convolutions of a kind of their own"
    else:
        how = {"kernel_size": module.kernel_size, "stride": module.stride, "padding": module.padding,
               "dilation": module.dilation, "padding_mode": module.padding_mode}  # fmt: skip
        down = nn.Conv2d(module.in_channels, rank, bias=False, **how)  # type: ignore[arg-type]
        object.__setattr__(down, "__class__", type(module))
    if down.weight.numel() + len(weight) * rank >= weight.numel():
        return "that are no larger than an update would be"
    return down.to(weight)


def _read_by_hand(model: nn.Module) -> set[nn.Module]:
    """Layers whose tower takes their weight and not their call, so that an update would pass by."""

    def found() -> Iterator[nn.Module]:
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention) and type(module) is not PackedAttention:
                yield module.out_proj
            # timm's EVA, BEiT and Swin v2 add biases of queries and values in one call on the weight; the first two can do it apart.
            if getattr(module, "q_bias", None) is not None and isinstance(getattr(module, "qkv", None), nn.Linear):
                if hasattr(module, "qkv_bias_separate"):
                    object.__setattr__(module, "qkv_bias_separate", True)
                elif isinstance(module.qkv, nn.Linear):
                    yield module.qkv

    return set(found())

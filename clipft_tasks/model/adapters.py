"""LoRA: low-rank updates beside frozen weights (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

A linear layer with an update computes (W + s · up down) x in one product. Its frozen weight gets no gradient: the backward pass
knows that two small matrices are all that learns. The sum is made anew where it is needed and not kept, so there is no second copy.
Names and weights of a layer stay what they were, so a state dict of the base fits, and merging leaves the ordinary
model behind. rsLoRA (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732) is another factor s, DoRA (Liu et al. 2024,
https://arxiv.org/abs/2402.09353) a learned length of each output's weights; a convolution's update is one to `rank` channels and a
1x1 one back, beside the layer's own.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

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
        self.magnitude = nn.Parameter(weight.detach().flatten(1).norm(dim=1)) if dora else None

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What a linear layer of the updated weight makes of its input, in the precision that autocast asks for."""
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        out: Tensor = _Linear.apply(input, weight, bias, self.down.weight, self.up, self.magnitude, self.factor)
        return out

    def convolution(self, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What a convolution made of its input, with the update."""
        out = out + self.factor * functional.conv2d(self.down(input), self.up[:, :, None, None])
        if self.magnitude is None:
            return out
        with torch.no_grad():  # lengths are constants to the gradient, as in DoRA (section 4.3)
            lengths = _lengths(_whole(weight, self.down.weight, self.up, self.factor))
        gain = self.magnitude / lengths
        out = out * gain.to(out.dtype).view(-1, 1, 1)
        if bias is None:
            return out
        return out + ((1 - gain) * bias).to(out.dtype).view(-1, 1, 1)  # the bias is none of the weights

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        """The weight with its update, multiplied out."""
        return _updated(weight, self.down.weight, self.up, self.magnitude, self.factor)[0]


def _whole(weight: Tensor, down: Tensor, up: Tensor, factor: float) -> Tensor:
    """The sum of a weight and its update, in the weight's own precision."""
    with torch.autocast(weight.device.type, enabled=False):
        return torch.addmm(weight.flatten(1), up, down.flatten(1), alpha=factor).view(weight.shape)


def _lengths(whole: Tensor) -> Tensor:
    """Lengths (out,) of the rows of a weight."""
    lengths: Tensor = whole.flatten(1).norm(dim=1)
    return lengths.clamp_min(torch.finfo(lengths.dtype).tiny)


def _updated(weight: Tensor, down: Tensor, up: Tensor, magnitude: Tensor | None, factor: float) -> tuple[Tensor, Tensor | None]:
    """A weight with its update, and what DoRA multiplied its rows with to get there."""
    whole = _whole(weight, down, up, factor)
    if magnitude is None:
        return whole, None
    gain = magnitude / _lengths(whole)
    return whole * gain.view(-1, *[1] * (whole.ndim - 1)), gain


def _over_tokens(left: Tensor, right: Tensor) -> Tensor:
    """(t, i), (t, j) -> (i, j), summed over tokens."""
    return left.t() @ right


class _Context(Protocol):
    """What the forward pass leaves to the backward pass."""

    factor: float
    saved_tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Linear(torch.autograd.Function):
    """A linear layer of a frozen weight with an update: one matrix product forward, one back, and none for the weight's
    gradient. With DoRA there is one more back, of what came out.

    An update that is multiplied with its input instead reads what goes into and out of a layer more often, for as many tokens as a
    batch has: on a GPU, that takes as long as the weight's gradient would.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        magnitude: Tensor | None,
        factor: float,
    ) -> Tensor:
        whole, _ = _updated(weight, down, up, magnitude, factor)
        out = functional.linear(input, whole.to(input.dtype), None if bias is None else bias.to(input.dtype))
        ctx.factor = factor
        ctx.save_for_backward(input, weight, down, up, magnitude)  # not what comes out: some towers go on in place
        return out

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, down, up, magnitude = ctx.saved_tensors
        whole, gain = _updated(weight, down, up, magnitude, ctx.factor)
        rows, upstream = input.flatten(0, -2), grad.flatten(0, -2)
        scaled = ctx.factor * up if gain is None else ctx.factor * gain[:, None] * up
        low, low_grad = rows @ down.to(rows.dtype).t(), upstream @ scaled.to(rows.dtype)
        down_grad = _over_tokens(low_grad, rows).to(down.dtype)
        up_grad = ctx.factor * _over_tokens(upstream, low).to(up.dtype)
        magnitude_grad = None
        if gain is not None and magnitude is not None:
            up_grad = gain[:, None] * up_grad
            sums = (upstream * (rows @ whole.to(rows.dtype).t())).sum(0, dtype=magnitude.dtype)
            magnitude_grad = torch.where(magnitude == 0, 0, sums / magnitude)
        input_grad = grad @ whole.to(grad.dtype) if ctx.needs_input_grad[0] else None
        return input_grad, None, None, down_grad, up_grad, magnitude_grad, None


class _AdaptedLinear(nn.Module):
    """A linear layer with an update, before its own class."""

    adapter: LowRank
    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        return self.adapter.linear(input, self.weight, self.bias)


class _AdaptedConvolution(nn.Module):
    """A convolution with an update, before its own class."""

    adapter: LowRank
    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        return self.adapter.convolution(super().forward(input), input, self.weight, self.bias)


class _AdaptedAttention(PackedAttention):
    """Self-attention whose packed projection has an update."""

    adapter: LowRank

    def project(self, x: Tensor) -> Tensor:
        return self.adapter.linear(x, self.in_proj_weight, self.in_proj_bias)

    def general(self, *arguments: object) -> tuple[Tensor, Tensor | None]:
        raise ClipftError(
            "attention with a low-rank update", "this call is not plain self-attention, and would pass the update by",
            "Merge the updates first.", code="model.update_not_applied",
        )  # fmt: skip


_KINDS: dict[type[nn.Module], type[nn.Module]] = {PackedAttention: _AdaptedAttention}


def _adapted(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a layer of this kind that has an update."""
    if kind not in _KINDS:
        before = _AdaptedConvolution if issubclass(kind, nn.Conv2d) else _AdaptedLinear
        _KINDS[kind] = type(f"Adapted{kind.__name__}", (before, kind), {})
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


def _layers(model: nn.Module) -> "list[_AdaptedLinear | _AdaptedConvolution | _AdaptedAttention]":
    return [m for m in model.modules() if isinstance(m, _AdaptedLinear | _AdaptedConvolution | _AdaptedAttention)]


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

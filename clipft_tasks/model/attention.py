"""Attention under one policy, for every tower: open_clip's, timm's and transformers' all call the same function of torch.

    fused    torch's own kernel. On MPS it has no backward of its own, so training keeps all tokens x tokens scores.
    sliced   exact, a slice of batch and heads at a time
    chunked  exact, a chunk of queries at a time
    auto     fused where the device has a fused backward, else chunked from the length where it pays

Sliced and chunked keep queries, keys and values; the scores are computed again, block by block, in the backward pass (after
Rabe and Staats 2021, https://arxiv.org/abs/2112.05682). Nothing of size tokens x tokens is ever kept.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Name = Literal["fused", "sliced", "chunked"]

MAX_ELEMENTS = 2**31 - 1  # of one tensor on MPS
BLOCKS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # few shapes: graph caches grow with every new one
FLOOR = 2**22  # score elements per block that are always affordable; below, a block costs more in launches than it saves


@dataclass(frozen=True)
class Policy:
    """How attention runs inside `use`.

    Args:
        name: fused, sliced or chunked.
        scores: score elements that one block may hold.
        longer_than: sequences of at most this many keys stay fused.
    """

    name: Name
    scores: int = 2**26
    longer_than: int = 0


def pays_from(head: int) -> int:
    """Keys above which the scores that a plain backward keeps outweigh queries, keys, values and output of size `head`."""
    return 4 * head


def affordable(free: int) -> int:
    """Score elements that a block may hold with `free` bytes: three fp32 copies live at once, in half of what is free."""
    return min(max(FLOOR, free // (2 * 3 * 4)), MAX_ELEMENTS)


Context: TypeAlias = Any  # of a function of autograd, which keeps on it what its backward needs

_torchs_own = functional.scaled_dot_product_attention
_active: list[Policy] = []
_lock = threading.RLock()


@contextmanager
def use(policy: Policy | None) -> Iterator[None]:
    """Run attention under `policy` in this process until the block ends. None and fused leave torch as it is."""
    if policy is None or policy.name == "fused":
        yield
        return
    with _lock:
        # torch looks the function up by this name at every call; its fast path for inference would pass it by.
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        _active.append(policy)
        functional.scaled_dot_product_attention = _attend
    try:
        yield
    finally:
        with _lock:
            _active.remove(policy)
            if not _active:
                functional.scaled_dot_product_attention = _torchs_own
            torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def instead(attend: Callable[..., Tensor]) -> Iterator[None]:
    """Let `attend(own, query, key, value, …)` stand for the attention `own` in this block."""
    with _lock:
        own, fast = functional.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        functional.scaled_dot_product_attention = partial(attend, own)
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = own
            torch.backends.mha.set_fastpath_enabled(fast)


def _attend(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    policy = _active[-1]
    if key.shape[-2] <= policy.longer_than:
        return _torchs_own(query, key, *args, **kwargs)
    return attend(query, key, *args, policy=policy, **kwargs)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    policy: Policy,
) -> Tensor:
    """Scaled dot-product attention in blocks, with the arguments of torch's own.

    Args:
        query: (..., heads, n, d); key: (..., heads, m, d); value: (..., heads, m, e).
        attn_mask: bool (True may attend) or float (added), broadcast to (..., heads, n, m).
        dropout_p: share of the weights that is dropped; the same numbers are drawn again in the backward pass.
        enable_gqa: several query heads share a key head.
        policy: which blocks, and how large.
    Returns: (..., heads, n, e) in the query's precision.
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, dim=-3), value.repeat_interleave(repeats, dim=-3)
    shape = query.shape
    query, key, value = (_four(x) for x in (query, key, value))
    mask = attn_mask
    if mask is not None:
        mask = mask.reshape(-1, *mask.shape[-3:]) if mask.ndim > 4 else mask[(None,) * (4 - mask.ndim)]
    seed = int(torch.randint(2**62, ()).item()) if dropout_p > 0 else 0
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(device, enabled=False):
        out: Tensor = _Blocks.apply(query, key, value, mask, dropout_p, is_causal, factor, seed, policy)
    return out.reshape(*shape[:-1], value.shape[-1])


def _four(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-3:]) if x.ndim > 4 else x[(None,) * (4 - x.ndim)]


Block = tuple[slice, slice, slice]


def blocks(shape: tuple[int, int, int, int], policy: Policy) -> list[Block]:
    """Ranges over batch, heads and queries that cover scores of `shape` (batch, heads, n, m) within the policy's size."""
    batch, heads, n, m = shape
    limit = min(policy.scores, MAX_ELEMENTS)
    if policy.name == "sliced":
        rows = n
        each_head = max(1, min(heads, limit // (n * m)))
        each_batch = max(1, min(batch, limit // (heads * n * m))) if each_head == heads else 1
    else:
        fits = limit // (batch * heads * m)
        rows = n if fits >= n else max((b for b in BLOCKS if b <= fits), default=BLOCKS[0])
        left = max(1, limit // (rows * m))  # a very long row, or a very large batch, is cut there as well
        each_head = min(heads, left)
        each_batch = max(1, min(batch, left // heads)) if each_head == heads else 1
    return list(product(_ranges(batch, each_batch), _ranges(heads, each_head), _ranges(n, rows)))


def _ranges(count: int, each: int) -> list[slice]:
    return [slice(start, min(start + each, count)) for start in range(0, count, each)]


class _Blocks(torch.autograd.Function):
    """Forward keeps its inputs alone; backward computes each block's weights again."""

    @staticmethod
    def forward(ctx: Context, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool, factor: float,
                seed: int, policy: Policy) -> Tensor:  # fmt: skip
        out = q.new_empty(*q.shape[:3], v.shape[3])
        for number, (b, h, r) in enumerate(blocks((*q.shape[:3], k.shape[2]), policy)):
            weights = _weights(q, k, mask, causal, factor, (b, h, r))
            if dropout > 0:
                weights *= _kept(weights, dropout, seed + number)
            out[b, h, r] = weights @ v[b, h]
        ctx.save_for_backward(q, k, v, mask)
        ctx.settings = (dropout, causal, factor, seed, policy)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):  # whoever calls backward may be inside one
            return _Blocks._backward(ctx, grad)

    @staticmethod
    def _backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors
        dropout, causal, factor, seed, policy = ctx.settings
        several = blocks((*q.shape[:3], k.shape[2]), policy)
        dq = torch.empty_like(q)
        dmask = torch.zeros_like(mask, dtype=torch.float32) if mask is not None and ctx.needs_input_grad[3] else None
        # Blocks of queries add into the same keys: sums stay in fp32 so that many small parts lose nothing.
        kind = torch.float32 if several[0][2].stop < q.shape[2] else k.dtype
        dk, dv = torch.zeros_like(k, dtype=kind), torch.zeros_like(v, dtype=kind)
        for number, (b, h, r) in enumerate(several):
            g = grad[b, h, r]
            weights = _weights(q, k, mask, causal, factor, (b, h, r))
            dweights = g @ v[b, h].transpose(-1, -2)
            if dropout > 0:
                keep = _kept(weights, dropout, seed + number)
                dweights *= keep
                dv[b, h] += (weights * keep).transpose(-1, -2) @ g
            else:
                dv[b, h] += weights.transpose(-1, -2) @ g
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            if dmask is not None:
                part = _part(dmask, (b, h, r))
                part += dscores.float().sum_to_size(part.shape)
            dq[b, h, r] = (dscores @ k[b, h]).mul_(factor)
            dk[b, h] += dscores.transpose(-1, -2) @ (q[b, h, r] * factor)
        given = (dq, dk.to(k.dtype), dv.to(v.dtype), None if dmask is None else dmask.to(mask.dtype))
        return (*given, None, None, None, None, None)


def _part(mask: Tensor, block: Block) -> Tensor:
    """The block's part of a mask that may have size 1 where it is the same for all."""
    return mask[tuple(s if size > 1 else slice(None) for s, size in zip(block, mask.shape, strict=False))]


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, factor: float, block: Block) -> Tensor:
    """Attention weights of a block, in the inputs' precision; the softmax itself works in fp32."""
    b, h, r = block
    scores = (q[b, h, r] * factor) @ k[b, h].transpose(-1, -2)  # scaled first: fp16 must not overflow
    if causal:
        ahead = torch.arange(k.shape[2], device=k.device) > torch.arange(r.start, r.stop, device=k.device)[:, None]
        scores.masked_fill_(ahead, -torch.inf)
    if mask is None:
        return torch.softmax(scores, dim=-1)
    part = _part(mask, block)
    scores = scores.masked_fill_(~part, -torch.inf) if part.dtype == torch.bool else scores.add_(part)
    weights = torch.softmax(scores, dim=-1)
    # A row that may attend to nothing gives zeros, as in torch.
    return weights.masked_fill_((scores == -torch.inf).all(dim=-1, keepdim=True), 0)


def _kept(weights: Tensor, dropout: float, seed: int) -> Tensor:
    """0 where a weight is dropped, 1 / (1 - dropout) elsewhere; a function of the block's seed alone."""
    generator = torch.Generator(weights.device).manual_seed(seed)
    kept = torch.rand(weights.shape, generator=generator, device=weights.device) >= dropout
    return kept.to(weights.dtype).div_(1 - dropout)

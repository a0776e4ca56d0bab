"""Attention under one policy, for every tower: open_clip's, timm's and transformers' all call the same function of torch.

    fused    torch's own kernel. On MPS it has no backward of its own, so training keeps all tokens x tokens scores.
    sliced   exact, a slice of batch and heads at a time
    chunked  exact, a chunk of queries at a time
    auto     fused where the device has a fused backward, else chunked from the length where it pays

Sliced and chunked keep queries, keys, values, the output and one number a row; the scores are computed again, block by
block, in the backward pass (Rabe and Staats 2021, https://arxiv.org/abs/2112.05682; Dao et al. 2022,
https://arxiv.org/abs/2205.14135). Nothing of size tokens x tokens is ever kept.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

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


def has_fused_backward(device: str) -> bool:
    """MPS has none (https://github.com/pytorch/pytorch/issues/179294)."""
    return device != "mps"


def affordable(free: int) -> int:
    """Score elements that a block may hold with `free` bytes: three fp32 copies live at once, in half of what is free."""
    return min(max(FLOOR, free // (2 * 3 * 4)), MAX_ELEMENTS)


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


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    policy = _active[-1]
    if key.shape[-2] <= policy.longer_than:
        return _torchs_own(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return attend(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, policy=policy)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    grouped: bool = False,
    *,
    policy: Policy,
) -> Tensor:
    """Scaled dot-product attention in blocks, with the arguments of torch's own.

    Args:
        query: (..., heads, n, d); key: (..., heads, m, d); value: (..., heads, m, e).
        mask: bool (True may attend) or float (added), broadcast to (..., heads, n, m).
        dropout: share of the weights that is dropped; the same numbers are drawn again in the backward pass.
        grouped: several query heads share a key head.
        policy: which blocks, and how large.
    Returns: (..., heads, n, e) in the query's precision.
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    if grouped:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, dim=-3), value.repeat_interleave(repeats, dim=-3)
    shape = query.shape
    query, key, value = (_four(x) for x in (query, key, value))
    if mask is not None:
        mask = mask.reshape(-1, *mask.shape[-3:]) if mask.ndim > 4 else mask[(None,) * (4 - mask.ndim)]
    seed = int(torch.randint(2**62, ()).item()) if dropout > 0 else 0
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(device, enabled=False):
        out = _Blocks.apply(query, key, value, mask, dropout, causal, factor, seed, policy)
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
    """Forward keeps the log-sum-exp of each row; backward computes each block's weights again from it."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool, factor: float,
                seed: int, policy: Policy) -> Tensor:  # fmt: skip
        batch, heads, n, m = *q.shape[:3], k.shape[2]
        out = q.new_empty(batch, heads, n, v.shape[3])
        sums = torch.empty(batch, heads, n, 1, dtype=torch.float32, device=q.device)
        for number, (b, h, r) in enumerate(blocks((batch, heads, n, m), policy)):
            scores = _scores(q, k, mask, causal, factor, (b, h, r))
            total = scores.logsumexp(dim=-1, keepdim=True)
            total.masked_fill_(total == -torch.inf, 0)  # a row that may attend to nothing gives zeros, as in torch
            sums[b, h, r] = total
            weights = scores.sub_(total).exp_()
            if dropout > 0:
                weights *= _kept(weights, dropout, seed + number)
            out[b, h, r] = weights.to(v.dtype) @ v[b, h]
        ctx.save_for_backward(q, k, v, mask, out, sums)
        ctx.settings = (dropout, causal, factor, seed, policy)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out, sums = ctx.saved_tensors
        dropout, causal, factor, seed, policy = ctx.settings
        dq = torch.empty_like(q)
        dmask = torch.zeros_like(mask, dtype=torch.float32) if mask is not None and ctx.needs_input_grad[3] else None
        several = blocks((*q.shape[:3], k.shape[2]), policy)
        # Blocks of queries add into the same keys: sums stay in fp32 so that many small parts lose nothing.
        rows_cut = several[0][2].stop < q.shape[2]
        kind = torch.float32 if rows_cut else k.dtype
        dk, dv = torch.zeros_like(k, dtype=kind), torch.zeros_like(v, dtype=kind)
        for number, (b, h, r) in enumerate(several):
            g, rows = grad[b, h, r], q[b, h, r]
            weights = _scores(q, k, mask, causal, factor, (b, h, r)).sub_(sums[b, h, r]).exp_()
            keep = _kept(weights, dropout, seed + number) if dropout > 0 else None
            dropped = weights if keep is None else weights * keep
            dv[b, h] += dropped.to(g.dtype).transpose(-1, -2) @ g
            dweights = (g @ v[b, h].transpose(-1, -2)).float()
            if keep is not None:
                dweights *= keep
            # The row sum of weights x dweights equals that of grad x output, which needs no scores.
            inner = (g.float() * out[b, h, r].float()).sum(dim=-1, keepdim=True)
            dscores = dweights.sub_(inner).mul_(weights)
            if dmask is not None:
                part = _part(dmask, (b, h, r))
                part += dscores.sum_to_size(part.shape)
            dscores = dscores.mul_(factor).to(q.dtype)
            dq[b, h, r] = dscores @ k[b, h]
            dk[b, h] += dscores.transpose(-1, -2) @ rows
        given = (dq, dk.to(k.dtype), dv.to(v.dtype), None if dmask is None else dmask.to(mask.dtype))
        return (*given, None, None, None, None, None)


def _part(mask: Tensor, block: Block) -> Tensor:
    """The block's part of a mask that may have size 1 where it is the same for all."""
    return mask[tuple(s if size > 1 else slice(None) for s, size in zip(block, mask.shape, strict=False))]


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, factor: float, block: Block) -> Tensor:
    """Scaled and masked scores of a block, fp32."""
    b, h, r = block
    scores = (q[b, h, r] @ k[b, h].transpose(-1, -2)).float().mul_(factor)
    if causal:
        ahead = torch.arange(k.shape[2], device=k.device) > torch.arange(r.start, r.stop, device=k.device)[:, None]
        scores.masked_fill_(ahead, -torch.inf)
    if mask is not None:
        part = _part(mask, block)
        scores = scores.masked_fill_(~part, -torch.inf) if part.dtype == torch.bool else scores.add_(part)
    return scores


def _kept(weights: Tensor, dropout: float, seed: int) -> Tensor:
    """0 where a weight is dropped, 1 / (1 - dropout) elsewhere; a function of the block's seed alone."""
    generator = torch.Generator(weights.device).manual_seed(seed)
    kept = torch.rand(weights.shape, generator=generator, device=weights.device) >= dropout
    return kept.to(weights.dtype).div_(1 - dropout)

"""The same towers in fewer steps: modules that compute exactly what torch's own do, without the copies.

Weights, names and results stay; only the class of a module changes, so a state dict fits either way.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class PatchConv2d(nn.Conv2d):
    """A convolution whose stride is its kernel, as one matrix product over patches.

    The library kernels for such convolutions are an order of magnitude slower than the product, forward and for the weight's
    gradient.
    """

    def forward(self, input: Tensor) -> Tensor:
        n, c, height, width = input.shape
        tall, wide = self.stride
        rows, columns = height // tall, width // wide
        patches = input[:, :, : rows * tall, : columns * wide].reshape(n, c, rows, tall, columns, wide)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, c * tall * wide)
        out = functional.linear(patches, self.weight.flatten(1), self.bias)
        return out.transpose(1, 2).reshape(n, self.out_channels, rows, columns)


class PackedAttention(nn.MultiheadAttention):
    """Self-attention straight from the packed projection: torch's own moves batch and sequence about and copies all three.

    Calls that are not plain self-attention go to torch's own.

    Attributes:
        only_causal: every mask (l, l) that comes is the causal one, for which there are kernels that read no mask.
    """

    only_causal: bool = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if need_weights or key_padding_mask is not None or query.ndim != 3 or query is not key or key is not value:
            return self.general(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        x = query if self.batch_first else query.transpose(0, 1)
        n, length, width = x.shape
        packed = self.project(x)
        q, k, v = packed.view(n, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        causal = attn_mask is not None and (is_causal or (self.only_causal and attn_mask.ndim == 2))
        mask = None if causal or attn_mask is None else attn_mask
        if mask is not None:
            if mask.dtype == torch.bool:
                mask = ~mask  # there True means "must not attend", here "may attend"
            elif mask.dtype != q.dtype:
                mask = mask.to(q.dtype)
            if mask.ndim == 3:
                mask = mask.view(n, self.num_heads, length, length)
        dropout = self.dropout if self.training else 0.0
        out = functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        out = self.out_proj(out.transpose(1, 2).reshape(n, length, width))
        return out if self.batch_first else out.transpose(0, 1), None

    def project(self, x: Tensor) -> Tensor:
        """Tokens (n, l, width) -> their queries, keys and values, packed."""
        return functional.linear(x, self.in_proj_weight, self.in_proj_bias)

    def general(self, *arguments: object) -> tuple[Tensor, Tensor | None]:
        """A call that is not plain self-attention."""
        return super().forward(*arguments)  # type: ignore[arg-type]


def quicken(model: nn.Module) -> nn.Module:
    """Let every module that has a quicker twin become it, in place."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            patches = module.kernel_size == module.stride and max(module.kernel_size) > 1
            if patches and module.groups == 1 and set(module.padding) == {0} and set(module.dilation) == {1}:
                module.__class__ = PatchConv2d
        elif type(module) is nn.MultiheadAttention:
            plain = module.bias_k is None and module.bias_v is None and not module.add_zero_attn
            if plain and module._qkv_same_embed_dim:
                module.__class__ = PackedAttention
    for tower in model.modules():
        blocks = getattr(tower, "transformer", None)
        if isinstance(blocks, nn.Module) and _is_causal(getattr(tower, "attn_mask", None)):
            for module in blocks.modules():
                if type(module) is PackedAttention:
                    module.only_causal = True
    return model


def _is_causal(mask: object) -> bool:
    """Whether it is the mask by which each position sees itself and what came before: open_clip's text towers hold one."""
    if not isinstance(mask, Tensor) or mask.ndim != 2 or not mask.is_floating_point():
        return False
    return torch.equal(mask, torch.full_like(mask, -torch.inf).triu_(1))

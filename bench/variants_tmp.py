import contextlib
import json
import time

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import gpu
from clipft_tasks.model import fastpath

base = torch.compile
packed = fastpath.PackedAttention.forward


def three(
    self,
    query,
    key,
    value,
    key_padding_mask=None,
    need_weights=True,
    attn_mask=None,
    average_attn_weights=True,
    is_causal=False,
):
    x = query if self.batch_first else query.transpose(0, 1)
    n, length, width = x.shape
    w = self.in_proj_weight.unflatten(0, (3, -1))
    b = self.in_proj_bias.unflatten(0, (3, -1))
    q, k, v = (functional.linear(x, w[i], b[i]).view(n, length, self.num_heads, -1).transpose(1, 2) for i in range(3))
    causal = is_causal and attn_mask is not None
    mask = None if causal or attn_mask is None else attn_mask.to(q.dtype)
    out = functional.scaled_dot_product_attention(q, k, v, mask, 0.0, causal)
    out = self.out_proj(out.transpose(1, 2).reshape(n, length, width))
    return (out if self.batch_first else out.transpose(0, 1)), None


def go(name, batch, label, ctx=contextlib.nullcontext, **kw):
    gpu.fresh()
    clip = gpu.model_of(name, quick=True)
    torch.compile = lambda f, dynamic=False: base(f, dynamic=False, **kw)
    t = time.time()
    try:
        with ctx():
            run = gpu.our_step(clip, gpu.ready(clip, batch), True, batch)
            s = gpu.seconds(run, rounds=4, each=4, warm=4)
        print(json.dumps({"m": name, "v": label, "rate": round(batch / s, 1), "total": round(time.time() - t)}), flush=True)
    except Exception as e:
        print(name, label, repr(e)[:300], flush=True)
    torch.compile = base


def peer(name, batch):
    gpu.fresh()
    clip = gpu.model_of(name, quick=False)
    run = gpu.open_clips_step(clip, batch, False)
    s = gpu.seconds(run, rounds=4)
    print(json.dumps({"m": name, "v": "peer eager", "rate": round(batch / s, 1)}), flush=True)


peer("ViT-B-16", 512)
go("ViT-B-16", 512, "plain")
fastpath.PackedAttention.forward = three
go("ViT-B-16", 512, "three")
fastpath.PackedAttention.forward = packed
torch.backends.cuda.preferred_blas_library("cublaslt")
go("ViT-B-16", 512, "cublaslt")
torch.backends.cuda.preferred_blas_library("default") if hasattr(torch.backends.cuda, "preferred_blas_library") else None
go("ViT-B-16", 512, "aten autotune", options={"max_autotune_gemm": True, "max_autotune_gemm_backends": "ATEN"})
go(
    "ViT-B-16",
    512,
    "flash",
    ctx=lambda: sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]),
)
peer("ViT-B-16", 512)

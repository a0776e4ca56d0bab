"""Attention in chunks beside the unfused math path, in whole training steps of ViT-L-14: python -m bench.attention

On a device with a fused kernel the plan takes that; this bench forces both others, since MPS has only them.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import gpu
from clipft_tasks.devices.precision import precision_context
from clipft_tasks.model import attention
from clipft_tasks.model.attention import Policy
from clipft_tasks.model.clip import Clip
from clipft_tasks.model.resolution import set_side

CASES = [(224, 48), (336, 32), (518, 12), (896, 2)]  # side, images; 896 px are 4,097 tokens
CAP_GIB = 40
CHUNKED = Policy("chunked", 2**27)


def kept_by_attention(clip: Clip, images: torch.Tensor, chunked: bool) -> float:
    """MiB that attention alone keeps for the backward of one forward pass."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor.detach()  # itself would be a cycle that nothing ever frees

    inner = functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not query.requires_grad:
            return inner(query, *args, **kwargs)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            if chunked:
                return attention.attend(query, *args, policy=CHUNKED, **kwargs)
            with sdpa_kernel(SDPBackend.MATH):
                return inner(query, *args, **kwargs)

    functional.scaled_dot_product_attention = counted
    try:
        with precision_context("cuda", "bf16"):
            out = clip.image_features(images)
        del out
    finally:
        functional.scaled_dot_product_attention = inner
    return kept / 2**20


def step_of(clip: Clip, images: torch.Tensor, chunked: bool) -> Callable[[], None]:
    def run() -> None:
        clip.model.zero_grad(set_to_none=True)
        if chunked:
            with attention.use(CHUNKED), precision_context("cuda", "bf16"):
                clip.image_features(images).float().sum().backward()
        else:
            with sdpa_kernel(SDPBackend.MATH), precision_context("cuda", "bf16"):
                clip.image_features(images).float().sum().backward()

    return run


def main() -> None:
    torch.cuda.set_per_process_memory_fraction(CAP_GIB * 2**30 / torch.cuda.mem_get_info()[1])
    metrics: dict[str, dict[str, float | None]] = {}
    for side, count in CASES:
        gpu.fresh()
        clip = set_side(gpu.model_of("ViT-L-14", quick=True), side)
        clip.model.cuda()
        images = torch.randn(count, 3, side, side, device="cuda")
        row: dict[str, float | None] = {"tokens": (side // 14) ** 2 + 1, "images": count}
        for name, chunked in (("math", False), ("chunked", True)):
            gpu.fresh()
            try:
                row[f"{name}_seconds"] = gpu.seconds(step_of(clip, images, chunked))
                row[f"{name}_peak_gib"] = gpu.peak_gib()
                row[f"{name}_kept_mib"] = kept_by_attention(clip, images, chunked)
            except torch.OutOfMemoryError:
                row[f"{name}_seconds"] = row[f"{name}_peak_gib"] = row[f"{name}_kept_mib"] = None
                clip.model.zero_grad(set_to_none=True)
        metrics[f"{side} px"] = row
        del clip, images

    def cell(value: float | None, form: str) -> str:
        return "out of memory" if value is None else format(value, form)

    print(f"{torch.cuda.get_device_name()}, ViT-L-14 image tower, forward and backward, bf16, at most {CAP_GIB} GiB")
    print(
        "| side | tokens | kept by attention, MiB: math | chunked | share | peak GiB: math | chunked | seconds: math | chunked | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, r in metrics.items():
        fits = r["math_seconds"] is not None and r["chunked_seconds"] is not None
        share = f"{r['chunked_kept_mib'] / r['math_kept_mib']:.1%}" if fits else ""  # type: ignore[operator]
        ratio = f"{r['chunked_seconds'] / r['math_seconds']:.2f}" if fits else ""  # type: ignore[operator]
        print(
            f"| {name} | {r['tokens']} | {cell(r['math_kept_mib'], ',.0f')} | {cell(r['chunked_kept_mib'], ',.0f')} | {share} | "
            f"{cell(r['math_peak_gib'], '.1f')} | {cell(r['chunked_peak_gib'], '.1f')} | {cell(r['math_seconds'], '.3f')} | "
            f"{cell(r['chunked_seconds'], '.3f')} | {ratio} |"
        )
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()

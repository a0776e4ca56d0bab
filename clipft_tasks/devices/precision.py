"""Precisions and memory layouts by the names that plans give them."""

from contextlib import AbstractContextManager, nullcontext

import torch

from ..contracts.plan import Layout, Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEMORY_FORMATS: dict[Layout, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


def precision_context(device: str, precision: Precision) -> AbstractContextManager[object]:
    """autocast, told the device: for another one it is silently nothing."""
    return nullcontext() if precision == "fp32" else torch.autocast(device, DTYPES[precision])

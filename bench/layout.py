"""Training step of the starter's image tower by memory layout, precision, compilation and allocator: python -m bench.layout

The peer is the contiguous fp32 step; ratios above 1 are faster than it. The plan's choices on a CPU rest on these metrics.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch

from clipft_tasks.devices.hardware import usable_cores
from clipft_tasks.devices.host_allocator import keep_freed_memory
from clipft_tasks.model import build
from clipft_tasks.train.step import freeze_statistics

BATCH, SIDE, ROUNDS = 64, 128, 5
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


Encode = Callable[[torch.Tensor], torch.Tensor]


def step(encode: Encode, images: torch.Tensor, bf16: bool) -> float:
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = encode(images).float().sum()
    out.backward()
    return time.perf_counter() - began


def main() -> None:
    torch.set_num_threads(usable_cores())
    model = build.load("starter").model.train()
    freeze_statistics(model)
    images = torch.randn(BATCH, 3, SIDE, SIDE)
    compiled = torch.compile(model.encode_image)
    cases: dict[str, tuple[str, bool, Encode]] = {
        f"{layout} {'bf16' if bf16 else 'fp32'}": (layout, bf16, model.encode_image)
        for layout in FORMATS
        for bf16 in (False, True)
    }
    cases["channels_last fp32 compiled"] = ("channels_last", False, compiled)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    began = time.perf_counter()
    model.to(memory_format=torch.channels_last)
    step(compiled, images.contiguous(memory_format=torch.channels_last), False)
    compiling = time.perf_counter() - began
    for number in range(ROUNDS + 1):  # in turn, so that a machine that drifts drifts for all; the first round warms up
        for name, (layout, bf16, encode) in cases.items():
            model.to(memory_format=FORMATS[layout])
            taken = step(encode, images.contiguous(memory_format=FORMATS[layout]), bf16)
            if number:
                seconds[name].append(taken)
    keep_freed_memory()
    for bf16 in (False, True):
        model.to(memory_format=torch.channels_last)
        inputs = images.contiguous(memory_format=torch.channels_last)
        taken_all = [step(model.encode_image, inputs, bf16) for _ in range(ROUNDS + 1)]
        seconds[f"channels_last {'bf16' if bf16 else 'fp32'}, freed memory kept"] = taken_all[1:]
    peer = seconds["contiguous fp32"]
    print("| layout and precision | images/s (median) | speed beside contiguous fp32 |\n|---|---|---|")
    metrics: dict[str, object] = {"compile_seconds": compiling}
    for name, taken_all in seconds.items():
        ratio = statistics.median(p / t for p, t in zip(peer, taken_all, strict=True))
        rate = BATCH / statistics.median(taken_all)
        metrics[name] = {"per_second": rate, "ratio": ratio}
        print(f"| {name} | {rate:.1f} | {ratio:.2f} |")
    print(f"Compiling took {compiling:.0f} s.")
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()

"""Training step of the starter's image tower by memory layout and precision, in one process: python -m bench.layout

The peer is the contiguous fp32 step; ratios above 1 are faster than it. The plan's choice of layout rests on these figures.
"""

import json
import statistics
import time

import torch

from clipft_tasks.model import build
from clipft_tasks.train.hardware import usable_cores
from clipft_tasks.train.step import freeze_statistics

BATCH, SIDE, ROUNDS = 64, 128, 5
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def step(model: torch.nn.Module, pictures: torch.Tensor, bf16: bool) -> float:
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = model.encode_image(pictures).float().sum()
    out.backward()
    return time.perf_counter() - began


def main() -> None:
    torch.set_num_threads(usable_cores())
    model = build.load("starter").model.train()
    freeze_statistics(model)
    pictures = torch.randn(BATCH, 3, SIDE, SIDE)
    cases = [(layout, bf16) for layout in FORMATS for bf16 in (False, True)]
    seconds: dict[tuple[str, bool], list[float]] = {case: [] for case in cases}
    for number in range(ROUNDS + 1):  # in turn, so that a machine that drifts drifts for all; the first round warms up
        for layout, bf16 in cases:
            model.to(memory_format=FORMATS[layout])
            taken = step(model, pictures.contiguous(memory_format=FORMATS[layout]), bf16)
            if number:
                seconds[layout, bf16].append(taken)
    peer = seconds["contiguous", False]
    print("| layout | precision | pictures/s (median) | speed beside contiguous fp32 |\n|---|---|---|---|")
    figures = {}
    for (layout, bf16), taken in seconds.items():
        ratio = statistics.median(p / t for p, t in zip(peer, taken, strict=True))
        name = f"{layout} {'bf16' if bf16 else 'fp32'}"
        figures[name] = {"per_second": BATCH / statistics.median(taken), "ratio": ratio}
        print(f"| {layout} | {'bf16' if bf16 else 'fp32'} | {figures[name]['per_second']:.1f} | {ratio:.2f} |")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

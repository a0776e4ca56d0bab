"""What fits into 16 GB, beside open_clip's own ways: python -m bench.memory

ViT-L-14's largest micro-batch with every block run again, beside --grad-checkpointing; and the peak of effective batches
from 64 to 32,768 with parts of 64 pairs, beside --accum-freq.
"""

import json
from collections.abc import Callable

import torch

from bench import gpu
from clipft_tasks.model.checkpointing import checkpoint_blocks

CAP_GIB = 16
GRAIN = 16


def largest(runs: Callable[[int], None]) -> int:
    """The largest multiple of GRAIN that `runs`, by halving an interval."""

    def fits(count: int) -> bool:
        try:
            runs(count)
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            gpu.fresh()

    low, high = 0, GRAIN
    while fits(high) and high < 8192:
        low, high = high, high * 2
    while high - low > GRAIN:
        middle = (low + high) // 2 // GRAIN * GRAIN
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def ours(count: int, compiled: bool, time: bool = False) -> float:
    clip = gpu.model_of("ViT-L-14", quick=True)
    checkpoint_blocks(clip.model, 1)
    run = gpu.our_step(clip, gpu.ready(clip, count), compiled, count)
    run()
    return count / gpu.seconds(run, rounds=2, each=2, warm=2) if time else float(run() or 0)


def peers(count: int, time: bool = False) -> float:
    clip = gpu.model_of("ViT-L-14", quick=False)
    clip.model.set_grad_checkpointing()
    run = gpu.open_clips_step(clip, count, compiled=False)
    run()
    return count / gpu.seconds(run, rounds=2, each=2, warm=2) if time else float(run())


def effective(batch: int) -> tuple[float, float]:
    """Peak GiB and pairs per second of ViT-B-32 at an effective batch, in parts of 64."""
    clip = gpu.model_of("ViT-B-32", quick=True)
    one = torch.rand(1, 3, clip.side, clip.side, device="cuda") * 255
    run = gpu.our_step(clip, gpu.ready(clip, batch, one.expand(batch, -1, -1, -1)), False, 64)
    rate = batch / gpu.seconds(run, rounds=1, each=1, warm=1)
    return gpu.peak_gib(), rate


def accumulated(times: int) -> tuple[float, float]:
    clip = gpu.model_of("ViT-B-32", quick=False)
    run = gpu.open_clips_step(clip, 64, compiled=False, accumulate=times)
    rate = 64 * times / gpu.seconds(run, rounds=1, each=1, warm=1)
    return gpu.peak_gib(), rate


def main() -> None:
    torch.cuda.set_per_process_memory_fraction(CAP_GIB * 2**30 / torch.cuda.mem_get_info()[1])
    figures: dict[str, float] = {}
    figures["peer_micro_batch"] = largest(peers)
    figures["our_micro_batch"] = largest(lambda count: ours(count, compiled=False) and None)
    count = int(figures["peer_micro_batch"])
    for name, run in (
        ("peer", lambda: peers(count, True)),
        ("ours_eager", lambda: ours(count, False, True)),
        ("ours_compiled", lambda: ours(count, True, True)),
    ):
        gpu.fresh()
        figures[f"{name}_pairs_per_second"] = run()
    print(f"{torch.cuda.get_device_name()}, at most {CAP_GIB} GiB, ViT-L-14, bf16, every block run again")
    print("| | open_clip --grad-checkpointing | ours | ratio |\n|---|---|---|---|")
    print(
        f"| largest micro-batch | {figures['peer_micro_batch']:.0f} | {figures['our_micro_batch']:.0f} | {figures['our_micro_batch'] / figures['peer_micro_batch']:.2f} |"
    )
    for name in ("ours_eager", "ours_compiled"):
        rate, peer = figures[f"{name}_pairs_per_second"], figures["peer_pairs_per_second"]
        print(f"| pairs/s at {count}, {name.replace('_', ' ')} | {peer:.0f} | {rate:.0f} | {rate / peer:.2f} |")
    print(
        "\n| effective batch of ViT-B-32, parts of 64 | peak GiB ours | pairs/s | peak GiB --accum-freq | pairs/s |\n|---|---|---|---|---|"
    )
    for batch in (64, 512, 4096, 32768):
        gpu.fresh()
        peak, rate = effective(batch)
        gpu.fresh()
        figures |= {f"effective_{batch}_gib": peak, f"effective_{batch}_pairs_per_second": rate}
        theirs = accumulated(batch // 64) if batch <= 4096 else None
        if theirs:
            figures |= {f"accum_{batch}_gib": theirs[0], f"accum_{batch}_pairs_per_second": theirs[1]}
        print(
            f"| {batch:,} | {peak:.2f} | {rate:,.0f} | "
            + (f"{theirs[0]:.2f} | {theirs[1]:,.0f} |" if theirs else "not run | |")
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

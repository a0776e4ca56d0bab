"""What fits into 16 GB, beside open_clip's own ways: python -m bench.memory

ViT-L-14's largest micro-batch with every block run again, beside --grad-checkpointing; and the peak of effective batches
from 64 to 32,768 with parts of 64 pairs, beside --accum-freq.
"""

import json
from collections.abc import Callable

import torch

from bench import gpu
from clipft_tasks.devices.memory import OutOfMemoryError
from clipft_tasks.model.activation_checkpointing import checkpoint_blocks

CAP_GIB = 16
GRAIN = 16


def largest(runs: Callable[[int], object]) -> int:
    """The largest multiple of GRAIN that `runs`, by halving an interval."""

    def fits(count: int) -> bool:
        gpu.fresh()
        try:
            runs(count)
        except (torch.OutOfMemoryError, OutOfMemoryError):
            return False
        return True

    low, high = 0, GRAIN
    while fits(high) and high < 8192:
        low, high = high, high * 2
    while high - low > GRAIN:
        middle = (low + high) // 2 // GRAIN * GRAIN
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def timed(largest_count: int) -> int:
    """What speed is measured at: three quarters of the largest, since at the edge the allocator's fragments decide."""
    return max(GRAIN, largest_count * 3 // 4 // GRAIN * GRAIN)


def rate(run: Callable[[], torch.Tensor], count: int) -> float:
    return count / gpu.seconds(run, rounds=2, each=2, warm=2)


def peers() -> tuple[int, float]:
    """open_clip's largest micro-batch of ViT-L-14 with --grad-checkpointing, and its pairs per second."""
    clip = gpu.model_of("ViT-L-14", quick=False)
    clip.model.set_grad_checkpointing()
    count = largest(lambda n: gpu.open_clips_step(clip, n, compiled=False)())
    gpu.fresh()
    clip.model.zero_grad(set_to_none=True)
    return count, rate(gpu.open_clips_step(clip, timed(count), False), timed(count))


def ours(count: int) -> tuple[int, float, float]:
    """Our largest micro-batch, and pairs per second at `count`, eager and compiled."""
    clip = gpu.model_of("ViT-L-14", quick=True)
    checkpoint_blocks(clip.model, 1)

    def run(n: int, compiled: bool) -> Callable[[], torch.Tensor]:
        return gpu.our_step(clip, gpu.ready(clip, n), compiled, n)

    most = largest(lambda n: run(n, False)())
    gpu.fresh()
    eager = rate(run(count, False), count)
    gpu.fresh()
    return most, eager, rate(run(count, True), count)


def effective(batch: int) -> tuple[float, float]:
    """Peak GiB and pairs per second of ViT-B-32 at an effective batch, in parts of 64."""
    clip = gpu.model_of("ViT-B-32", quick=True)
    one = torch.rand(1, 3, clip.side, clip.side, device="cuda") * 255
    run = gpu.our_step(clip, gpu.ready(clip, batch, one.expand(batch, -1, -1, -1)), False, 64)
    speed = batch / gpu.seconds(run, rounds=1, each=1, warm=1)
    return gpu.peak_gib(), speed


def accumulated(times: int) -> tuple[float, float]:
    clip = gpu.model_of("ViT-B-32", quick=False)
    run = gpu.open_clips_step(clip, 64, compiled=False, accumulate=times)
    speed = 64 * times / gpu.seconds(run, rounds=1, each=1, warm=1)
    return gpu.peak_gib(), speed


def main() -> None:
    torch.cuda.set_per_process_memory_fraction(CAP_GIB * 2**30 / torch.cuda.mem_get_info()[1])
    metrics: dict[str, float] = {}
    print(f"{torch.cuda.get_device_name()}, at most {CAP_GIB} GiB, bf16")
    print(
        "\n| effective batch of ViT-B-32, parts of 64 | peak GiB | pairs/s | --accum-freq: peak GiB | pairs/s |\n|---|---|---|---|---|"
    )
    for batch in (64, 512, 4096, 32768):
        gpu.fresh()
        peak, speed = effective(batch)
        metrics |= {f"effective_{batch}_gib": peak, f"effective_{batch}_pairs_per_second": speed}
        theirs = ""
        if batch <= 4096:
            gpu.fresh()
            their_peak, their_speed = accumulated(batch // 64)
            metrics |= {f"accum_{batch}_gib": their_peak, f"accum_{batch}_pairs_per_second": their_speed}
            theirs = f"{their_peak:.2f} | {their_speed:,.0f} |"
        print(f"| {batch:,} | {peak:.2f} | {speed:,.0f} | {theirs or 'not run | |'}")

    gpu.fresh()
    theirs_most, slow = peers()
    print(
        "\n| ViT-L-14, every block run again | open_clip --grad-checkpointing | ours | ratio |\n|---|---|---|---|", flush=True
    )
    gpu.fresh()
    most, eager, compiled = ours(timed(theirs_most))
    print(f"| largest micro-batch | {theirs_most} | {most} | {most / theirs_most:.2f} |")
    for kind, speed in (("eager", eager), ("compiled", compiled)):
        print(f"| pairs/s at {timed(theirs_most)}, ours {kind} | {slow:.0f} | {speed:.0f} | {speed / slow:.2f} |")
    metrics |= {"peer_micro_batch": theirs_most, "our_micro_batch": most, "peer_pairs_per_second": slow}
    metrics |= {"our_eager_pairs_per_second": eager, "our_compiled_pairs_per_second": compiled}
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()

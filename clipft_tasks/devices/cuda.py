"""NVIDIA GPUs."""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch

from ..contracts.plan import Precision
from ..core.errors import ClipftError
from .apple_silicon import Chip
from .base import CopyStream, Device, Hardware, usable_cores

EMULATED = 2  # times that fp16 is faster than bf16 on GPUs that only emulate bf16 (before Ampere), at least


class Cuda(Device):
    name = "cuda"
    half_precisions = ("bf16", "fp16")
    fused_optimizer = True
    late_metrics = True
    pinned_memory = True
    compile_seconds = 60
    matmul_size = 4096
    collectives = "nccl"
    watts = 400.0
    out_of_memory = ("out of memory", "STATUS_ALLOC_FAILED")

    def available(self) -> bool:
        return torch.cuda.is_available()

    def hardware(self, chip: Chip | None) -> Hardware:
        free, _ = torch.cuda.mem_get_info()
        return Hardware(self.name, torch.cuda.get_device_name(), usable_cores(), int(free), torch.cuda.device_count())

    def likely_precision(self, speedups: Mapping[Precision, float]) -> Precision:
        # Where bf16 is as fast it is taken: nothing overflows in it.
        return "fp16" if speedups["fp16"] >= EMULATED * speedups["bf16"] else "bf16"

    def check_processes(self, wanted: int, hardware: Hardware) -> None:
        if wanted > hardware.devices:
            there = f"there are {hardware.devices} CUDA devices"
            raise ClipftError(
                f"memory.processes = {wanted}", there, f"Use {hardware.devices} or fewer.", code="device.too_many_processes"
            )

    def no_compile_because(self) -> str:
        if not (shutil.which("cc") or shutil.which("gcc")):
            return "there is no C compiler, which Triton needs"
        return ""

    def select(self, index: int) -> None:
        torch.cuda.set_device(index % torch.cuda.device_count())

    def copy_stream(self) -> CopyStream:
        return _Stream()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def memory_total(self) -> int:
        return int(torch.cuda.mem_get_info()[1])

    def memory_free(self) -> int:
        free, _ = torch.cuda.mem_get_info()
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())

    def memory_used(self) -> int:
        return torch.cuda.memory_reserved()

    def memory_peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def limit_memory(self, limit: int) -> None:
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / self.memory_total()))

    def _release(self) -> None:
        torch.cuda.empty_cache()

    def rng_state(self) -> torch.Tensor:
        return torch.cuda.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        torch.cuda.set_rng_state(state)


class _Stream:
    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    def copying(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def ready(self, tensor: torch.Tensor) -> None:
        now = torch.cuda.current_stream()
        now.wait_stream(self._stream)
        tensor.record_stream(now)

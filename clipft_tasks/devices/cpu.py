"""The CPU: always there, its memory shared with everything else."""

import platform

import psutil
import torch

from . import cgroup
from .apple_silicon import Chip
from .base import Device, Hardware, usable_cores
from .host_allocator import give_back_freed_memory


class Cpu(Device):
    name = "cpu"
    is_host = True
    shares_host_memory = True
    fused_optimizer = True
    fixed_shapes = False
    compile_seconds = 90
    matmul_size = 256
    collectives = "gloo"
    watts = 65.0
    out_of_memory = ("can't allocate memory", "not enough memory")

    def available(self) -> bool:
        return True

    def hardware(self, chip: Chip | None) -> Hardware:
        name = str(chip) if chip else platform.processor() or platform.machine()
        if chip and chip.translated:
            name += "; this Python is an Intel build under Rosetta: one for arm64 would have MPS"
        return Hardware(self.name, name, usable_cores(), self.memory_free(), chip=chip)

    def no_compile_because(self) -> str:
        return "on a CPU it gains a training step little (bench/layout.py); memory.compile turns it on"

    def memory_total(self) -> int:
        total = int(psutil.virtual_memory().total)
        limit = cgroup.memory_limit()
        return total if limit is None else min(total, limit)

    def memory_free(self) -> int:
        free = int(psutil.virtual_memory().available)
        own = cgroup.memory_free()
        return free if own is None else min(free, own)

    def memory_used(self) -> int:
        return int(psutil.Process().memory_info().rss)

    def _release(self) -> None:
        give_back_freed_memory()

    def rng_state(self) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)

"""What this machine is: device, cores, memory. Asked once, in well under a second."""

import ctypes
import os
import platform
from dataclasses import dataclass, field

import psutil
import torch

from ..core.errors import ClipftError
from ..core.settings import settings
from . import apple_silicon


@dataclass(frozen=True)
class Hardware:
    """A device and what surrounds it.

    Attributes:
        device: mps, cuda or cpu.
        cores: threads that PyTorch may use on the CPU.
        memory: what training may use, bytes.
        devices: how many like it.
        chip: the Apple chip, where there is one.
    """

    device: str
    name: str
    cores: int
    memory: int
    devices: int = 1
    chip: apple_silicon.Chip | None = field(default=None)

    def likeness(self) -> dict[str, str | int]:
        """What two machines must have in common to share a plan; what is free at the moment is no part of it."""
        total = int(psutil.virtual_memory().total)
        if self.device == "cuda":
            total = int(torch.cuda.mem_get_info()[1])
        memory = round(total / 2**30)
        return {"device": self.device, "name": self.name, "devices": self.devices, "cores": self.cores, "memory_gb": memory}


def probe(wanted: str = "auto") -> Hardware:
    """The device to train on: what is asked for, else MPS, else CUDA, else the CPU.

    Raises:
        ClipftError: a device is asked for that is not there.
    """
    there = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    chip = apple_silicon.detect()
    if wanted != "auto" and not there[wanted]:
        why = "this machine has none"
        if wanted == "mps" and chip and chip.translated:
            why = "this Python is an Intel build under Rosetta, which has no MPS"
        raise ClipftError(f"device {wanted}", why, f"Set memory.device to {' or '.join(d for d in there if there[d])}.")
    device = wanted if wanted != "auto" else next(d for d in ("mps", "cuda", "cpu") if there[d])
    if device == "mps":
        cores = settings().threads or (chip.fast_cores if chip else usable_cores())
        return Hardware("mps", str(chip or "Apple GPU"), cores, int(torch.mps.recommended_max_memory()), chip=chip)
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return Hardware("cuda", torch.cuda.get_device_name(), usable_cores(), int(free), torch.cuda.device_count())
    name = str(chip) if chip else platform.processor() or platform.machine()
    if chip and chip.translated:
        name += "; this Python is an Intel build under Rosetta: one for arm64 would have MPS"
    return Hardware("cpu", name, usable_cores(), int(psutil.virtual_memory().available), chip=chip)


def usable_cores() -> int:
    """Cores that this process may run on, not those that the machine has."""
    if settings().threads:
        return int(settings().threads or 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Set PyTorch's thread counts; more threads than cores cost more than twice the time."""
    torch.set_num_threads(count)


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next allocation, where it is glibc.

    It gives large tensors back to the system at once, and clearing their pages anew at each use takes as long as the
    arithmetic of a training step (bench/layout.py). `release` still gives everything back.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_MAX, 0)
        _libc.mallopt(_M_TRIM_THRESHOLD, -1)


def give_back_freed_memory() -> None:
    """Return to the system what `keep_freed_memory` kept."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


_libc = ctypes.CDLL(None)
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # malloc.h


def hold_to(device: str, ceiling: int) -> None:
    """Let the device's allocator fail at `ceiling` bytes, so that too much is an error that we mend and not a machine that swaps.

    PyTorch's own limit on MPS is 1.7 times what the system recommends.
    """
    if device == "mps":
        torch.mps.set_per_process_memory_fraction(min(1.0, ceiling / torch.mps.recommended_max_memory()))
    elif device == "cuda":
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(min(1.0, ceiling / total))


def free_memory(device: str) -> int:
    """Bytes that are free right now."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    if device == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(psutil.virtual_memory().available)

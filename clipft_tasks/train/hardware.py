"""What this machine is: device, cores, memory. Asked once, in well under a second."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass

import psutil
import torch

from ..errors import ClipftError
from ..settings import settings


@dataclass(frozen=True)
class Hardware:
    """A device and what surrounds it. `memory` is what training may use, in bytes."""

    device: str  # mps, cuda or cpu
    name: str
    cores: int
    memory: int


def probe(wanted: str = "auto") -> Hardware:
    """The device to train on: what is asked for, else MPS, else CUDA, else the CPU.

    Raises:
        ClipftError: a device is asked for that is not there.
    """
    there = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    if wanted != "auto" and not there[wanted]:
        raise ClipftError(
            f"device {wanted}", "this machine has none", f"Set memory.device to {' or '.join(d for d in there if there[d])}."
        )
    device = wanted if wanted != "auto" else next(d for d in ("mps", "cuda", "cpu") if there[d])
    if device == "mps":
        return Hardware("mps", _chip(), _performance_cores(), int(torch.mps.recommended_max_memory()))
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return Hardware("cuda", torch.cuda.get_device_name(), usable_cores(), int(free))
    return Hardware("cpu", platform.processor() or platform.machine(), usable_cores(), int(psutil.virtual_memory().available))


def usable_cores() -> int:
    """Cores that this process may run on, not those that the machine has."""
    if settings().threads:
        return int(settings().threads or 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Set PyTorch's thread counts; more threads than cores cost more than twice the time."""
    torch.set_num_threads(count)


def _sysctl(name: str) -> str:
    if sys.platform != "darwin":
        return ""
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False, timeout=5)
    return done.stdout.strip()


def _chip() -> str:
    return _sysctl("machdep.cpu.brand_string") or "Apple Silicon"


def _performance_cores() -> int:
    cores = _sysctl("hw.perflevel0.logicalcpu")
    return int(cores) if cores.isdigit() else usable_cores()

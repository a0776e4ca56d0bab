"""What this machine is: device, cores, memory. Asked once, in well under a second."""

import torch

from ..core.errors import ClipftError
from . import apple_silicon
from .base import Hardware, usable_cores
from .host_allocator import keep_freed_memory
from .registry import backend, backends

__all__ = ["Hardware", "detect", "select_devices", "set_up", "usable_cores", "use_threads"]


def detect(wanted: str = "auto") -> Hardware:
    """The device to train on: the one that is asked for, else the fastest kind that there is.

    Raises:
        ClipftError: a device is asked for that is not there.
    """
    there = [device for device in backends() if device.available()]
    chip = apple_silicon.detect()
    if wanted == "auto":
        return there[0].hardware(chip)
    chosen = backend(wanted)
    if chosen not in there:
        ways = " or ".join(device.name for device in there)
        raise ClipftError(
            f"device {wanted}", chosen.absence(chip), f"Set memory.device to {ways}.", code="device.not_available"
        )
    return chosen.hardware(chip)


def set_up(wanted: str = "auto") -> Hardware:
    """Find the device and have this process use it well: threads for its cores, memory kept for reuse. Raises as `detect`."""
    hardware = detect(wanted)
    use_threads(hardware.cores)
    keep_freed_memory()
    return hardware


def use_threads(count: int) -> None:
    """Set PyTorch's thread counts; more threads than cores cost more than twice the time."""
    torch.set_num_threads(count)


def select_devices(index: int) -> str:
    """Let one of several processes use its own device of each kind.

    Args:
        index: the process's number on this machine.
    Returns: the backend that `torch.distributed` is to use, by kind of device.
    """
    sharing = [device for device in backends() if device.available() and device.collectives]
    for device in sharing:
        device.select(index)
    return ",".join(sorted(f"{device.name}:{device.collectives}" for device in sharing))

"""Models on this machine's device, in the memory layout in which they run fastest; weights and sizes stay as they are."""

from ..devices import hardware
from ..model.clip import Clip
from . import microbenchmarks, plan


def prepare(clip: Clip, device: str) -> Clip:
    """Move a model for inference.

    Args:
        device: as `memory.device` says it.
    """
    machine = hardware.probe(device)
    hardware.use_threads(machine.cores)
    hardware.keep_freed_memory()
    clip.to(machine.device)
    clip.model.to(memory_format=microbenchmarks.MEMORY_FORMATS[plan.layout_of(machine.device, clip).value])
    return clip

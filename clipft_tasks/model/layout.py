"""How a model lies in a device's memory."""

import torch

from ..contracts.plan import Layout
from ..core.decision import Decision
from ..devices import backend, hardware
from ..devices.precision import MEMORY_FORMATS
from .clip import Clip


def layout_of(device: str, clip: Clip) -> Decision[Layout]:
    """The memory layout in which the image tower runs fastest on a device."""
    convolutional = any(isinstance(m, torch.nn.Conv2d) and m.groups > 1 for m in clip.model.visual.modules())
    if not convolutional:
        return Decision("contiguous", "the image tower is no convolutional network")
    if reason := backend(device).contiguous_because:
        return Decision("contiguous", reason)
    return Decision("channels_last", "depthwise convolutions run faster so (bench/layout.py)")


def move_to(device: str, clip: Clip) -> Clip:
    """Move a model, in place, to a device, into the layout that is fastest there; weights and sizes stay as they are."""
    clip.to(device).model.to(memory_format=MEMORY_FORMATS[layout_of(device, clip).value])
    return clip


def prepare_for_inference(clip: Clip, device: str) -> Clip:
    """Move a model to this machine's device, and have the process use the machine well.

    Args:
        device: as `memory.device` says it.
    """
    return move_to(hardware.set_up(device).device, clip)

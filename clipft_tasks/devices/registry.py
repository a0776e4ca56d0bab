"""The backends there are, by their name in PyTorch."""

from functools import cache
from typing import get_args

import torch

from ..core.plugins import classes
from ..spec import DeviceName
from .base import Device

_SHIPPED = {name: f"{__package__}.{name}:{name.title()}" for name in get_args(DeviceName)}
REGISTRY = classes("device", Device, _SHIPPED)  # type: ignore[type-abstract]  # only subclasses are made


def backend(device: str | torch.device) -> Device:
    """The backend of a device. Raises ClipftError with those that there are."""
    return _backend(device.type if isinstance(device, torch.device) else device)


def backends() -> list[Device]:
    """All of them, the fastest kind first and the host last."""
    return sorted(map(backend, REGISTRY.names()), key=lambda device: device.is_host)


def moved(tensor: torch.Tensor, device: torch.device, *, held: bool = False) -> torch.Tensor:
    """A tensor on a device. The host does not wait for the copy where what it reads is not given away before.

    Elsewhere it does, and on MPS that is a wait for all that was asked of the device: a copy that nobody waits for may read
    memory that was freed (https://github.com/pytorch/pytorch/issues/189690).

    Args:
        held: whoever calls holds the tensor, or what it is a view of, until the device is known to have done what follows.
    """
    known = backend(device)
    return tensor.to(device, non_blocking=known.pinned_memory or (held and known.held_copies))


@cache
def _backend(name: str) -> Device:
    return REGISTRY.load(name)()

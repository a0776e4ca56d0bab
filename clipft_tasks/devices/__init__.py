"""Devices that train and evaluate: what they can do, their memory, and what they lack.

A backend is a file here, named as PyTorch names the device, with a subclass of `Device`; its name stands in `spec.DeviceName`, the
fastest kind first. Other packages offer theirs as entry points of `clipft.devices`. Nothing outside this package knows one kind
of device from another.
"""

from .base import CopyStream, Device, Hardware
from .registry import REGISTRY, backend, backends, moved

__all__ = ["REGISTRY", "CopyStream", "Device", "Hardware", "backend", "backends", "moved"]

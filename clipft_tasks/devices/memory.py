"""Running out of memory: how it is told from other errors, whatever device it happens on."""

import torch

from .registry import backends


class OutOfMemoryError(Exception):
    """The device has no room for this step."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says, in the words of a device's allocator, that memory is short."""
    if isinstance(error, OutOfMemoryError | torch.OutOfMemoryError | MemoryError):
        return True
    words = {phrase for device in backends() for phrase in device.out_of_memory}
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in words)

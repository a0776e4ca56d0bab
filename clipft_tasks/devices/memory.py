"""Memory while training: how many pairs a forward pass takes, less after running out, more again when there is room."""

import gc

import torch

from ..core.console import say
from ..core.errors import ClipftError
from .hardware import give_back_freed_memory

PATIENCE = 200  # steps without trouble before more is tried
MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED", "Invalid buffer size")


class OutOfMemory(Exception):
    """The device has no room for this step."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says, in the words of CUDA, MPS or the CPU's allocator, that memory is short."""
    if isinstance(error, OutOfMemory | torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in MESSAGES)


def release(device: torch.device) -> None:
    """Give back what the allocator keeps for later."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        give_back_freed_memory()


def used(device: torch.device) -> int:
    """Bytes in use: the device's allocator, or the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    import psutil

    return int(psutil.Process().memory_info().rss)


class MicroBatches:
    """Pairs per forward pass, by image size. The effective batch, and so the result, never changes by it.

    Args:
        planned: side -> pairs, from the plan.
        most: the effective batch.
        ceiling: bytes that training may use.
    """

    def __init__(self, planned: dict[int, int], most: int, ceiling: int) -> None:
        self.sizes, self.most, self.ceiling = dict(planned), most, ceiling
        self.failures = 0
        self._good: dict[int, int] = dict.fromkeys(planned, 0)
        self._grown: set[int] = set()  # sizes that were raised and have not run since
        self._patience: dict[int, int] = dict.fromkeys(planned, PATIENCE)

    def at(self, side: int) -> int:
        return self.sizes[side]

    def fits(self, side: int, share: int) -> bool:
        """Whether `share` pairs run in a single pass."""
        return self.sizes[side] >= share

    def failed(self, side: int, share: int, why: str) -> None:
        """Halve. Raises ClipftError when a single pair was too much.

        Args:
            share: pairs of this process; the size is cut to it first.
        """
        size = min(self.sizes[side], share)
        self.failures += 1
        if size <= 1:
            raise ClipftError(
                f"images of {side} px",
                f"a single pair does not fit into memory ({why.splitlines()[0][:200]})",
                "Lower resolution.train, set memory.checkpointing to all, or choose a smaller model.",
            )
        self.sizes[side] = -(-size // 2)
        if self._good[side] or side in self._grown:  # it had grown, or others took memory since: wait longer now
            self._patience[side] *= 2
        self._grown.discard(side)
        self._good[side] = 0
        say(f"Out of memory at {side} px with {size} pairs a pass: the same batch again with {self.sizes[side]}.")

    def went_well(self, side: int, in_use: int) -> None:
        """Count a step; after many, double where that leaves room."""
        self._good[side] += 1
        self._grown.discard(side)
        if self.sizes[side] < self.most and self._good[side] >= self._patience[side]:
            self._good[side] = 0
            if in_use * 2 < self.ceiling:
                self.sizes[side] = min(2 * self.sizes[side], self.most)
                self._grown.add(side)
                say(
                    f"{in_use / 2**30:.1f} of {self.ceiling / 2**30:.1f} GiB used at {side} px: {self.sizes[side]} pairs a pass now."
                )

"""How many pairs a forward pass takes: fewer after running out of memory, more again when there is room for long."""

from collections.abc import Callable, Mapping
from typing import TypedDict

from ..core.console import say
from ..core.errors import ClipftError

PATIENCE = 200  # steps without trouble before more is tried


class MicroBatchState(TypedDict):
    """What was learned of the memory, by image size."""

    sizes: dict[int, int]
    failures: int
    good: dict[int, int]
    grown: list[int]
    patience: dict[int, int]


class MicroBatches:
    """Pairs per forward pass, by image size. The batch, and so the result, never changes by it.

    Args:
        planned: side -> pairs, from the plan.
        local_batch: pairs of a step in this process.
        limit: bytes that training may use. fixed: of them, for weights and optimizer: these stay when a pass takes more pairs.
        largest: a number -> the largest of all processes, which must take passes of one size; asked at the same steps by all.
    """

    def __init__(
        self,
        planned: Mapping[int, int],
        local_batch: int,
        limit: int,
        *,
        fixed: int = 0,
        largest: Callable[[float], float] = float,
    ) -> None:
        self.sizes, self.local_batch, self.limit = dict(planned), local_batch, limit
        self._fixed, self._largest = fixed, largest
        self.failures = 0
        self._good = dict.fromkeys(planned, 0)
        self._grown: list[int] = []  # sides whose size was raised and has not run since
        self._patience = dict.fromkeys(planned, PATIENCE)

    def at(self, side: int) -> int:
        return self.sizes[side]

    def fits(self, side: int) -> bool:
        """Whether all of this process's pairs run in a single pass."""
        return self.sizes[side] >= self.local_batch

    def failed(self, side: int, why: str) -> None:
        """Halve; a size above the local batch is cut to it first. Raises ClipftError when a single pair was too much."""
        size = min(self.sizes[side], self.local_batch)
        self.failures += 1
        if size <= 1:
            raise ClipftError(
                f"images of {side} px",
                f"a single pair does not fit into memory ({why.splitlines()[0][:200]})",
                "Lower resolution.train, set memory.checkpointing to all, or choose a smaller model.",
                code="memory.single_too_large",
            )
        self.sizes[side] = -(-size // 2)
        if self._good[side] or side in self._grown:  # it had grown, or others took memory since: wait longer now
            self._patience[side] *= 2
        self._grown = [other for other in self._grown if other != side]
        self._good[side] = 0
        say(f"Out of memory at {side} px with {size} pairs a pass: the same batch again with {self.sizes[side]}.")

    def went_well(self, side: int, in_use: int) -> None:
        """Count a step; after many, double where that leaves room."""
        self._good[side] += 1
        self._grown = [other for other in self._grown if other != side]
        if self.sizes[side] < self.local_batch and self._good[side] >= self._patience[side]:
            self._good[side] = 0
            in_use = int(self._largest(in_use))
            if in_use + max(0, in_use - self._fixed) < self.limit:
                self.sizes[side] = min(2 * self.sizes[side], self.local_batch)
                self._grown.append(side)
                used = f"{in_use / 2**30:.1f} of {self.limit / 2**30:.1f} GiB used"
                say(f"{used} at {side} px: {self.sizes[side]} pairs a pass now.")

    def state(self) -> MicroBatchState:
        return {
            "sizes": self.sizes,
            "failures": self.failures,
            "good": self._good,
            "grown": self._grown,
            "patience": self._patience,
        }

    def load(self, state: MicroBatchState) -> None:
        self.sizes, self.failures = state["sizes"], state["failures"]
        self._good, self._grown, self._patience = state["good"], state["grown"], state["patience"]

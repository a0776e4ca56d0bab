"""Metrics of steps, from the device to the log."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..data.loader import Batch

Row = tuple[int, dict[str, float]]  # step, metrics
Log = Callable[[list[Row]], None]


@dataclass
class Step:
    """A step whose metrics may still be on the device. It holds its batch, which the device may still read.

    Attributes:
        values: on the device, by `names`; None once they were read.
        known: metrics that are known on the host.
    """

    number: int
    batch: Batch
    rate: float
    names: Sequence[str]
    values: torch.Tensor | None
    known: dict[str, float]


class StepLog:
    """Steps' metrics until they are logged, which they are after the checkpoint that covers them.

    Args:
        late: read a step's metrics while the next one runs, so that the device never waits for the host. Its optimizer must
            skip a step whose metrics are not finite by itself.
        judge: looks at a step's metrics, as soon as they are read; says whether it overflowed, and raises where it went wrong.
    """

    def __init__(self, late: bool, judge: Callable[[Step, dict[str, float]], bool]) -> None:
        self.late, self._judge = late, judge
        self._unread: deque[Step] = deque()
        self._read: list[Row] = []

    def settle(self, step: Step) -> bool:
        """Wait for a step's metrics. Returns whether it overflowed. Raises as the judge does."""
        if step.values is None:
            return False
        metrics = dict(zip(step.names, step.values.tolist(), strict=True))
        step.values = None
        step.known.update(metrics)
        return self._judge(step, metrics)

    def add(self, step: Step) -> None:
        """Take a step's metrics. Raises for one before that went wrong."""
        self._unread.append(step)
        self._read_all_but(1 if self.late else 0)

    def add_to_last(self, metrics: dict[str, float]) -> None:
        """More metrics of the step that was added last."""
        self.read()
        self._read[-1][1].update(metrics)

    def read(self) -> None:
        """Wait for all metrics. Raises for a step that went wrong."""
        self._read_all_but(0)

    def flush(self) -> list[Row]:
        """All metrics that are read and were not flushed before."""
        rows, self._read = self._read, []
        return rows

    def _read_all_but(self, keep: int) -> None:
        while len(self._unread) > keep:
            step = self._unread.popleft()
            self.settle(step)
            self._read.append((step.number, step.known))

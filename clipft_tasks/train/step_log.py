"""Metrics of steps, from the device to the log."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..data.loader import Batch

Row = tuple[int, dict[str, float]]  # step, metrics
Log = Callable[[list[Row]], None]


@dataclass(frozen=True)
class Step:
    """A step whose metrics may still be on the device.

    Attributes:
        values: on the device, by `names`.
        known: metrics that are known on the host.
    """

    number: int
    batch: Batch
    rate: float
    names: Sequence[str]
    values: torch.Tensor
    known: dict[str, float]


class StepLog:
    """Steps' metrics until they are logged, which they are after the checkpoint that covers them.

    Args:
        late: read a step's metrics while the next one runs, so that the device never waits for the host. Its optimizer must
            skip a step whose metrics are not finite by itself.
        not_finite: the error for such a step and its metrics.
    """

    def __init__(self, late: bool, not_finite: Callable[[Step, dict[str, float]], Exception]) -> None:
        self.late, self._not_finite = late, not_finite
        self._unread: deque[Step] = deque()
        self._read: list[Row] = []

    def add(self, step: Step) -> None:
        """Take a step's metrics. Raises for one before whose metrics are not finite."""
        self._unread.append(step)
        self._read_all_but(1 if self.late else 0)

    def add_to_last(self, metrics: dict[str, float]) -> None:
        """More metrics of the step that was added last."""
        self.read()
        self._read[-1][1].update(metrics)

    def read(self) -> None:
        """Wait for all metrics. Raises for a step whose metrics are not finite."""
        self._read_all_but(0)

    def flush(self) -> list[Row]:
        """All metrics that are read and were not flushed before."""
        rows, self._read = self._read, []
        return rows

    def _read_all_but(self, keep: int) -> None:
        while len(self._unread) > keep:
            step = self._unread.popleft()
            metrics = dict(zip(step.names, step.values.tolist(), strict=True))
            if self.late and not all(map(math.isfinite, metrics.values())):
                raise self._not_finite(step, metrics)
            self._read.append((step.number, metrics | step.known))

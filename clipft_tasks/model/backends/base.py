"""What runs a tower of a served model: the interface, one file a backend."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from ..clip import Runner

__all__ = ["TOWERS", "Backend", "Graph", "Runner", "SharedRunner", "TowerKind"]

TowerKind: TypeAlias = Literal["image", "text"]
TOWERS: tuple[TowerKind, ...] = ("image", "text")


@dataclass(frozen=True)
class Graph:
    """A tower as a file: ONNX, with a free batch, and a free length where the text tower takes texts of their own length."""

    path: Path
    kind: TowerKind


class Backend(ABC):
    """A library that runs exported graphs on the CPU.

    Attributes:
        name: as the setting and `/v1/models` say it.
        module: that must be importable.
        package: to install where it is not.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    package: ClassVar[str]

    @classmethod
    def is_installed(cls) -> bool:
        return find_spec(cls.module) is not None

    @abstractmethod
    def open(self, graph: Graph, threads: int) -> Runner:
        """A tower, ready to run in one thread at a time.

        Args:
            threads: of its own that it may use.
        Raises: whatever the library raises for a graph that it cannot take.
        """

    def open_lanes(self, graph: Graph, threads: int, lanes: int) -> Sequence[Runner]:
        """A tower as so many runners that may run at once, each in one thread at a time. Libraries that can share weights among them do.

        Args:
            threads: of its own that all of them together may use.
        """
        return [self.open(graph, max(1, threads // lanes)) for _ in range(lanes)]


class SharedRunner:
    """A tower that several threads run at once: who is alone has all cores, others have one's share each.

    Convolutions gain nothing from a batch on a CPU, and threads that share a layer wait for one another at its end,
    for long where decoding wants the same cores. Forward passes side by side do not.

    Args:
        alone: with all threads, for one caller at a time.
        beside: for one caller each.
    """

    def __init__(self, alone: Runner, beside: Sequence[Runner]) -> None:
        self._alone, self._beside, self._running = alone, list(beside), 0
        self._changed = threading.Condition()

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        with self._changed:
            while self._running and not self._beside:
                self._changed.wait()
            run = self._beside.pop() if self._running else self._alone
            self._running += 1
        try:
            return run(inputs)
        finally:
            with self._changed:
                self._running -= 1
                if run is not self._alone:
                    self._beside.append(run)
                self._changed.notify()

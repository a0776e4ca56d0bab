"""What runs a tower of a served model: the interface, one file a backend."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from ..clip import Runner

__all__ = ["TOWERS", "Backend", "Graph", "Runner", "TowerKind"]

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

"""The plan of a training run: what the hardware allows, each decision with its reason and what was measured for it."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..core.decision import Decision
from .base import Record, VersionedRecord

AttentionName = Literal["fused", "sliced", "chunked"]
Checkpointing = Literal["none", "some", "all"]
Layout = Literal["contiguous", "channels_last"]
Precision = Literal["fp32", "bf16", "fp16"]


class Fingerprint(Record):
    """What machines have in common that may share a plan.

    Attributes:
        device: the kind, as PyTorch calls it. name: its model. devices: how many.
        cores: threads that PyTorch may use.
        memory_gb: of the device, in whole GiB.
    """

    device: str
    name: str
    devices: int
    cores: int
    memory_gb: int

    def __str__(self) -> str:
        return f"{self.devices} x {self.name} ({self.device}), {self.cores} cores, {self.memory_gb} GiB"


@dataclass(frozen=True)
class Phase:
    """Steps of a run that share their image sizes.

    Attributes:
        first: its first step.
        sides: sizes to draw from, one a step.
        plain: no augmentation but what a test does to an image.
    """

    first: int
    sides: tuple[int, ...]
    plain: bool = False


class Plan(VersionedRecord):
    """Decisions of one run, for one kind of machine.

    Attributes:
        hardware: the machine that it is for; None in plans of before this was noted.
        processes: that share a batch. threads: of PyTorch in each. workers: threads that prepare batches.
        memory_gb: the memory limit, GiB a process.
        phases: image sizes over the run.
        checkpointing: which blocks keep their input alone: none, every second, all.
        micro_batch: pairs a forward pass, by image size. accumulation: passes a step, likewise.
        flops: arithmetic of one pair, by image size; measured: `device_flops`, what the device can do in a second.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "the plan"

    hardware: Fingerprint | None
    device: Decision[str]
    processes: Decision[int]
    precision: Decision[Precision]
    layout: Decision[Layout]
    threads: Decision[int]
    workers: Decision[int]
    memory_gb: Decision[float]
    phases: Decision[tuple[Phase, ...]]
    attention: Decision[AttentionName]
    checkpointing: Decision[Checkpointing]
    micro_batch: Decision[dict[int, int]]
    accumulation: Decision[dict[int, int]]
    compile: Decision[bool]
    flops: Decision[dict[int, float]]

    @classmethod
    def upgraded(cls, data: dict[str, Any], written: int) -> dict[str, Any]:
        if written < 1:
            data = {"hardware": None, **data, "phases": data.get("stages")}
            data.pop("stages", None)
        return data

    @property
    def decisions(self) -> dict[str, Decision[object]]:
        """By name, in the order in which a person reads them."""
        return {name: value for name, value in self if isinstance(value, Decision)}

    @property
    def sides(self) -> list[int]:
        """Every image size that training asks for."""
        return sorted(self.micro_batch.value)

    @property
    def memory_limit(self) -> int:
        """Bytes that a process may use."""
        return int(self.memory_gb.value * 2**30)

    def lines(self) -> list[str]:
        """One decision a line, with its reason."""
        return [f"{name:14} {_short(decision.value):>12}  {decision.reason}" for name, decision in self.decisions.items()]


def _short(value: object) -> str:
    if isinstance(value, dict):
        kinds = set(value.values())
        return str(kinds.pop()) if len(kinds) == 1 else ", ".join(f"{k}: {v}" for k, v in value.items())
    if isinstance(value, tuple):
        return " → ".join("/".join(str(side) for side in phase.sides) for phase in value)
    return str(value)

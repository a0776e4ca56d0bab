"""Machines that are not there, and a real tiny model to plan for: what the tests of plan and probes share."""

from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from clipft_tasks.model import build
from clipft_tasks.model.clip import Clip
from clipft_tasks.spec import RunSpec
from clipft_tasks.train import plan, probes
from clipft_tasks.train.chips import Chip
from clipft_tasks.train.hardware import Hardware
from clipft_tasks.train.plan import Plan

GIB = 2**30
M1 = Chip("Apple M1", 1, "", 4, 4, 8, 16 * GIB, "15.5")
M1_ULTRA = Chip("Apple M1 Ultra", 1, "Ultra", 16, 4, 48, 64 * GIB, "15.6")
M3_ULTRA = Chip("Apple M3 Ultra", 3, "Ultra", 20, 8, 60, 96 * GIB, "")
M4 = Chip("Apple M4", 4, "", 4, 6, 10, 24 * GIB, "15.5")
M6 = Chip("Apple M6", 6, "", 2, 10, 12, 32 * GIB, "27.0.1")
PRODUCTS = {"fp32": 1e12, "fp16": 2e12, "bf16": 1.5e12}
SECONDS = {"fp32": 0.02, "fp16": 0.01, "bf16": 0.01}


def mac(chip: Chip = M1) -> Hardware:
    return Hardware("mps", str(chip), chip.fast_cores, int(chip.memory * 0.67), chip=chip)


def cuda(devices: int = 1) -> Hardware:
    return Hardware("cuda", "NVIDIA H200", 16, 140 * GIB, devices)


CPU = Hardware("cpu", "x86_64", 8, 12 * GIB)
MACHINES = {"mps": mac(), "cuda": cuda(), "four cuda": cuda(4), "cpu": CPU}


class Lab:
    """Plans on hardware that is not there.

    Attributes:
        products, seconds: what the probes measure, by precision.
        measured: products that were measured, as (device, precision).
        timed: precisions of which a step was timed.
        moved: devices that the model was put on.
        threads: counts that PyTorch was given.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: Clip) -> None:
        self.start, self.machine = start, CPU
        self.products, self.seconds = dict(PRODUCTS), dict(SECONDS)
        self.measured: list[tuple[str, str]] = []
        self.timed: list[str] = []
        self.moved: list[str] = []
        self.threads: list[int] = []
        monkeypatch.setattr(plan, "probe", lambda wanted: self.machine)
        monkeypatch.setattr(plan, "use_threads", self.threads.append)
        monkeypatch.setattr(plan, "free_memory", lambda device: self.machine.memory)
        monkeypatch.setattr(plan.shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(probes, "product_flops", self._product)
        monkeypatch.setattr(probes, "image_step_seconds", self._step)
        monkeypatch.setattr(probes, "pair_flops", lambda clip, side: 1e6 * side**2)

    def _product(self, device: str, precision: str, atleast: float = 0.0) -> float:
        self.measured.append((device, precision))
        return self.products[precision]

    def _step(self, clip: Clip, device: str, layout: str, precision: str, side: int, pictures: int) -> float:
        self.timed.append(precision)
        return self.seconds[precision]

    def spec(self, **fields: object) -> RunSpec:
        few = {"domain": "general", "resolution.train": 32, "train.batch": 16, "train.epochs": 4}
        return RunSpec.from_flat(few | fields)

    def plan(self, machine: Hardware, rows: int = 64, **fields: object) -> Plan:
        """The plan of a small run on `machine`; fields are those of the spec, with __ for the dot."""
        self.machine = machine
        spec = self.spec(**{name.replace("__", "."): value for name, value in fields.items()})
        clip = prepared(self.start, spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Clip, "to", lambda clip, device: self.moved.append(str(device)) or clip)
            return plan.make(spec, clip, rows)


def prepared(start: Clip, spec: RunSpec) -> Clip:
    """A copy of the start model, changed to what the spec asks for; its tokenizer takes longest to load."""
    own = replace(start, model=deepcopy(start.model), config=deepcopy(start.config), tokenizer=copy(start.tokenizer))
    return build.prepare(own, spec)


@pytest.fixture(scope="module")
def start(tiny: Path) -> Clip:
    return build.load(str(tiny))


@pytest.fixture
def lab(home: Path, start: Clip, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(monkeypatch, start)


def room(lab: Lab, pairs: float, side: int = 32, **fields: object) -> float:
    """A ceiling in GiB under which so many pairs fit into a pass at `side` without checkpointing."""
    free = lab.plan(CPU, resolution__train=side, memory__checkpointing="none", memory__memory_gb=64, **fields)
    measured = free.micro_batch.measured
    return measured["fixed_gib"] + (pairs * measured["pair_mib"]) / 1024 + 0.0005  # measured figures are rounded

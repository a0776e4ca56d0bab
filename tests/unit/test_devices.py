"""Backends: each answers for itself, a new one is a class and an entry, and nobody else knows one kind from another."""

import ast
import copy
import re
from pathlib import Path
from typing import get_args

import psutil
import pytest
import torch
from fixtures.errors import refuses
from fixtures.plans import GIB, Lab, lab, prepared, start  # noqa: F401

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.devices import REGISTRY, Device, Hardware, backend, backends, hardware
from clipft_tasks.devices.apple_silicon import Chip
from clipft_tasks.devices.memory import is_out_of_memory
from clipft_tasks.model import activation_checkpointing
from clipft_tasks.spec import DeviceName

PROJECT = Path(__file__).resolve().parents[2]
PARTS = ("clipft_tasks", "serving", "deploy", "plugins", "dags", "examples")


class Fake(Device):
    """A device of which PyTorch knows nothing: it computes on the CPU."""

    name = "fake"
    half_precisions = ("fp16",)
    contiguous_because = "it knows no other layout"
    fused_attention = False
    memory_from = "what its driver says"
    out_of_memory = ("no room on the fake",)

    def available(self) -> bool:
        return True

    def hardware(self, chip: Chip | None) -> Hardware:
        return Hardware(self.name, "Fake 1", 4, 8 * GIB)

    def check_processes(self, wanted: int, hardware: Hardware) -> None:
        if wanted > 1:
            raise ClipftError("memory.processes", "there is one Fake", "Leave it empty.", code="fake.single")

    def no_compile_because(self) -> str:
        return "it has no compiler"

    def memory_total(self) -> int:
        return 10 * GIB

    def memory_free(self) -> int:
        return 8 * GIB

    def memory_used(self) -> int:
        return 2 * GIB

    def _release(self) -> None:
        pass

    def rng_state(self) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


@pytest.fixture
def fake(monkeypatch):
    """One entry in the registry, as a new file of `devices` would be."""
    monkeypatch.setitem(REGISTRY.shipped, "fake", Fake)
    return backend("fake")


# A new backend --------------------------------------------------------------------------------------------------------


def test_a_registered_backend_is_known_everywhere(fake):
    assert fake in backends() and backends()[-1].is_host and not is_out_of_memory(RuntimeError("no room in the fake"))
    assert is_out_of_memory(RuntimeError("no room on the fake: 2 GiB"))
    assert hardware.detect("fake") == Hardware("fake", "Fake 1", 4, 8 * GIB)
    assert str(fake.fingerprint(hardware.detect("fake"))) == "1 x Fake 1 (fake), 4 cores, 10 GiB"


def test_a_registered_backend_is_planned_for(fake, lab: Lab):
    made = lab.plan(Fake().hardware(None), memory__processes=None, resolution__train=64)
    assert (made.device.value, made.hardware.device) == ("fake", "fake")
    assert made.memory_gb.reason == "70% of what its driver says"
    assert made.precision.value == "fp16" and set(lab.measured) == {("fake", "fp32"), ("fake", "fp16")}
    assert (made.compile.value, made.compile.reason) == (False, "it has no compiler")
    assert "no fused backward" in made.attention.reason or "chunks would cost more" in made.attention.reason
    assert lab.moved[-1] == "fake"
    with refuses("fake.single", "memory.processes"):
        lab.plan(Fake().hardware(None), memory__processes=2)


def test_a_device_without_a_backend_is_refused_with_those_that_are_there():
    with refuses("plugin.not_found", "tpu", "mps, cuda, cpu"):
        backend("tpu")


# Those that ship ------------------------------------------------------------------------------------------------------


def test_those_of_the_spec_are_there_the_host_last():
    assert [device.name for device in backends()] == list(get_args(DeviceName)) and backends()[-1].is_host
    assert [device.name for device in backends() if device.is_host] == ["cpu"]
    assert backend(torch.device("cuda", 1)) is backend("cuda")


def test_memory_of_the_host_is_that_of_the_process():
    device = backend("cpu")
    before = device.memory_used()
    held = torch.ones(64 * 2**20)
    assert device.memory_used() - before > 200 * 2**20 and len(held) == 64 * 2**20
    assert device.memory_peak() >= device.memory_used() - 2**20
    assert 0 < device.memory_free() <= device.memory_total() == psutil.virtual_memory().total


@pytest.mark.parametrize("device", [d for d in backends() if d.available()], ids=lambda d: d.name)
def test_random_numbers_go_on_from_a_state(device):
    state = device.rng_state()
    first = torch.rand(8, device=device.name)
    device.set_rng_state(state)
    assert torch.equal(torch.rand(8, device=device.name), first)
    device.synchronize()
    device.release()


@pytest.mark.parametrize(
    ("speedups", "likely"),
    [
        ({"bf16": 1.5, "fp16": 2.0}, "bf16"),  # nothing overflows in it
        ({"bf16": 0.5, "fp16": 2.0}, "fp16"),  # emulated
    ],
)
def test_cuda_prefers_bf16_unless_it_is_emulated(speedups, likely):
    assert backend("cuda").likely_precision(speedups) == likely
    assert backend("mps").likely_precision(speedups) == "fp16"


def test_processes_on_the_host_talk_over_gloo():
    assert hardware.select_devices(0).split(",")[0] == "cpu:gloo"


def test_a_block_draws_the_same_numbers_again_where_torch_does_not_keep_them(monkeypatch):
    """As on MPS, whose random state `torch.utils.checkpoint` does not keep; what comes after draws on as if nothing had been."""
    monkeypatch.setattr(type(backend("cpu")), "checkpoint_keeps_rng", False)
    block = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 8), torch.nn.Dropout(0.5))
    tower = torch.nn.Sequential(block, copy.deepcopy(block))
    expected = _gradients_and_what_is_drawn_next(tower)
    activation_checkpointing.checkpoint_blocks(tower, 1)
    for one, other in zip(expected, _gradients_and_what_is_drawn_next(tower), strict=True):
        assert torch.equal(one, other)


def _gradients_and_what_is_drawn_next(tower: torch.nn.Module) -> list[torch.Tensor]:
    tower.zero_grad()
    torch.manual_seed(3)
    tower(torch.ones(4, 8)).sum().backward()
    return [*(p.grad.clone() for p in tower.parameters()), torch.rand(4)]


# Nobody else ----------------------------------------------------------------------------------------------------------

NAMES = {name for name in get_args(DeviceName) if name != "cpu"}
NAMED = re.compile(rf"(?<![\w-])({'|'.join(NAMES)})(?![\w-])")
ALLOWED = {
    Path("clipft_tasks/spec/sections.py"): "the list of them",
}


def names_of_devices(source: str) -> list[str]:
    """Where a file's code, not its prose, knows a kind of device by name; for the host, where it asks whether it is that."""
    tree = ast.parse(source)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body and isinstance(node.body[0], ast.Expr)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in NAMES:
            found.append(f"{node.lineno}: .{node.attr}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            if NAMED.search(node.value):
                found.append(f"{node.lineno}: {node.value[:60]!r}")
        elif isinstance(node, ast.Compare) and any(isinstance(c, ast.Constant) and c.value == "cpu" for c in ast.walk(node)):
            found.append(f"{node.lineno}: a comparison with 'cpu'")
    return found


def test_the_scan_sees_devices():
    assert names_of_devices("torch.cuda.empty_cache()") and names_of_devices("x = 'mps'")
    assert names_of_devices("init('cpu:gloo,cuda:nccl')") and names_of_devices("if device.type != 'cpu': pass")
    assert not names_of_devices("'''On MPS and cuda.'''\nx.to('cpu')\njson.dumps('worker-cuda')  # cuda")


@pytest.mark.parametrize("part", PARTS)
def test_only_the_backends_know_one_kind_of_device_from_another(part):
    found = {}
    for path in sorted((PROJECT / part).rglob("*.py")):
        where = path.relative_to(PROJECT)
        if (
            where.parts[:2] != ("clipft_tasks", "devices")
            and where not in ALLOWED
            and (named := names_of_devices(path.read_text()))
        ):
            found[str(where)] = named
    assert found == {}

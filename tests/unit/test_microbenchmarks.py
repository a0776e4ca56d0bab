"""What is measured behind a plan, and what is known of the machine."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.errors import refuses
from fixtures.plans import CPU, GIB, M1, M4, lab, mac, prepared, start  # noqa: F401

from clipft_tasks.core.settings import settings
from clipft_tasks.devices import backend, hardware
from clipft_tasks.devices.apple_silicon import Chip
from clipft_tasks.devices.hardware import Hardware
from clipft_tasks.spec import RunSpec
from clipft_tasks.train import microbenchmarks, plan

# microbenchmarks ------------------------------------------------------------------------------------------------------


def cache(home: Path) -> Path:
    return home / "cache" / "probes" / f"torch-{torch.__version__}.json"


def counted(values: list[float]):
    """A measurement that gives the next value each time it is really taken."""
    left = iter(values)
    return lambda: next(left)


def test_a_metric_is_measured_once_for_a_chip_and_torch_version(home, monkeypatch):
    measure = counted([1.0, 2.0, 3.0])
    assert [microbenchmarks.remembered("M1", measure) for _ in range(3)] == [1.0, 1.0, 1.0]
    assert microbenchmarks.remembered("M4", measure) == 2.0 and microbenchmarks.remembered("M1", measure) == 1.0
    assert json.loads(cache(home).read_text()) == {"M1": 1.0, "M4": 2.0}
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert microbenchmarks.remembered("M1", measure) == 3.0
    assert sorted(p.suffix for p in cache(home).parent.iterdir()) == [".json", ".json"]


@pytest.mark.parametrize("content", [b"", b'{"M1": 1', b"rubbish", b"\xff\xfe\x00"])
def test_a_corrupt_cache_is_measured_anew_and_written_whole(home, content):
    cache(home).parent.mkdir(parents=True)
    cache(home).write_bytes(content)
    assert microbenchmarks.remembered("M1", counted([5.0])) == 5.0
    assert json.loads(cache(home).read_text()) == {"M1": 5.0}


def test_a_second_plan_on_the_same_chip_measures_no_product(lab):
    first = lab.plan(mac(M1))
    assert sorted(lab.measured) == [("mps", "bf16"), ("mps", "fp16"), ("mps", "fp32")]
    assert lab.plan(mac(M1)).precision == first.precision and len(lab.measured) == 3
    lab.plan(mac(M4))
    assert len(lab.measured) == 6


def test_a_cpu_that_others_share_is_measured_each_time(lab, home):
    lab.plan(CPU)
    once = len(lab.measured)
    lab.plan(CPU)
    assert len(lab.measured) == 2 * once > 0 and not cache(home).exists()


@pytest.mark.parametrize("name", ["fused", "chunked"])
def test_bytes_a_pair_keeps_foretell_what_another_number_of_pairs_keeps(lab, start, name):
    clip = prepared(start, lab.spec(**{"resolution.train": 64}))
    fixed, each = microbenchmarks.kept_bytes(clip, 64, "fp32", plan.Policy(name))
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    images = torch.zeros(20, 3, 64, 64, dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), plan.attention.use(plan.Policy(name)):
        held = clip.encode_images(images), clip.encode_texts([f"{microbenchmarks.CAPTION} {i}" for i in range(20)])
    weights = {p.untyped_storage().data_ptr() for p in clip.model.parameters()}
    total = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights)
    assert len(held) == 2 and fixed + 20 * each == pytest.approx(total, rel=0.02)


def test_this_machine_measures_for_itself(home, start, monkeypatch):
    monkeypatch.setattr(plan.hardware, "use_threads", lambda count: None)
    spec = RunSpec.from_flat({"domain": "general", "resolution.train": 32, "train.batch": 16, "memory.device": "cpu"})
    made = plan.make(spec, prepared(start, spec), 64)
    assert made.precision.value in ("fp32", "bf16") and made.precision.measured["product_bf16_speedup"] > 0
    assert made.flops.measured["device_flops"] > 1e7 and made.flops.value[32] > 1e6


# hardware -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "share"), [(4 * GIB, 0.25), (16 * GIB, 1.0), (64 * GIB, 1.0)])
def test_the_allocator_is_held_to_the_limit_and_never_above_what_there_is(monkeypatch, limit, share):
    held = []
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16 * GIB)
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", held.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 * GIB, 16 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", held.append)
    backend("mps").limit_memory(limit)
    backend("cuda").limit_memory(limit)
    assert held == [share, share]
    backend("cpu").limit_memory(limit)
    assert len(held) == 2


@pytest.fixture
def there(home: Path, monkeypatch: pytest.MonkeyPatch):
    """Says which devices there are, and the chip."""

    def say(*devices: str, chip: Chip | None = None) -> None:
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in devices)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in devices)
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 11 * GIB)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (130 * GIB, 140 * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        monkeypatch.setattr(hardware.apple_silicon, "detect", lambda: chip)

    return say


def test_the_fastest_device_is_taken_unless_another_is_asked_for(there):
    there("mps", chip=M1)
    assert hardware.detect() == Hardware("mps", str(M1), 4, 11 * GIB, chip=M1)
    on_cpu = hardware.detect("cpu")
    assert (on_cpu.device, on_cpu.name, on_cpu.chip) == ("cpu", str(M1), M1)
    there("cuda")
    found = hardware.detect()
    assert (found.device, found.name, found.memory, found.devices) == ("cuda", "NVIDIA H200", 130 * GIB, 4)
    there()
    assert hardware.detect().device == "cpu" and hardware.detect().cores >= 1 and hardware.detect().memory > 0


def test_an_mps_without_a_known_chip_is_a_device_all_the_same(there):
    there("mps")
    found = hardware.detect()
    assert (found.device, found.chip) == ("mps", None) and found.name and found.cores >= 1


@pytest.mark.parametrize(
    ("devices", "wanted", "named"),
    [((), "mps", "cpu"), ((), "cuda", "cpu"), (("cuda",), "mps", "cuda or cpu"), (("mps",), "cuda", "mps or cpu")],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(there, devices, wanted, named):
    there(*devices)
    with refuses("device.not_available", f"device {wanted}", f"memory.device to {named}."):
        hardware.detect(wanted)


def test_rosetta_is_explained(there):
    there(chip=Chip("Apple M4", 4, "", 4, 6, 10, 24 * GIB, "15.5", translated=True))
    with refuses("device.not_available", "mps", "Rosetta", "memory.device to cpu"):
        hardware.detect("mps")
    assert hardware.detect().device == "cpu"


def test_a_setting_limits_the_threads_of_the_cpu(there, monkeypatch):
    monkeypatch.setenv("CLIPFT_THREADS", "3")
    settings.cache_clear()
    there()
    assert hardware.detect().cores == 3

"""The plan: on hardware that is not there, each decision follows from what was asked and measured, and says why."""

import json
import re
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clipft_tasks.errors import ClipftError
from clipft_tasks.model import build
from clipft_tasks.model.clip import Clip
from clipft_tasks.spec import RunSpec
from clipft_tasks.train import hardware, plan, probes
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


# the whole plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MACHINES)
def test_every_decision_has_a_reason_and_a_line(lab, name):
    made = lab.plan(MACHINES[name])
    decisions = vars(made)
    assert len(decisions) == 14 and all(decision.reason for decision in decisions.values())
    lines = made.lines()
    assert len(lines) == len(decisions)
    for line, (field, decision) in zip(lines, decisions.items(), strict=True):
        assert line.startswith(field) and line.endswith(decision.reason) and "\n" not in line


@pytest.mark.parametrize("name", MACHINES)
def test_the_device_is_named_and_the_model_is_put_there(lab, name):
    machine = MACHINES[name]
    made = lab.plan(machine)
    assert made.device.value == machine.device and machine.name in made.device.reason
    assert "asked for" not in made.device.reason
    assert "asked for" in lab.plan(machine, memory__device=machine.device).device.reason
    assert set(lab.moved) == {machine.device}


@pytest.mark.parametrize("name", MACHINES)
def test_a_plan_survives_json(lab, name):
    made = lab.plan(MACHINES[name], resolution__train=64, resolution__schedule="progressive")
    read = Plan.from_dict(json.loads(json.dumps(made.to_dict())))
    assert read == made and read.lines() == made.lines()
    assert read.sides == [32, 48, 56, 64] and read.micro_batches == dict.fromkeys(read.sides, read.micro_batches[32])


def test_lines_show_sizes_over_the_run(lab):
    lines = "\n".join(lab.plan(CPU, resolution__train=64, resolution__schedule="progressive").lines())
    assert "32 → 48 → 56 → 64" in lines and "progressive, 16 steps" in lines


def test_a_batch_larger_than_the_data_is_cut_to_it(lab):
    made = lab.plan(CPU, rows=5)
    assert made.micro_batches == {32: 5} and "4 steps" in made.stages.reason


# precision ------------------------------------------------------------------------------------------------------------


def test_an_m1_takes_fp16_when_it_is_faster_and_says_so(lab):
    lab.products, lab.seconds = {"fp32": 1e12, "fp16": 2e12, "bf16": 5e11}, {"fp32": 0.019, "fp16": 0.01}
    made = lab.plan(mac(M1)).precision
    assert made.value == "fp16" and made.reason == "a training step in fp16 runs at 1.9x the speed of fp32"
    assert made.measured == {"product_fp16_speedup": 2.0, "product_bf16_speedup": 0.5, "step_speedup": 1.9}
    assert sorted(lab.timed) == ["fp16", "fp32"]


def test_the_probe_has_the_last_word_over_what_the_chip_computes_natively(lab):
    lab.products["bf16"] = 3e12
    on_m1, on_m4 = lab.plan(mac(M1)).precision, lab.plan(mac(M4)).precision
    assert on_m1.value == on_m4.value == "bf16"
    assert "though fp16 is what Apple M1 computes natively" in on_m1.reason
    assert "though" not in on_m4.reason


@pytest.mark.parametrize("machine", [mac(M4), cuda(), CPU], ids=["mps", "cuda", "cpu"])
def test_a_bf16_that_is_slower_in_a_step_is_refused_with_the_ratio(lab, machine):
    lab.products, lab.seconds = {"fp32": 1e12, "fp16": 1e12, "bf16": 4e12}, {"fp32": 0.008, "bf16": 0.01}
    made = lab.plan(machine).precision
    assert made.value == "fp32" and "bf16 runs at 0.8x" in made.reason and "casts would not pay" in made.reason
    assert made.measured["step_speedup"] == 0.8


def test_a_gain_that_casts_would_eat_up_is_refused(lab):
    lab.seconds = {"fp32": 0.0119, "fp16": 0.01}
    assert lab.plan(mac()).precision.value == "fp32"
    lab.seconds = {"fp32": 0.0121, "fp16": 0.01}
    assert lab.plan(mac()).precision.value == "fp16"


@pytest.mark.parametrize("machine", [mac(), mac(M4), CPU], ids=["m1", "m4", "cpu"])
def test_where_a_product_gains_nothing_no_step_is_timed(lab, machine):
    lab.products = {"fp32": 1e12, "fp16": 1.1e12, "bf16": 4e11}
    made = lab.plan(machine).precision
    assert made.value == "fp32" and not lab.timed
    assert ("fp16 runs at 1.1x" if machine.device == "mps" else "bf16 runs at 0.4x") in made.reason


@pytest.mark.parametrize("machine", [mac(), cuda(), CPU], ids=["mps", "cuda", "cpu"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_precision_that_is_asked_for_is_taken_unseen(lab, machine, precision):
    made = lab.plan(machine, memory__precision=precision, memory__compile="off")
    assert made.precision.value == precision and made.precision.reason == "asked for" and not lab.timed
    assert made.flops.measured == {"device_flops": PRODUCTS[precision]}


def test_fp16_is_tried_on_mps_only(lab):
    for machine in (cuda(), CPU):
        assert lab.plan(machine).precision.value == "bf16"
    assert "fp16" not in {precision for _, precision in lab.measured}


# attention ------------------------------------------------------------------------------------------------------------


def test_on_mps_attention_is_chunked_for_long_sequences_and_fused_for_short_ones(lab):
    short, long = (lab.plan(mac(), resolution__train=side, train__batch=2).attention for side in (120, 128))
    assert short.value == "fused" and "226 tokens" in short.reason
    assert long.value == "chunked" and "257 tokens" in long.reason


def test_on_mps_a_long_text_counts_as_well(lab):
    made = lab.plan(mac(), model__context=320, train__batch=2).attention
    assert made.value == "chunked" and "320 tokens" in made.reason


def test_the_largest_side_of_the_run_counts(lab):
    made = lab.plan(mac(), resolution__train=96, resolution__sizes=[128], resolution__schedule="multi_scale", train__batch=2)
    assert made.attention.value == "chunked"


@pytest.mark.parametrize("machine", [cuda(), CPU], ids=["cuda", "cpu"])
@pytest.mark.parametrize("side", [32, 128])
def test_attention_is_fused_where_both_passes_have_a_kernel(lab, machine, side):
    assert lab.plan(machine, resolution__train=side, train__batch=2).attention.value == "fused"


@pytest.mark.parametrize("machine", [mac(), cuda(), CPU], ids=["mps", "cuda", "cpu"])
@pytest.mark.parametrize("asked", ["fused", "sliced", "chunked"])
def test_attention_that_is_asked_for_wins(lab, machine, asked):
    made = lab.plan(machine, memory__attention=asked)
    assert (made.attention.value, made.attention.reason) == (asked, "asked for")
    assert made.policy(GIB).name == asked


def test_less_free_memory_makes_smaller_blocks(lab):
    made = lab.plan(mac(), memory__attention="chunked")
    sizes = [made.policy(free).scores for free in (0, GIB, 4 * GIB, 1024 * GIB)]
    assert sizes == sorted(sizes) and 0 < sizes[0] < sizes[1] < sizes[2] and sizes[-1] < 2**31


# memory ---------------------------------------------------------------------------------------------------------------


def test_without_a_ceiling_a_share_of_what_is_there_is_planned(lab):
    on_mac, on_cuda = lab.plan(mac()).memory_gb, lab.plan(cuda()).memory_gb
    assert on_mac.value == pytest.approx(0.7 * 16 * 0.67, abs=0.01) and "macOS recommends" in on_mac.reason
    assert on_cuda.value == pytest.approx(98, abs=0.01) and "free" in on_cuda.reason
    assert lab.plan(CPU, memory__memory_gb=3).memory_gb.value == 3


def test_with_room_the_whole_batch_is_one_pass_and_nothing_is_checkpointed(lab):
    made = lab.plan(CPU)
    assert made.micro_batches == {32: 16} and made.accumulation.value == {"32": 1}
    assert made.checkpointing.value == "none" and "whole batch fits" in made.micro_batch.reason
    assert made.micro_batch.measured["pair_mib"] > 0 and made.micro_batch.measured["fixed_gib"] > 0


LARGE = {"resolution__train": 320, "memory__checkpointing": "none", "memory__precision": "fp32"}


@pytest.mark.parametrize("fields", [{}, {"resolution__train": 96}, LARGE], ids=["small", "medium", "large"])
def test_a_ceiling_below_one_pair_names_the_gib_that_would_do(lab, fields):
    with pytest.raises(ClipftError, match="a memory ceiling of 0.001 GiB") as caught:
        lab.plan(CPU, memory__memory_gb=0.001, **fields)
    assert "MiB" in caught.value.why and "resolution.train" in caught.value.fix
    enough = float(re.search(r"memory\.memory_gb to ([\d.]+)", caught.value.fix)[1])
    made = lab.plan(CPU, memory__memory_gb=enough, **fields)
    assert min(made.micro_batches.values()) >= 1
    with pytest.raises(ClipftError):
        lab.plan(CPU, memory__memory_gb=round(enough - 0.03, 2), **fields)


def test_a_micro_batch_that_is_asked_for_is_taken_under_any_ceiling(lab):
    made = lab.plan(CPU, memory__memory_gb=0.001, memory__micro_batch=3)
    assert made.micro_batches == {32: 3} and made.accumulation.value == {"32": 6}
    assert made.micro_batch.reason == "asked for"
    assert lab.plan(CPU, memory__micro_batch=500).micro_batches == {32: 16}


def test_a_small_ceiling_gives_parts_of_the_batch_larger_for_smaller_sides(lab):
    fields = {"resolution__train": 96, "resolution__schedule": "progressive", "train__batch": 256}
    made = lab.plan(CPU, rows=512, memory__memory_gb=room(lab, 10, 96), **fields)
    assert made.checkpointing.value == "none"
    pairs, passes = made.micro_batches, {int(side): count for side, count in made.accumulation.value.items()}
    assert list(pairs) == [48, 64, 80, 96] and pairs[96] == 8
    assert pairs[48] > pairs[64] >= pairs[80] >= pairs[96]
    for side, count in passes.items():
        assert count > 1 and count * pairs[side] >= 256 > (count - 1) * pairs[side]
    assert "MiB a pair" in made.micro_batch.reason and "cached" in made.accumulation.reason


def test_a_part_never_keeps_more_than_the_ceiling(lab):
    for pairs in (9, 20, 40):
        ceiling = room(lab, pairs, 64)
        made = lab.plan(CPU, rows=512, memory__memory_gb=ceiling, resolution__train=64, train__batch=256)
        measured = made.micro_batch.measured
        kept = measured["fixed_gib"] + made.micro_batches[64] * measured["pair_mib"] / 1024
        assert pairs / 2 <= made.micro_batches[64] <= pairs and kept <= ceiling


def test_blocks_are_checkpointed_only_when_few_pairs_fit(lab):
    few = lab.plan(CPU, memory__memory_gb=room(lab, 4, 96), resolution__train=96)
    assert few.checkpointing.value in ("some", "all") and "fewer than 8 pairs fit" in few.checkpointing.reason
    many = lab.plan(CPU, memory__memory_gb=room(lab, 9, 96), resolution__train=96)
    assert many.checkpointing.value == "none" and many.micro_batches == {96: 8}
    assert few.micro_batch.measured["pair_mib"] < many.micro_batch.measured["pair_mib"]


def test_a_batch_of_few_pairs_that_fits_is_not_checkpointed(lab):
    made = lab.plan(CPU, memory__memory_gb=room(lab, 5, 96), resolution__train=96, train__batch=4)
    assert made.checkpointing.value == "none" and made.micro_batches == {96: 4}


@pytest.mark.parametrize("asked", ["none", "some", "all"])
def test_checkpointing_that_is_asked_for_wins_whatever_fits(lab, asked):
    for fields in ({}, {"memory__memory_gb": room(lab, 4, 96)}):
        made = lab.plan(CPU, resolution__train=96, memory__checkpointing=asked, **fields).checkpointing
        assert (made.value, made.reason) == (asked, "asked for")


def test_a_plan_leaves_the_model_as_it_was(lab, start):
    spec = lab.spec(**{"resolution.train": 96, "memory.memory_gb": room(lab, 4, 96)})
    clip = prepared(start, spec)
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    assert plan.make(spec, clip, 64).checkpointing.value != "none"
    assert all(torch.equal(before[name], value) for name, value in clip.model.state_dict().items())
    assert not any("forward" in vars(module) for module in clip.model.modules()) and not clip.model.training
    assert all(p.grad is None for p in clip.model.parameters())


# processes, workers, threads ------------------------------------------------------------------------------------------


def test_there_is_one_process_a_cuda_device_and_each_has_its_share_of_the_batch(lab):
    one, four = lab.plan(cuda(1)), lab.plan(cuda(4))
    assert (one.processes.value, one.processes.reason) == (1, "there is one device") and one.micro_batches == {32: 16}
    assert (four.processes.value, four.processes.reason) == (4, "one a device") and four.micro_batches == {32: 4}


def test_there_are_never_more_processes_than_pairs_unless_asked_for(lab):
    assert lab.plan(cuda(4), train__batch=3).processes.value == 3


def test_processes_that_are_asked_for_win_up_to_the_devices_there_are(lab):
    made = lab.plan(cuda(4), memory__processes=2)
    assert (made.processes.value, made.processes.reason) == (2, "asked for") and made.micro_batches == {32: 8}
    with pytest.raises(ClipftError, match=r"memory\.processes = 5: there are 4 CUDA devices\. Use 4 or fewer\."):
        lab.plan(cuda(4), memory__processes=5)


def test_a_mac_has_one_process(lab):
    assert lab.plan(mac()).processes.value == lab.plan(mac(), memory__processes=1).processes.value == 1
    with pytest.raises(ClipftError, match="a Mac has one GPU"):
        lab.plan(mac(), memory__processes=2)


@pytest.mark.parametrize(("chip", "workers"), [(M1, 3), (M1_ULTRA, 15), (M3_ULTRA, 16), (M6, 2)], ids=lambda x: str(x)[:14])
def test_on_a_mac_threads_and_workers_come_from_the_fast_cores(lab, chip, workers):
    made = lab.plan(mac(chip))
    assert made.threads.value == chip.fast_cores and lab.threads == [chip.fast_cores]
    assert f"fast cores of {chip.name}; the other {chip.other_cores}" in made.threads.reason
    assert made.workers.value == workers


def test_elsewhere_workers_come_from_the_cores_there_are(lab):
    assert lab.plan(cuda()).workers.value == 15 and lab.plan(CPU).workers.value == 4
    assert lab.plan(Hardware("cpu", "x86_64", 1, 12 * GIB)).workers.value == 1
    assert lab.plan(mac(), memory__workers=7).workers.value == 7


# compilation ----------------------------------------------------------------------------------------------------------


def test_long_runs_on_cuda_are_compiled_and_short_ones_are_not(lab):
    short, long = lab.plan(cuda()).compile, lab.plan(cuda(), rows=1_000_000).compile
    assert short.value is False and "would save about 1 s" in short.reason
    assert long.value is True and long.measured["saved_seconds"] > long.measured["compile_seconds"]
    assert "saves about" in long.reason


def test_each_size_of_the_run_is_compiled_anew(lab):
    one = lab.plan(cuda(), resolution__train=64).compile
    several = lab.plan(cuda(), resolution__train=64, resolution__schedule="progressive").compile
    assert several.measured["compile_seconds"] == 4 * one.measured["compile_seconds"]


def test_without_a_c_compiler_nothing_is_compiled(lab, monkeypatch):
    monkeypatch.setattr(plan.shutil, "which", lambda name: None)
    made = lab.plan(cuda(), rows=1_000_000).compile
    assert made.value is False and "C compiler" in made.reason


@pytest.mark.parametrize("machine", [mac(), CPU], ids=["mps", "cpu"])
def test_on_mps_and_the_cpu_compilation_is_off_however_long_the_run(lab, machine):
    made = lab.plan(machine, rows=1_000_000, memory__precision="fp32").compile
    assert made.value is False and not lab.timed


@pytest.mark.parametrize("machine", [mac(), cuda(), CPU], ids=["mps", "cuda", "cpu"])
def test_compilation_that_is_asked_for_wins(lab, machine):
    assert lab.plan(machine, memory__compile="on").compile.value is True
    assert lab.plan(machine, rows=1_000_000, memory__compile="off").compile.value is False


# probes ---------------------------------------------------------------------------------------------------------------


def cache(home: Path) -> Path:
    return home / "cache" / "probes" / f"torch-{torch.__version__}.json"


def counted(values: list[float]):
    """A measurement that gives the next value each time it is really taken."""
    left = iter(values)
    return lambda: next(left)


def test_a_figure_is_measured_once_for_a_chip_and_torch_version(home, monkeypatch):
    measure = counted([1.0, 2.0, 3.0])
    assert [probes.remembered("M1", measure) for _ in range(3)] == [1.0, 1.0, 1.0]
    assert probes.remembered("M4", measure) == 2.0 and probes.remembered("M1", measure) == 1.0
    assert json.loads(cache(home).read_text()) == {"M1": 1.0, "M4": 2.0}
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert probes.remembered("M1", measure) == 3.0
    assert sorted(p.suffix for p in cache(home).parent.iterdir()) == [".json", ".json"]


@pytest.mark.parametrize("content", [b"", b'{"M1": 1', b"rubbish", b"\xff\xfe\x00"])
def test_a_corrupt_cache_is_measured_anew_and_written_whole(home, content):
    cache(home).parent.mkdir(parents=True)
    cache(home).write_bytes(content)
    assert probes.remembered("M1", counted([5.0])) == 5.0
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
    fixed, each = probes.kept_bytes(clip, 64, "fp32", plan.Policy(name))
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    pictures = torch.zeros(20, 3, 64, 64, dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), plan.attention.use(plan.Policy(name)):
        held = clip.encode_images(pictures), clip.encode_texts([f"{probes.CAPTION} {i}" for i in range(20)])
    weights = {p.untyped_storage().data_ptr() for p in clip.model.parameters()}
    total = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights)
    assert len(held) == 2 and fixed + 20 * each == pytest.approx(total, rel=0.02)


def test_this_machine_measures_for_itself(home, start, monkeypatch):
    monkeypatch.setattr(plan, "use_threads", lambda count: None)
    spec = RunSpec.from_flat({"domain": "general", "resolution.train": 32, "train.batch": 16, "memory.device": "cpu"})
    made = plan.make(spec, prepared(start, spec), 64)
    assert made.precision.value in ("fp32", "bf16") and made.precision.measured["product_bf16_speedup"] > 0
    assert made.flops.measured["device_flops"] > 1e7 and made.flops.value["32"] > 1e6


# hardware -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ceiling", "share"), [(4 * GIB, 0.25), (16 * GIB, 1.0), (64 * GIB, 1.0)])
def test_the_allocator_is_held_to_the_ceiling_and_never_above_what_there_is(monkeypatch, ceiling, share):
    held = []
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16 * GIB)
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", held.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 * GIB, 16 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", held.append)
    hardware.hold_to("mps", ceiling)
    hardware.hold_to("cuda", ceiling)
    assert held == [share, share]
    hardware.hold_to("cpu", ceiling)
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
        monkeypatch.setattr(hardware.chips, "recognise", lambda: chip)

    return say


def test_the_fastest_device_is_taken_unless_another_is_asked_for(there):
    there("mps", chip=M1)
    assert hardware.probe() == Hardware("mps", str(M1), 4, 11 * GIB, chip=M1)
    on_cpu = hardware.probe("cpu")
    assert (on_cpu.device, on_cpu.name, on_cpu.chip) == ("cpu", str(M1), M1)
    there("cuda")
    found = hardware.probe()
    assert (found.device, found.name, found.memory, found.devices) == ("cuda", "NVIDIA H200", 130 * GIB, 4)
    there()
    assert hardware.probe().device == "cpu" and hardware.probe().cores >= 1 and hardware.probe().memory > 0


def test_an_mps_without_a_known_chip_is_a_device_all_the_same(there):
    there("mps")
    found = hardware.probe()
    assert (found.device, found.chip) == ("mps", None) and found.name and found.cores >= 1


@pytest.mark.parametrize(
    ("devices", "wanted", "named"),
    [((), "mps", "cpu"), ((), "cuda", "cpu"), (("cuda",), "mps", "cuda or cpu"), (("mps",), "cuda", "mps or cpu")],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(there, devices, wanted, named):
    there(*devices)
    with pytest.raises(ClipftError) as caught:
        hardware.probe(wanted)
    assert str(caught.value) == f"device {wanted}: this machine has none. Set memory.device to {named}."


def test_rosetta_is_explained(there):
    there(chip=Chip("Apple M4", 4, "", 4, 6, 10, 24 * GIB, "15.5", translated=True))
    with pytest.raises(ClipftError, match="Intel build under Rosetta.*Set memory.device to cpu"):
        hardware.probe("mps")
    assert hardware.probe().device == "cpu"


def test_a_setting_limits_the_threads_of_the_cpu(there, monkeypatch):
    monkeypatch.setenv("CLIPFT_THREADS", "3")
    hardware.settings.cache_clear()
    there()
    assert hardware.probe().cores == 3

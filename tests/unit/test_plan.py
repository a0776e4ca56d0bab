"""The plan: on hardware that is not there, each decision follows from what was asked and measured, and says why."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from fixtures.errors import refuses
from fixtures.plans import CPU, GIB, M1, M1_ULTRA, M3_ULTRA, M4, M6, MACHINES, PRODUCTS, cuda, lab, mac, prepared, room, start  # noqa: F401

from clipft_tasks.contracts.plan import Plan
from clipft_tasks.devices import Hardware, backend
from clipft_tasks.model.clip import Clip
from clipft_tasks.train import launch, plan

# the whole plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MACHINES)
def test_every_decision_has_a_reason_and_a_line(lab, name):
    made = lab.plan(MACHINES[name])
    decisions = made.decisions
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
    read = Plan.from_json(json.loads(json.dumps(made.to_json())))
    assert read == made and read.lines() == made.lines()
    assert read.sides == [32, 48, 56, 64] and read.micro_batch.value == dict.fromkeys(read.sides, read.micro_batch.value[32])


def test_lines_show_sizes_over_the_run(lab):
    lines = "\n".join(lab.plan(CPU, resolution__train=64, resolution__schedule="progressive").lines())
    assert "32 → 48 → 56 → 64" in lines and "progressive, 16 steps" in lines


def test_a_batch_larger_than_the_data_is_cut_to_it(lab):
    made = lab.plan(CPU, rows=5)
    assert made.micro_batch.value == {32: 5} and "4 steps" in made.phases.reason


# a plan that was made before ----------------------------------------------------------------------------------------------


def resumed(lab, machine: Hardware, own: Plan | None, *offered: Plan) -> Plan:
    lab.machine = machine
    spec = lab.spec()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clip, "to", lambda clip, device: clip)
        return plan.reuse_or_make(spec, prepared(lab.start, spec), 64, own, offered)


def test_a_resumed_run_keeps_its_first_plan_whatever_is_measured_now(lab):
    first = lab.plan(CPU)
    assert resumed(lab, replace(CPU, cores=2), first, lab.plan(mac())) is first
    assert resumed(lab, replace(CPU, memory=CPU.memory), None, lab.plan(mac()), first) is first


def test_where_the_hardware_is_another_it_is_planned_anew_and_said_why(lab, capsys):
    elsewhere = lab.plan(mac(M4))
    made = resumed(lab, CPU, None, elsewhere)
    assert made.device.value == "cpu" and made.hardware.cores == CPU.cores
    said = capsys.readouterr().out
    assert "Planned anew: another is for 1 x Apple M4" in said and "this machine is 1 x x86_64 (cpu), 8 cores" in said
    assert resumed(lab, mac(), made).device.value == "mps"
    assert "the work was begun on a cpu device" in capsys.readouterr().out


def of_the_release_before(made: Plan) -> dict:
    """As it wrote them: without format and hardware, what is now `phases` called `stages`."""
    content = made.to_json()
    return {name: value for name, value in content.items() if name not in ("format", "hardware", "phases")} | {
        "stages": content["phases"]
    }


def test_a_plan_of_the_release_before_is_read_on_its_own_machine_and_nowhere_else(lab, tmp_path, capsys):
    made = lab.plan(CPU, resolution__train=64, resolution__schedule="progressive")
    (tmp_path / "plan.json").write_text(json.dumps(of_the_release_before(made)))
    old = launch.plan_begun_with(tmp_path)
    assert old.hardware is None and old.decisions == made.decisions
    assert resumed(lab, CPU, old) is old
    assert resumed(lab, CPU, None, old).hardware is not None
    assert "Planned anew: another is for hardware that it does not name" in capsys.readouterr().out


def test_a_plan_that_cannot_be_read_is_said_and_left_alone(lab, tmp_path, capsys):
    made = lab.plan(CPU)
    job = launch.Job(spec=lab.spec(), plan=made, start="starter", dataset="general/v1", key="k", folder=tmp_path)
    job.write()
    assert launch.plan_begun_with(tmp_path) == made and launch.Job.read(tmp_path) == job
    assert capsys.readouterr().out == ""
    for content, why in [(made.to_json() | {"format": 9}, "a newer release wrote it"), ({"device": {}}, "Make it again")]:
        assert launch.readable_plan(content, "of run 7") is None
        assert why in capsys.readouterr().out
    (tmp_path / launch.JOB).write_text("{")
    assert launch.plan_begun_with(tmp_path) is None and launch.readable_plan({}, "of run 7") is None


# precision ------------------------------------------------------------------------------------------------------------


def test_an_m1_takes_fp16_when_it_is_faster_and_says_so(lab):
    lab.products, lab.seconds = {"fp32": 1e12, "fp16": 2e12, "bf16": 5e11}, {"fp32": 0.019, "fp16": 0.01}
    made = lab.plan(mac(M1)).precision
    assert made.value == "fp16" and made.reason == "a training step in fp16 runs at 1.9x the speed of fp32"
    assert made.measured == {"product_fp16_speedup": 2.0, "product_bf16_speedup": 0.5, "step_speedup": 1.9}
    assert sorted(lab.timed) == ["fp16", "fp32"]


def test_the_microbenchmark_has_the_last_word_over_what_the_chip_computes_natively(lab):
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


def test_fp16_is_taken_on_cuda_only_where_bf16_is_emulated_and_never_on_a_cpu(lab, home):
    for machine in (cuda(), CPU):
        assert lab.plan(machine).precision.value == "bf16"
    assert ("cpu", "fp16") not in lab.measured
    lab.products["bf16"] = 2e11
    old = replace(cuda(), name="NVIDIA V100")  # a metric is remembered by chip
    assert lab.plan(old).precision.value == "fp16" and lab.plan(CPU).precision.value == "fp32"


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
    assert plan.attention_policy(made.attention.value, backend(machine.device)).name == asked


def test_less_free_memory_makes_smaller_blocks(lab):
    sizes = []
    for free in (0, GIB, 4 * GIB, 1024 * GIB):
        lab.machine = replace(mac(), memory=free)
        sizes.append(plan.attention_policy("chunked", backend("mps")).scores)
    assert sizes == sorted(sizes) and 0 < sizes[0] < sizes[1] < sizes[2] and sizes[-1] < 2**31


# memory ---------------------------------------------------------------------------------------------------------------


def test_without_a_ceiling_a_share_of_what_is_there_is_planned(lab):
    on_mac, on_cuda = lab.plan(mac()).memory_gb, lab.plan(cuda()).memory_gb
    assert on_mac.value == pytest.approx(0.7 * 16 * 0.67, abs=0.01) and "macOS recommends" in on_mac.reason
    assert on_cuda.value == pytest.approx(98, abs=0.01) and "free" in on_cuda.reason
    assert lab.plan(CPU, memory__memory_gb=3).memory_gb.value == 3


def test_with_room_the_whole_batch_is_one_pass_and_nothing_is_checkpointed(lab):
    made = lab.plan(CPU)
    assert made.micro_batch.value == {32: 16} and made.accumulation.value == {32: 1}
    assert made.checkpointing.value == "none" and "whole batch fits" in made.micro_batch.reason
    assert made.micro_batch.measured["pair_mib"] > 0 and made.micro_batch.measured["fixed_gib"] > 0


LARGE = {"resolution__train": 320, "memory__checkpointing": "none", "memory__precision": "fp32"}


@pytest.mark.parametrize("fields", [{}, {"resolution__train": 96}, LARGE], ids=["small", "medium", "large"])
def test_a_ceiling_below_one_pair_names_the_gib_that_would_do(lab, fields):
    with refuses("memory.limit_too_low", "0.001 GiB") as caught:
        lab.plan(CPU, memory__memory_gb=0.001, **fields)
    assert "MiB" in caught.value.why and "resolution.train" in caught.value.fix
    enough = float(re.search(r"memory\.memory_gb to ([\d.]+)", caught.value.fix)[1])
    made = lab.plan(CPU, memory__memory_gb=enough, **fields)
    assert min(made.micro_batch.value.values()) >= 1
    with refuses("memory.limit_too_low"):
        lab.plan(CPU, memory__memory_gb=round(enough - 0.03, 2), **fields)


def test_a_micro_batch_that_is_asked_for_is_taken_under_any_ceiling(lab):
    made = lab.plan(CPU, memory__memory_gb=0.001, memory__micro_batch=3)
    assert made.micro_batch.value == {32: 3} and made.accumulation.value == {32: 6}
    assert made.micro_batch.reason == "asked for"
    assert lab.plan(CPU, memory__micro_batch=500).micro_batch.value == {32: 16}


def test_a_small_ceiling_gives_parts_of_the_batch_larger_for_smaller_sides(lab):
    fields = {"resolution__train": 96, "resolution__schedule": "progressive", "train__batch": 256}
    made = lab.plan(CPU, rows=512, memory__memory_gb=room(lab, 10, 96), **fields)
    assert made.checkpointing.value == "none"
    pairs, passes = made.micro_batch.value, made.accumulation.value
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
        kept = measured["fixed_gib"] + made.micro_batch.value[64] * measured["pair_mib"] / 1024
        assert pairs / 2 <= made.micro_batch.value[64] <= pairs and kept <= ceiling


def test_blocks_are_checkpointed_only_when_few_pairs_fit(lab):
    few = lab.plan(CPU, memory__memory_gb=room(lab, 4, 96), resolution__train=96)
    assert few.checkpointing.value in ("some", "all") and "fewer than 8 pairs fit" in few.checkpointing.reason
    many = lab.plan(CPU, memory__memory_gb=room(lab, 9, 96), resolution__train=96)
    assert many.checkpointing.value == "none" and many.micro_batch.value == {96: 8}
    assert few.micro_batch.measured["pair_mib"] < many.micro_batch.measured["pair_mib"]


def test_a_batch_of_few_pairs_that_fits_is_not_checkpointed(lab):
    made = lab.plan(CPU, memory__memory_gb=room(lab, 5, 96), resolution__train=96, train__batch=4)
    assert made.checkpointing.value == "none" and made.micro_batch.value == {96: 4}


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
    assert (one.processes.value, one.processes.reason) == (1, "there is one device") and one.micro_batch.value == {32: 16}
    assert (four.processes.value, four.processes.reason) == (4, "one a device") and four.micro_batch.value == {32: 4}


def test_there_are_never_more_processes_than_pairs_unless_asked_for(lab):
    assert lab.plan(cuda(4), train__batch=3).processes.value == 3


def test_processes_that_are_asked_for_win_up_to_the_devices_there_are(lab):
    made = lab.plan(cuda(4), memory__processes=2)
    assert (made.processes.value, made.processes.reason) == (2, "asked for") and made.micro_batch.value == {32: 8}
    with refuses("device.too_many_processes", "memory.processes = 5", "4 CUDA devices", "Use 4"):
        lab.plan(cuda(4), memory__processes=5)


def test_a_mac_has_one_process(lab):
    assert lab.plan(mac()).processes.value == lab.plan(mac(), memory__processes=1).processes.value == 1
    with refuses("device.too_many_processes", "memory.processes", "Mac"):
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
    monkeypatch.setattr(shutil, "which", lambda name: None)
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

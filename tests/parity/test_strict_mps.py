"""Training and evaluation run whole on a strict stand-in for MPS, which refuses what a Mac refuses and counts where it is waited for."""

import math
import os
import threading
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import a_plan, a_work, small
from fixtures.mps_declarations import autocast_kinds, refused_types
from fixtures.strict_mps import MpsRefusedError, StrictMps

from clipft_tasks.devices import backend, moved
from clipft_tasks.evaluate import zero_shot
from clipft_tasks.model import build
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import evaluate, finetune, ingest, plan, version
from clipft_tasks.train import loop, step

SETTLE = "train/step_log.py:settle"  # where the loop may wait for the device in a step, once


@pytest.fixture
def mps():
    with StrictMps() as device:
        yield device


def train(spec, dataset, folder, mps=None, sides=(32,), **changes):
    """Train on the stand-in, or on the host. Returns the model, metrics, rows, and what each step but the first two waited for and met."""
    clip, rows, marks = build.load(spec.model.start), [], []
    spec = spec.model_copy(
        update={"train": spec.train.model_copy(update={"checkpoint_seconds": 1e9, **changes.pop("train", {})})}
    )
    spec = spec.model_copy(update={"resolution": spec.resolution.model_copy(update=changes.pop("resolution", {}))})
    work = a_work(spec, clip, dataset, folder, rows.extend, plan=a_plan(sides, device="mps" if mps else "cpu", **changes))
    if mps:
        work.saw = lambda in_use: marks.append((len(mps.waits), len(mps.shapes)))
    metrics = loop.train(work)
    clip.to("cpu")
    # A step's metrics are read at the end of the next one.
    steps = [(mps.waits[a:b], after - before) for (a, before), (b, after) in pairwise(marks[1:])]
    return clip, metrics, rows, steps


def losses(rows) -> list[float]:
    return [metrics["loss"] for _, metrics in rows]


# Training -------------------------------------------------------------------------------------------------------------


def test_a_step_waits_for_the_device_once_and_trains_as_on_the_host(mps, dataset, small_spec, tmp_path):
    _, _, rows, steps = train(small_spec, dataset, tmp_path / "mps", mps)
    assert [waits for waits, _ in steps] == [[SETTLE]] * len(steps) and len(steps) == 10
    assert {new for _, new in steps} == {0}  # shapes come from small sets
    assert {"_fused_adamw_", "_fused_adamw_.tensor_lr"} & mps.operators.keys() and mps.refusals == []
    mps.hand_over()
    _, _, host, _ = train(small_spec, dataset, tmp_path / "host")
    assert losses(rows) == pytest.approx(losses(host), rel=1e-3)


def test_mixed_precision_skips_steps_that_overflow_without_waiting(mps, dataset, small_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**24))
    _, metrics, rows, steps = train(small_spec, dataset, tmp_path, mps, precision="fp16", train={"epochs": 8})
    assert [waits for waits, _ in steps] == [[SETTLE]] * len(steps)
    scales = [row["loss_scale"] for _, row in rows]
    assert metrics["overflows"] >= 1 and scales[-1] < scales[0] and losses(rows)[-1] < losses(rows)[0]
    assert [row["overflows"] for _, row in rows] == sorted(row["overflows"] for _, row in rows)
    assert mps.refusals == []


def test_all_that_a_recipe_may_ask_for(mps, dataset, small_spec, tmp_path):
    more = {"lora_rank": 2, "ema": 0.9, "l2_start": 0.1, "head_first": 0.3, "layer_decay": 0.8}
    clip, _, _, steps = train(small_spec, dataset, tmp_path, mps, attention="chunked", checkpointing="all",
                              micro_batch={32: 5}, train=more)  # fmt: skip
    assert [waits for waits, _ in steps] == [[SETTLE]] * len(steps)
    assert all(value.isfinite().all() for value in clip.state().values()) and mps.refusals == []


@pytest.mark.parametrize("schedule", ["multi_scale", "progressive", "fixres"])
def test_sizes_change(mps, dataset, small_spec, tmp_path, schedule):
    resolution = {"schedule": schedule, "train": 48, "sizes": (32, 40)}
    _, _, rows, steps = train(small_spec, dataset, tmp_path, mps, (32, 40, 48), resolution=resolution, train={"epochs": 6})
    assert [waits for waits, _ in steps] == [[SETTLE]] * len(steps) and mps.refusals == []
    sides = [row["side"] for _, row in rows]
    for number, (_, new) in enumerate(steps, 2):
        assert not new or sides.index(sides[number]) == number, f"{sides[number]} px again, and {new} new shapes"


def test_a_limit_of_memory_is_met_by_smaller_passes(dataset, small_spec, tmp_path):
    peaks = []
    for micro in (16, 4):
        with StrictMps() as device:
            train(small_spec, dataset, tmp_path / str(micro), device, micro_batch={32: micro})
            peaks.append(device.peak)
    with StrictMps(memory=sum(peaks) // 2) as device:
        _, metrics, rows, _ = train(small_spec, dataset, tmp_path / "short", device, micro_batch={32: 16})
        assert metrics["out_of_memory"] >= 1 and losses(rows)[-1] < losses(rows)[0] and device.refusals == []


def test_plan_finetune_and_evaluate_at_several_sides(mps, home, table, tiny, monkeypatch):
    monkeypatch.setattr(backend("mps"), "matmul_size", 64)  # a CPU takes minutes for large products of fp16
    spec = RunSpec.from_flat(small(table, tiny) | {"memory.device": "mps", "memory.precision": "auto", "train.epochs": 1})
    version.run(spec, ingest.run(spec).staging)
    planned = plan.run(spec)
    assert planned.plan.device.value == "mps"
    run_id = finetune.run(spec, planned).run_id
    for side in (32, 48):
        mps.hand_over()
        found = evaluate.run(spec, run_id, side)
        assert 0 <= found.models["candidate"].intervals["balanced_accuracy"].value <= 1
    assert mps.refusals == []


def test_answers_are_those_of_the_host(mps, dataset, small_spec):
    host, own = (build.load(small_spec.model.start, domain="general") for _ in range(2))
    own.to("mps")
    for side in (32, 48):
        task = zero_shot.Task(dataset, side, 16)
        one, other = (zero_shot.predict(clip, task).sums("balanced_accuracy").value for clip in (host, own))
        assert one == other
    assert mps.refusals == []


# What it refuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda x: x.double(), "float64"),
        (lambda x: torch.zeros(2, dtype=torch.float64, device="mps"), "float64"),
        (lambda x: moved(torch.zeros(2, dtype=torch.float64), x.device), "float64"),
        (lambda x: torch.linalg.eig(x), "linalg_eig has no MPS kernel"),
        (lambda x: torch.nn.functional.silu(x.int()), "silu"),
        (lambda x: x + torch.ones(3, 3), "on mps and on cpu"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: np.asarray(x), "numpy"),
        (lambda x: x.pin_memory(), "page-locked"),
        (lambda x: x.to("cpu", non_blocking=True), "nobody waits for"),
        (lambda x: os.fork(), "fork"),
    ],
)
def test_what_a_mac_refuses_is_refused(mps, ask, why):
    x = torch.ones(3, 3).to("mps")
    with pytest.raises((MpsRefusedError, NotImplementedError), match=why):
        ask(x)
    assert len(mps.refusals) == 1


def test_a_second_thread_is_refused(mps):
    x, caught = torch.ones(3).to("mps"), []

    def work():
        try:
            x.add_(1)
        except MpsRefusedError as error:
            caught.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "while another one uses MPS" in caught[0]


def test_a_copy_of_memory_that_is_gone_is_noticed_and_one_that_is_held_is_not(mps):
    held = torch.ones(1000)
    moved(held, torch.device("mps"), held=True).sum().item()
    lost = moved(torch.ones(1000), torch.device("mps"), held=True)
    with pytest.raises(MpsRefusedError, match="freed before"):
        lost.sum().item()
    before = len(mps.waits)
    moved(torch.ones(1000), torch.device("mps")).sum()
    assert len(mps.waits) == before + 1  # who does not hold it waits


def test_new_shapes_are_counted(mps):
    x = torch.ones(3, 3).to("mps")
    x @ x
    with mps.no_new_shapes():
        x @ x
    with pytest.raises(AssertionError, match="1 new shapes"), mps.no_new_shapes():
        x[:2] @ x


def test_what_is_read_in_torchs_own_lists_is_there():
    assert torch.int32 in refused_types()["silu"] and len(refused_types()) > 40
    kinds = autocast_kinds()
    assert kinds["linear"] == kinds["scaled_dot_product_attention"] == "lower" and kinds["layer_norm"] == "fp32"
    assert len(kinds) > 70


def test_autocast_is_that_of_mps(mps):
    layer = torch.nn.Linear(4, 4).to("mps")
    with torch.autocast("mps", torch.float16):
        out = layer(torch.ones(2, 4, device="mps"))
        assert out.dtype == torch.float16 and torch.nn.functional.layer_norm(out, (4,)).dtype == torch.float32
        assert torch.log_softmax(out, -1).dtype == torch.float32


def test_the_fused_optimizer_is_tried_and_not_believed(mps, monkeypatch):
    assert step.fused_step_skips(torch.device("mps"))
    real = torch.optim.AdamW.step

    def deaf(self):
        self.found_inf = self.grad_scale = None
        return real(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", deaf)
    assert not step.fused_step_skips(torch.device("mps"))


def test_memory_is_that_of_the_tensors_that_live(mps):
    device = backend("mps")
    x = torch.zeros(2**18, device="mps")
    assert device.memory_used() == 2**20 and x.view(512, 512).sum().item() == 0
    del x
    assert device.memory_used() < 2**10 and mps.peak >= 2**20 and math.isfinite(mps.memory)

"""The loop on bad days: memory runs short, fp16 overflows, a signal comes; and what its options do."""

import os
import signal
from functools import partial

import pytest
import torch
from conftest import a_plan, a_work
from fixtures.errors import refuses

from clipft_tasks.core.errors import TransientError
from clipft_tasks.model import build
from clipft_tasks.spec import RunSpec
from clipft_tasks.train import divergence, loop, micro_batches


def changed(spec: RunSpec, **fields: object) -> RunSpec:
    return RunSpec.from_flat(spec.flat() | {k.replace("__", "."): v for k, v in fields.items()})


def trained(spec, dataset, folder, **how):
    before = how.pop("before", lambda work: None)
    clip = build.prepare(build.load(spec.model.start), spec)
    rows = []
    work = a_work(spec, clip, dataset, folder, rows.extend, **how)
    before(work)
    metrics = loop.train(work)
    return clip, metrics, rows


def weights(clip):
    return torch.cat([v.flatten().float() for v in clip.model.state_dict().values()])


@pytest.mark.parametrize("at", [0, 7])
def test_out_of_memory_at_any_step_repeats_the_same_rows_in_smaller_parts(dataset, small_spec, tmp_path, at, capsys):
    def short(work):
        tower = work.clip.model.visual.forward
        calls = []

        def forward(images):
            calls.append(len(images))
            if sum(1 for c in calls if c == 16) > at and len(images) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return tower(images)

        work.clip.model.visual.forward = forward

    plan = a_plan(micro_batch={32: 16}, accumulation={32: 1})
    _, _, losses = trained(small_spec, dataset, tmp_path / "plain", plan=plan)
    _, metrics, again = trained(small_spec, dataset, tmp_path / "short", plan=plan, before=short)
    assert metrics["out_of_memory"] == 2 and "the same batch again with 8" in capsys.readouterr().out
    assert [n for n, _ in again] == [n for n, _ in losses]  # no step lost, none doubled
    torch.testing.assert_close([f["loss"] for _, f in again], [f["loss"] for _, f in losses], rtol=1e-3, atol=1e-4)
    assert [f["micro_batch"] for _, f in again][-1] == 4


def test_a_pair_that_never_fits_says_what_would(dataset, small_spec, tmp_path):
    def never(work):
        def forward(images):
            raise RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB, max allowed: 18.1 GB)")

        work.clip.model.visual.forward = forward

    with refuses("memory.single_too_large", "MPS backend", "resolution.train"):
        trained(small_spec, dataset, tmp_path, before=never)


def test_the_micro_batch_grows_again_when_there_is_room(dataset, small_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(micro_batches, "PATIENCE", 2)
    plan = a_plan(micro_batch={32: 4}, accumulation={32: 4})
    _, _, rows = trained(small_spec, dataset, tmp_path, plan=plan)
    assert [f["micro_batch"] for _, f in rows][:6] == [4, 8, 8, 16, 16, 16]
    assert rows[0][1]["seconds_left"] > 0 == rows[-1][1]["seconds_left"]


def test_a_signal_writes_a_checkpoint_and_the_next_try_ends_as_if_undisturbed(dataset, small_spec, tmp_path):
    def interrupt(work):
        whole = work.data.batch

        def batch(step, *args, **kwargs):
            if step == 5 and not (tmp_path / "told").exists():
                (tmp_path / "told").touch()
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(step, *args, **kwargs)

        object.__setattr__(work.data, "batch", batch)

    undisturbed, _, _ = trained(small_spec, dataset, tmp_path / "a")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TransientError, match="checkpoint is written"):
        trained(small_spec, dataset, tmp_path / "b", before=interrupt)
    assert signal.getsignal(signal.SIGTERM) is before
    resumed, metrics, _ = trained(small_spec, dataset, tmp_path / "b")
    assert metrics["resumed_at"] > 0
    assert torch.equal(weights(undisturbed), weights(resumed))


def test_an_overflow_in_fp16_skips_the_step_and_is_counted(dataset, small_spec, tmp_path, monkeypatch):
    """The loss scale starts far too high, so the first gradients overflow; then it recovers and training goes on."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**24))
    plan = a_plan(precision="fp16")
    clip, metrics, rows = trained(changed(small_spec, train__epochs=8), dataset, tmp_path, plan=plan)
    scales = [f["loss_scale"] for _, f in rows]
    assert metrics["overflows"] >= 1 and scales[-1] < scales[0]
    assert weights(clip).isfinite().all() and rows[-1][1]["loss"] < rows[0][1]["loss"]


def test_fp16_that_always_overflows_stops_with_the_way_out(dataset, small_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(divergence, "MAX_OVERFLOWS", 3)

    def poison(work):
        work.clip.model.visual.proj.register_hook(lambda g: g * float("inf"))

    with refuses("train.always_overflows", "4 steps", "bf16 or fp32"):
        trained(small_spec, dataset, tmp_path, plan=a_plan(precision="fp16"), before=poison)


def test_bf16_trains(dataset, small_spec, tmp_path):
    _, _, rows = trained(small_spec, dataset, tmp_path, plan=a_plan(precision="bf16"))
    assert rows[-1][1]["loss"] < rows[0][1]["loss"]


@pytest.mark.parametrize("schedule", ["progressive", "multi_scale", "fixres"])
def test_training_at_several_sizes_ends_with_a_model_of_one(dataset, small_spec, tmp_path, schedule):
    spec = changed(small_spec, resolution__schedule=schedule, resolution__train=48, resolution__sizes=[32, 40])
    clip, _, rows = trained(spec, dataset, tmp_path)
    sides = [f["side"] for _, f in rows]
    if schedule == "progressive":
        assert sides == sorted(sides) and set(sides) == {32, 40, 48}
    elif schedule == "fixres":
        assert sides[0] == 40 and sides[-1] == 48
    else:
        assert set(sides) == {32, 40, 48} and sides != sorted(sides)
    assert clip.side == 48 and clip.model.visual.positional_embedding.shape[0] == 37
    assert clip.encode_images(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).isfinite().all()


def test_other_attention_and_blocks_run_again_train_to_the_same_weights(dataset, small_spec, tmp_path):
    plain, _, _ = trained(small_spec, dataset, tmp_path / "plain")
    start = weights(build.load(small_spec.model.start))
    for name, more in {"chunked": {"attention": "chunked"}, "again": {"checkpointing": "all"}}.items():
        other, _, _ = trained(small_spec, dataset, tmp_path / name, plan=a_plan(**more))
        assert (weights(plain) - weights(other)).norm() < 0.01 * (weights(plain) - start).norm(), name


def test_frozen_weights_stay_and_heads_may_go_first(dataset, small_spec, tmp_path):
    spec = changed(small_spec, train__rules=["visual.transformer.*=freeze"], train__head_first=0.5, train__epochs=2)
    start = build.load(spec.model.start).model.state_dict()
    clip, _, _ = trained(spec, dataset, tmp_path)
    now = clip.model.state_dict()
    assert all(torch.equal(now[n], start[n]) for n in now if n.startswith("visual.transformer"))
    assert not torch.equal(now["visual.proj"], start["visual.proj"])
    assert not torch.equal(now["token_embedding.weight"], start["token_embedding.weight"])


@pytest.mark.parametrize("micro", [4, 16])
def test_a_tower_may_be_frozen_whole(dataset, small_spec, tmp_path, micro):
    text = ["transformer.*", "token_embedding*", "positional_embedding", "ln_final*", "text_projection"]
    spec = changed(small_spec, train__rules=[f"{pattern}=freeze" for pattern in text])
    start = build.load(spec.model.start).model.state_dict()
    clip, _, _ = trained(spec, dataset, tmp_path, plan=a_plan(micro_batch={32: micro}))
    now = clip.model.state_dict()
    moved = {name for name in now if not torch.equal(now[name], start[name])}
    assert moved and all(name.startswith("visual.") or name == "logit_scale" for name in moved)


def test_low_rank_training_leaves_an_ordinary_model(dataset, small_spec, tmp_path):
    spec = changed(small_spec, train__lora_rank=4)
    start = build.load(spec.model.start).model.state_dict()
    clip, _, rows = trained(spec, dataset, tmp_path)
    assert clip.model.state_dict().keys() == start.keys() and rows[-1][1]["loss"] < rows[0][1]["loss"]
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    change = clip.model.state_dict()[name] - start[name]
    assert 1 <= torch.linalg.matrix_rank(change) <= 4


def test_the_running_average_is_what_is_kept(dataset, small_spec, tmp_path):
    plain, _, _ = trained(small_spec, dataset, tmp_path / "a")
    average, _, _ = trained(changed(small_spec, train__ema=0.9), dataset, tmp_path / "b")
    start = weights(build.load(small_spec.model.start))
    assert 0 < (weights(average) - start).norm() < (weights(plain) - start).norm()


def test_one_class_and_a_batch_larger_than_the_data_train(dataset, small_spec, tmp_path):
    spec = changed(small_spec, train__batch=4096, train__sampling="balanced")
    frame = dataset.frame[dataset.frame["label"] == dataset.classes[0]]
    object.__setattr__(dataset, "frame", frame)
    _, metrics, rows = trained(spec, dataset, tmp_path)
    assert metrics["steps"] == spec.train.epochs and all(f["loss"] == f["loss"] for _, f in rows)


def test_weights_are_held_near_the_start(dataset, small_spec, tmp_path):
    start = weights(build.load(small_spec.model.start))
    away = [
        (weights(trained(changed(small_spec, train__l2_start=l2), dataset, tmp_path / str(l2))[0]) - start).norm()
        for l2 in (0, 20, 100)
    ]
    assert away[0] > away[1] > away[2] > 0


def test_what_looks_at_the_start_resumes_exactly(dataset, small_spec, tmp_path):
    """A resumed run is held by the start model, not by the checkpoint; on a similarity that the start did not have."""
    auxiliary = {"objective__auxiliary": ["distillation=1>0.5"], "objective__options": {"distillation.features": 0.1}}
    spec = changed(small_spec, train__l2_start=50, objective__similarity="hyperbolic", **auxiliary)
    _, rows = resumed_exactly(spec, dataset, tmp_path)
    assert rows[0][1]["distillation_kl_loss"] < 1e-3 < rows[-1][1]["distillation_kl_loss"]


def resumed_exactly(spec, dataset, folder):
    """Train unbroken and broken after five steps; returns the resumed model and the unbroken run's rows."""
    unbroken, _, rows = trained(spec, dataset, folder / "a")

    def interrupt(work):
        whole = work.data.batch

        def batch(step, *args, **kwargs):
            if step == 5:
                raise InterruptedError
            return whole(step, *args, **kwargs)

        object.__setattr__(work.data, "batch", batch)

    each = changed(spec, train__checkpoint_seconds=0)
    with pytest.raises(InterruptedError):
        trained(each, dataset, folder / "b", before=interrupt)
    resumed, metrics, _ = trained(each, dataset, folder / "b")
    assert metrics["resumed_at"] == 5
    assert all(torch.equal(unbroken.state()[name], value) for name, value in resumed.state().items())
    return resumed, rows


@pytest.mark.parametrize("variant", ["plain", "rslora", "dora"])
def test_low_rank_training_resumes_exactly_from_checkpoints_without_the_base(dataset, small_spec, tmp_path, variant):
    spec = changed(small_spec, train__lora_rank=2, train__lora_text_rank=1, train__lora_variant=variant, train__ema=0.9)
    resumed, _ = resumed_exactly(spec, dataset, tmp_path)
    held = torch.load(max((tmp_path / "b").glob("*.pt")), weights_only=True)
    assert held["model"].keys() == held["average"]["weights"].keys() == resumed.adapter.tensors.keys()
    assert not any(name.endswith(("in_proj_weight", "token_embedding.weight")) for name in held["model"])

    again = build.prepare(build.load(spec.model.start), spec)
    resumed.adapter.merge_into(again)
    assert all(torch.equal(again.state()[name], value) for name, value in resumed.state().items())


def test_a_checkpoint_of_the_release_before_with_all_weights_goes_on(dataset, small_spec, tmp_path):
    spec = changed(small_spec, train__rules=["visual.*=freeze"], train__checkpoint_seconds=0)
    unbroken, _, _ = trained(spec, dataset, tmp_path / "a")
    paths = sorted((tmp_path / "a").glob("*.pt"))
    held = torch.load(paths[0], weights_only=True)
    assert not any(name.startswith("visual.") for name in held["model"])
    held["model"] = build.prepare(build.load(spec.model.start), spec).state() | held["model"]
    paths[-1].unlink()
    torch.save(held, paths[0])
    resumed, metrics, _ = trained(spec, dataset, tmp_path / "a")
    assert 0 < metrics["resumed_at"] < metrics["steps"]
    assert all(torch.equal(unbroken.state()[name], value) for name, value in resumed.state().items())

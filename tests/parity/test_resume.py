"""A run that was killed and resumed equals an unbroken one, bit for bit on the CPU."""

import shutil

import pytest
import torch
from conftest import a_plan, a_work
from fixtures.errors import refuses

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.model import build
from clipft_tasks.train import checkpoints, loop


class KilledError(Exception):
    pass


def run(spec, dataset, folder, kill_at=None, **changes):
    clip = build.load(spec.model.start)
    train = spec.train.model_copy(update={"checkpoint_seconds": 0.0})
    metrics = []
    work = a_work(spec.model_copy(update={"train": train}), clip, dataset, folder, lambda rows: metrics.extend(rows), **changes)
    if kill_at is not None:
        whole = work.data.batch

        def dying(step, *args, **kwargs):
            if step == kill_at:
                raise KilledError
            return whole(step, *args, **kwargs)

        object.__setattr__(work.data, "batch", dying)
    loop.train(work)
    return clip.model.state_dict(), [(n, f["loss"]) for n, f in metrics]


def test_resumed_equals_unbroken(dataset, small_spec, tmp_path):
    unbroken, losses = run(small_spec, dataset, tmp_path / "a")
    with pytest.raises(KilledError):
        run(small_spec, dataset, tmp_path / "b", kill_at=5)
    resumed, rest = run(small_spec, dataset, tmp_path / "b")
    assert rest[0][0] == 5
    assert rest == losses[5:]
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_the_last_checkpoint_holds_no_moments_and_gives_the_same_end_again(dataset, small_spec, tmp_path):
    first, _ = run(small_spec, dataset, tmp_path)
    before, last = (path.stat().st_size for path in sorted(tmp_path.glob("step-*.pt")))
    assert last < before / 2
    again, rest = run(small_spec, dataset, tmp_path)
    assert rest == [] and all(torch.equal(first[name], again[name]) for name in first)


def test_what_was_learned_of_the_memory_is_known_after_a_kill(dataset, small_spec, tmp_path):
    """Also that another plan, of another machine, begins with its own sizes."""
    plan = a_plan(micro_batch={32: 16}, accumulation={32: 1})
    spec = small_spec.model_copy(update={"train": small_spec.train.model_copy(update={"checkpoint_seconds": 0.0})})

    def train(folder, plan, kill_at=None):
        clip, rows = build.load(small_spec.model.start), []
        work = a_work(spec, clip, dataset, tmp_path / folder, rows.extend, plan=plan)
        whole, tower = work.data.batch, clip.model.visual.forward

        def dying(step, *args, **kwargs):
            if step == kill_at:
                raise KilledError
            return whole(step, *args, **kwargs)

        def forward(images):
            if kill_at and len(images) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return tower(images)

        object.__setattr__(work.data, "batch", dying)
        clip.model.visual.forward = forward
        return loop.train(work), rows

    with pytest.raises(KilledError):
        train("here", plan, kill_at=5)
    shutil.copytree(tmp_path / "here", tmp_path / "elsewhere")
    metrics, rows = train("here", plan)
    assert rows[0][0] == 5 and {f["micro_batch"] for _, f in rows} == {4} and metrics["out_of_memory"] == 2
    metrics, rows = train("elsewhere", a_plan(micro_batch={32: 8}))
    assert rows[0][0] == 5 and {f["micro_batch"] for _, f in rows} == {8} and metrics["out_of_memory"] == 0


def test_a_corrupt_newest_checkpoint_falls_back_to_the_one_before(dataset, small_spec, tmp_path, capsys):
    unbroken, _ = run(small_spec, dataset, tmp_path / "a")
    with pytest.raises(KilledError):
        run(small_spec, dataset, tmp_path / "b", kill_at=6)
    newest = sorted((tmp_path / "b").glob("step-*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed, rest = run(small_spec, dataset, tmp_path / "b")
    assert rest[0][0] == 5
    assert "cannot be read" in capsys.readouterr().out
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_a_checkpoint_of_other_work_is_not_resumed_from(tmp_path):
    checkpoints.Checkpoints(tmp_path, "one").save(3, {})
    assert checkpoints.Checkpoints(tmp_path, "another").latest() is None


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    keeper = checkpoints.Checkpoints(tmp_path, "k")
    keeper.save(1, {"x": torch.ones(1)})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with refuses("train.checkpoint_not_writable", "No space left"):
        keeper.save(2, {"x": torch.ones(1)})
    assert keeper.latest()["step"] == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_loss_that_is_no_number_stops_with_step_rows_and_layer(dataset, small_spec, tmp_path):
    clip = build.load(small_spec.model.start)
    with torch.no_grad():
        clip.model.visual.transformer.resblocks[1].mlp.c_fc.weight.fill_(float("nan"))
    with pytest.raises(ClipftError, match=r"training step 0.*resblocks\.1\.mlp\.c_fc .*rows [0-9a-f]{12}"):
        loop.train(a_work(small_spec, clip, dataset, tmp_path / "n"))

"""A run that was killed and resumed equals an unbroken one, bit for bit on the CPU."""

import pytest
import torch
from conftest import a_work

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.data import versioning
from clipft_tasks.model import build
from clipft_tasks.stages import ingest, version
from clipft_tasks.train import checkpoints, loop


class Killed(Exception):
    pass


@pytest.fixture
def dataset(home, small_spec):
    made = version.run(small_spec, ingest.run(small_spec).staging)
    return versioning.fetch(versioning.find(made.dataset, "general"))


def run(spec, dataset, folder, kill_at=None, **changes):
    clip = build.load(spec.model.start)
    train = spec.train.model_copy(update={"checkpoint_seconds": 0.0})
    metrics = []
    work = a_work(spec.model_copy(update={"train": train}), clip, dataset, folder, lambda rows: metrics.extend(rows), **changes)
    if kill_at is not None:
        whole = work.data.batch

        def dying(step, *args, **kwargs):
            if step == kill_at:
                raise Killed
            return whole(step, *args, **kwargs)

        object.__setattr__(work.data, "batch", dying)
    loop.train(work)
    return clip.model.state_dict(), [(n, f["loss"]) for n, f in metrics]


def test_resumed_equals_unbroken(dataset, small_spec, tmp_path):
    unbroken, losses = run(small_spec, dataset, tmp_path / "a")
    with pytest.raises(Killed):
        run(small_spec, dataset, tmp_path / "b", kill_at=5)
    resumed, rest = run(small_spec, dataset, tmp_path / "b")
    assert rest[0][0] == 5
    assert rest == losses[5:]
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_a_corrupt_newest_checkpoint_falls_back_to_the_one_before(dataset, small_spec, tmp_path, capsys):
    unbroken, _ = run(small_spec, dataset, tmp_path / "a")
    with pytest.raises(Killed):
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
    with pytest.raises(ClipftError, match="No space left"):
        keeper.save(2, {"x": torch.ones(1)})
    assert keeper.latest()["step"] == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_loss_that_is_no_number_stops_with_step_rows_and_layer(dataset, small_spec, tmp_path):
    clip = build.load(small_spec.model.start)
    with torch.no_grad():
        clip.model.visual.transformer.resblocks[1].mlp.c_fc.weight.fill_(float("nan"))
    with pytest.raises(ClipftError, match=r"training step 0.*resblocks\.1\.mlp\.c_fc .*rows [0-9a-f]{12}"):
        loop.train(a_work(small_spec, clip, dataset, tmp_path / "n"))

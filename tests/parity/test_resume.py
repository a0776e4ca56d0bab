"""A run that was killed and resumed equals an unbroken one, bit for bit on the CPU."""

import pytest
import torch

from clipft_tasks.data import loader, versioning
from clipft_tasks.decision import Decision
from clipft_tasks.domains import get_domain
from clipft_tasks.errors import ClipftError
from clipft_tasks.model import build
from clipft_tasks.objectives import make
from clipft_tasks.stages import ingest, version
from clipft_tasks.train import checkpoints, loop
from clipft_tasks.train.plan import Plan

PLAN = Plan(
    **{
        name: Decision(value, "test")
        for name, value in {
            "device": "cpu",
            "precision": "fp32",
            "layout": "contiguous",
            "threads": 1,
            "micro_batch": 8,
            "memory_gb": 1,
        }.items()
    }
)


class Killed(Exception):
    pass


@pytest.fixture
def dataset(home, small_spec):
    made = version.run(small_spec, ingest.run(small_spec)["staging"])
    return versioning.fetch(versioning.find(made["dataset"], "general"))


def run(spec, dataset, folder, kill_at=None):
    clip = build.load(spec.model.start)
    train = spec.train.model_copy(update={"checkpoint_seconds": 0.0})
    data = loader.TrainingData.open(dataset, 32, get_domain("general").augment, train.batch, train.seed, train.balance)
    if kill_at is not None:
        whole = data.batch

        def dying(step, device):
            if step == kill_at:
                raise Killed
            return whole(step, device)

        object.__setattr__(data, "batch", dying)
    figures = []
    loop.train(
        clip,
        make(spec.objective),
        data,
        train,
        PLAN,
        checkpoints.Checkpoints(folder, "k"),
        lambda n, f: figures.append((n, f["loss"])),
    )
    return clip.model.state_dict(), figures


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


def test_a_loss_that_is_no_number_stops_with_the_step(dataset, small_spec, tmp_path):
    spec = small_spec.model_copy(update={"train": small_spec.train.model_copy(update={"learning_rate": 1.0, "grad_clip": 0.0})})
    clip = build.load(spec.model.start)
    with torch.no_grad():
        clip.model.visual.proj.fill_(float("nan"))
    data = loader.TrainingData.open(dataset, 32, get_domain("general").augment, 16, 0, True)
    with pytest.raises(ClipftError, match="training step 0"):
        loop.train(
            clip, make(spec.objective), data, spec.train, PLAN, checkpoints.Checkpoints(tmp_path / "n", "k"), lambda n, f: None
        )

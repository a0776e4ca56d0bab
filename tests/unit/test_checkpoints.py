"""Checkpoints are written beside the training, whole or not at all, and take a small share of its time."""

import signal
import threading
import time

import fixtures.forkserver
import pytest
import torch
from fixtures.errors import refuses

from clipft_tasks.train import checkpoints
from clipft_tasks.train.checkpoints import Checkpoints

ROOM = 2**30


@pytest.fixture
def held(monkeypatch):
    """Writing waits until the event is set."""
    go, real = threading.Event(), torch.save

    def save(*args):
        assert go.wait(30)
        real(*args)

    monkeypatch.setattr(checkpoints.torch, "save", save)
    yield go
    go.set()


def test_what_is_written_is_the_state_when_it_began(tmp_path, held):
    weights, logged = torch.zeros(4), []
    with Checkpoints(tmp_path, "k") as keeper:
        keeper.begin(3, {"model": {"w": weights}}, room=ROOM, then=lambda: logged.append(sorted(tmp_path.iterdir())))
        weights.add_(1)
        assert keeper.latest() is None and logged == []
        held.set()
    assert torch.equal(keeper.latest()["model"]["w"], torch.zeros(4))
    assert [[path.name for path in found] for found in logged] == [["step-00000003.pt"]]


def test_the_training_goes_on_and_the_next_one_waits_for_the_one_before(tmp_path, held):
    keeper = Checkpoints(tmp_path, "k")
    keeper.begin(1, {"w": torch.zeros(1)}, room=ROOM)
    assert not keeper.is_due(-1e9, 20.0), "one that is being written is waited for where it need not be"
    assert keeper.is_due(-1e9, 0.0), "one a step is what was asked for"
    threading.Timer(0.05, held.set).start()
    keeper.begin(2, {"w": torch.ones(1)}, room=ROOM)
    keeper.wait()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000001.pt", "step-00000002.pt"]


def test_without_room_for_a_copy_it_is_written_at_once(tmp_path, monkeypatch):
    threads = []
    real = torch.save
    monkeypatch.setattr(checkpoints.torch, "save", lambda *args: (threads.append(threading.current_thread()), real(*args)))
    keeper = Checkpoints(tmp_path, "k")
    keeper.begin(1, {"w": torch.zeros(1000)}, room=3999)
    assert threads == [threading.main_thread()] and keeper.latest()["step"] == 1
    keeper.begin(2, {"w": torch.zeros(1000)}, room=4000)
    keeper.wait()
    assert threads[1] is not threading.main_thread()


def test_the_best_weights_are_not_copied(tmp_path):
    best = {"weights": {"w": torch.zeros(1000)}}
    copied = checkpoints.on_host({"model": {"w": torch.zeros(10)}, "best": best})
    assert copied["best"] is best
    keeper = Checkpoints(tmp_path, "k")
    keeper.begin(1, {"model": {"w": torch.zeros(10)}, "best": best}, room=40)
    assert keeper._writing.thread is not None
    keeper.wait()


def test_an_error_is_raised_where_somebody_waits(tmp_path, monkeypatch):
    keeper = Checkpoints(tmp_path, "k")
    keeper.save(1, {"w": torch.ones(1)})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    keeper.begin(2, {"w": torch.ones(1)}, room=ROOM)
    with refuses("train.checkpoint_not_writable", "No space left"):
        keeper.begin(3, {"w": torch.ones(1)}, room=ROOM)
    assert keeper.latest()["step"] == 1 and not list(tmp_path.glob("*.part"))
    keeper.begin(4, {"w": torch.ones(1)}, room=ROOM)
    with refuses("train.checkpoint_not_writable", "No space left"), keeper:
        pass


def test_what_ends_a_run_is_said_before_a_disk_that_is_full(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints.os, "fsync", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(KeyError), Checkpoints(tmp_path, "k") as keeper:
        keeper.begin(1, {"w": torch.ones(1)}, room=ROOM)
        raise KeyError("the loss")
    assert "No space left" in capsys.readouterr().out


def test_the_next_one_waits_until_its_share_is_small(tmp_path):
    keeper = Checkpoints(tmp_path, "k")
    keeper._waited, keeper._writing.seconds = 2.0, 1.0
    now = time.monotonic()
    assert not keeper.is_due(now - 50, 20.0) and keeper.is_due(now - 58, 20.0)  # 3 s are 5% of 60
    assert not keeper.is_due(now - 58, 20.0, left=2.9), "the run's last one follows sooner than this one is paid off"
    assert keeper.is_due(now - 58, 20.0, left=3.1) and keeper.is_due(now, 0.0, left=0.1)
    keeper._waited, keeper._writing.seconds = 0.01, 0.0
    assert not keeper.is_due(now - 10, 20.0) and keeper.is_due(now - 21, 20.0)


VICTIM = """
import os, signal, sys, torch
from pathlib import Path
from clipft_tasks.train import checkpoints
keeper = checkpoints.Checkpoints(Path(sys.argv[1]), "k")
keeper.save(1, {"w": torch.ones(1000)})
real = torch.save
def dying(state, file):
    real(state, file)
    file.flush()
    os.truncate(file.name, 2000)
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = dying
keeper.begin(2, {"w": torch.ones(1000)}, room=2**30)
keeper.wait()
"""


def test_killed_while_one_is_written_the_one_before_is_there_and_the_rest_is_removed(tmp_path):
    done = fixtures.forkserver.run(VICTIM, str(tmp_path))
    assert done.returncode == -signal.SIGKILL, done.stderr
    keeper = Checkpoints(tmp_path, "k")
    assert keeper.latest()["step"] == 1 and len(list(tmp_path.glob("*.part"))) == 1
    keeper.save(3, {"w": torch.ones(1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001.pt", "step-00000003.pt"]

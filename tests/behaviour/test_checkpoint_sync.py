"""A run goes on where another machine's last checkpoint reached MLflow; the network's whims end no training."""

import shutil
import threading
import time
from pathlib import Path

import pytest
from conftest import small
from mlflow.tracking import MlflowClient

from behaviour.test_kill import killed
from clipft_tasks import tracking
from clipft_tasks.core.errors import TransientError
from clipft_tasks.core.settings import settings
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import finetune, ingest, plan, version
from clipft_tasks.tracking import checkpoints
from clipft_tasks.train.checkpoint_sync import BufferedLogger, CheckpointUploader


def test_lost_for_good_in_mid_training_another_home_goes_on_from_mlflow(home, table, tiny, tmp_path, monkeypatch, capsys):
    """The first machine is killed and its disk is gone; the second shares MLflow and the data with it, nothing else."""
    flat = small(table, tiny, **{"train.checkpoint_seconds": 0})
    spec = RunSpec.from_flat(flat)
    version.run(spec, ingest.run(spec).staging)
    tracking.get_or_create_experiment("clipft-general")  # whose artifacts lie here
    monkeypatch.setenv("CLIPFT_MLFLOW_URI", settings().tracking_uri)
    monkeypatch.setenv("CLIPFT_DATA_REPO", str(home / "datasets"))
    monkeypatch.setenv("CLIPFT_UPLOAD_SECONDS", "0.001")
    monkeypatch.setenv("CLIPFT_HOME", str(tmp_path / "first"))
    settings.cache_clear()
    planned = plan.run(spec)
    assert killed(flat, "finetune", {"planned": planned}, "clipft_tasks.tracking:save_checkpoint", 4, after=True)
    shutil.rmtree(tmp_path / "first")

    monkeypatch.setenv("CLIPFT_HOME", str(tmp_path / "second"))
    settings.cache_clear()
    hardware = planned.plan.hardware.model_copy(
        update={"cores": 99}
    )  # the plan was made on a machine that is not like this one
    planned = planned.model_copy(update={"plan": planned.plan.model_copy(update={"hardware": hardware})})
    capsys.readouterr()
    done = finetune.run(spec.settled(planned.settled), planned)
    run = tracking.client().get_run(done.run_id)
    said = capsys.readouterr().out
    assert "another machine got that far" in said and "Planned anew" not in said  # the run's own plan is for such a machine
    assert 4 <= int(run.data.tags["clipft.resumed_at"]) < 12 and run.data.metrics["steps"] == 12
    history = tracking.client().get_metric_history(done.run_id, "train.loss")
    assert {m.step for m in history} == set(range(12))
    # What is over needs no checkpoint.
    assert "clipft.checkpoint" not in run.data.tags
    assert tracking.client().list_artifacts(done.run_id, "checkpoints") == []


def test_a_checkpoint_that_is_not_what_its_digest_says_is_ignored(home, tmp_path, capsys):
    run_id = tracking.get_or_create_run("general", "k", "k", {}).info.run_id
    path = tmp_path / "step-00000004.pt"
    path.write_bytes(b"weights" * 1000)
    tracking.save_checkpoint(run_id, path)
    got = tracking.fetch_checkpoint(run_id, tmp_path / "there")
    assert got.name == path.name and got.read_bytes() == path.read_bytes()
    assert tracking.fetch_checkpoint(run_id, tmp_path / "there") is None  # one as new is there already

    newer = tmp_path / "step-00000008.pt"
    newer.write_bytes(b"newer")
    tracking.save_checkpoint(run_id, newer)
    stored = list((home / "mlflow" / "artifacts").rglob("step-*.pt"))
    assert [p.name[:13] for p in stored] == ["step-00000008"]  # the one before gave way
    stored[0].write_bytes(b"cut")
    assert tracking.fetch_checkpoint(run_id, tmp_path / "elsewhere") is None
    assert "cannot be used" in capsys.readouterr().out and not list((tmp_path / "elsewhere").glob("*.pt"))


def test_cut_between_checkpoint_and_tag_the_one_before_counts_and_the_next_save_removes_what_was_left(
    home, tmp_path, monkeypatch
):
    run_id = tracking.get_or_create_run("general", "k", "k", {}).info.run_id
    first, second, third = (tmp_path / f"step-{n:08d}.pt" for n in (4, 8, 12))
    for path in (first, second, third):
        path.write_text(path.name)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    tracking.save_checkpoint(run_id, first)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, "set_tag", die)
        tracking.save_checkpoint(run_id, second)
    assert tracking.fetch_checkpoint(run_id, tmp_path / "there").name == first.name
    assert len(tracking.client().list_artifacts(run_id, "checkpoints")) == 2
    tracking.save_checkpoint(run_id, third)
    assert len(tracking.client().list_artifacts(run_id, "checkpoints")) == 1
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # a run that is over, cut in the same way
        patch.setattr(checkpoints, "_delete_artifacts", die)
        tracking.delete_checkpoint(run_id)
    tracking.delete_checkpoint(run_id)
    assert tracking.client().list_artifacts(run_id, "checkpoints") == []


def _files(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    for number in range(count):
        (folder / f"step-{number}.pt").write_text(str(number))
    return sorted(folder.iterdir())


def test_the_newest_is_sent_now_and_then_without_holding_up_the_training(tmp_path):
    files, sent, go = _files(tmp_path / "c", 5), [], threading.Event()

    def send(path: Path) -> None:
        go.wait(10)
        sent.append(path.read_text())

    with pytest.raises(RuntimeError, match="stopped"), CheckpointUploader(send, tmp_path / "h", 0.01) as uploader:
        for path in files:
            began = time.monotonic()
            uploader.saved(path)
            path.unlink()  # the training keeps its last two only
            assert time.monotonic() - began < 1
            time.sleep(0.05)
        go.set()
        raise RuntimeError("stopped by a signal")
    assert sent == ["0", "4"] and not list((tmp_path / "h").iterdir())  # the last one too, since it was stopped


def test_a_finished_run_sends_nothing_more_and_a_failure_to_send_costs_nothing(tmp_path, capsys):
    tried = []

    def send(path: Path) -> None:
        tried.append(path.name)
        raise OSError("the network is away")

    files = _files(tmp_path / "c", 2)
    with CheckpointUploader(send, tmp_path / "h", 3600) as uploader:
        uploader.saved(files[0])
        until = time.monotonic() + 10
        while not tried and time.monotonic() < until:
            time.sleep(0.01)
        uploader.saved(files[1])
    assert tried == ["step-0.pt"] and "network is away" in capsys.readouterr().out
    with CheckpointUploader(send, tmp_path / "off", 0) as off:
        off.saved(files[1])
    assert not (tmp_path / "off").exists()


def test_metrics_wait_for_mlflow_and_arrive_once(capsys):
    there, got = [False], []

    def send(rows):
        if not there[0]:
            raise TransientError("MLflow does not answer")
        got.extend(rows)

    log = BufferedLogger(send)
    log([(0, {"loss": 1.0})])
    with pytest.raises(TransientError):
        log.flush()
    there[0] = True
    log([(1, {"loss": 0.5})])
    log.flush()
    assert [step for step, _ in got] == [0, 1] and "wait for MLflow" in capsys.readouterr().out

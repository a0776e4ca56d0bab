"""A training job: what any process needs to take part. `python -m clipft_tasks.train.launch FOLDER PID` is one of several."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import psutil
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

from ..contracts import Record
from ..contracts.plan import Plan
from ..core.console import say
from ..core.errors import ClipftError, TransientError
from ..core.files import atomic_write
from ..core.settings import settings
from ..data import versioning
from ..data.loader import TrainingData
from ..domains import get_domain
from ..model import build
from ..model.adapter_folder import Adapter
from ..model.clip import Clip
from ..objectives import make
from ..spec import RunSpec
from . import distributed, loop, validation
from .checkpoint_sync import BufferedLogger, CheckpointUploader
from .checkpoints import Checkpoints
from .memory_note import MemoryNote
from .schedule import sides
from .step_log import Log, Row

AfterEpoch = Callable[[int, validation.ValidationResult], None]


JOB = "job.json"


class Job(Record):
    """One run's work, in a folder of its own, where every process that takes part reads it.

    Attributes:
        start: the model to start from, as `build.load` takes it; never `champion`.
        dataset: tag of the dataset version.
        key: identity of the run; its checkpoints carry it.
        run_id: the MLflow run that metrics go to; empty for none.
    """

    spec: RunSpec
    plan: Plan
    start: str
    dataset: str
    key: str
    run_id: str = ""
    folder: Path = Field(exclude=True)

    def write(self) -> None:
        atomic_write(self.folder / JOB, self.model_dump_json())

    @classmethod
    def read(cls, folder: Path) -> "Job":
        return cls.model_validate(json.loads((folder / JOB).read_text()) | {"folder": folder})


def plan_begun_with(folder: Path) -> Plan | None:
    """The plan with which the work in a folder was begun on this machine, by this release or the one before."""
    for name in (JOB, "plan.json"):
        try:
            content = json.loads((folder / name).read_text())
        except (OSError, ValueError):
            continue
        return readable_plan(content["plan"] if name == JOB else content, f"in {folder}")
    return None


def readable_plan(content: object, where: str) -> Plan | None:
    """A plan that was written earlier; None, and a line that says why, where it cannot be read."""
    try:
        return Plan.from_json(content, where) if content else None
    except ClipftError as error:
        say(str(error))
        return None


class Problem(Record):
    """Why a training process ended: an error's parts, so that who started it raises the same."""

    kind: str
    what: str
    why: str = ""
    fix: str = ""
    code: str = ""


def train(job: Job, clip: Clip, log: Log, after_epoch: AfterEpoch | None = None) -> dict[str, float]:
    """Train `clip` in place, here or in as many processes as the plan says. Returns the loop's metrics.

    Args:
        after_epoch: called in this process after each epoch; only where the plan has a single one.
    """
    note = MemoryNote(job.folder)
    job = job.model_copy(update={"plan": note.smaller(job.plan)})
    job.write()
    note.begin()
    if job.plan.processes.value == 1:
        try:
            with _uploader(job) as uploader:
                return loop.train(_work(job, clip, log, distributed.ALONE, after_epoch, uploader.saved))
        finally:
            note.end()
    assert after_epoch is None
    problem = job.folder / "problem.json"
    problem.unlink(missing_ok=True)  # of an earlier try
    if code := _in_processes(job):
        error = Problem.model_validate_json(problem.read_text()) if problem.exists() else None
        if error:
            note.end()
        if error and error.kind == "ClipftError":
            raise ClipftError(error.what, error.why, error.fix, code=error.code)
        raise TransientError(error.what if error else f"A training process ended with {code}; the next try resumes.")
    note.end()
    clip.load_state(load_file(job.folder / "trained.safetensors"))
    if job.spec.train.low_rank:
        clip.adapter = Adapter.read(job.folder / "adapter")
    clip.model.eval()
    return dict(json.loads((job.folder / "metrics.json").read_text()))


def train_rows(job: Job, clip: Clip, dataset: versioning.Dataset) -> dict[str, float]:
    """Train `clip` in place and in this process on the rows of a data set as it is given, unwatched. Returns the loop's metrics."""
    return loop.train(_work(job, clip, lambda rows: None, distributed.ALONE, dataset=dataset))


def _in_processes(job: Job) -> int:
    """Run a job under torchrun; its exit code."""
    stop = job.folder / "stop"
    stop.unlink(missing_ok=True)
    ports = ["--standalone", "--nproc-per-node", str(job.plan.processes.value)]
    command = [sys.executable, "-m", "torch.distributed.run", *ports, "-m", __name__, str(job.folder), str(os.getpid())]
    # SIGTERM goes to them by way of a file: torchrun itself gives them 30 s, and a large checkpoint may take longer.
    with subprocess.Popen(command) as torchrun, loop.on_sigterm(stop.touch):
        try:
            return torchrun.wait()
        except BaseException:
            stop.touch()
            raise


def watch_parent(starter: int, stop: Path) -> None:
    """End as by SIGTERM when the file `stop` appears, or when the process that started the job is gone: its next try would train
    beside this one."""
    while _lives(starter) and not stop.exists():
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _lives(process: int) -> bool:
    try:
        return bool(
            psutil.Process(process).status() != psutil.STATUS_ZOMBIE
        )  # dead, though whoever started it has not looked yet
    except psutil.NoSuchProcess:
        return False


def run_logger(run_id: str) -> BufferedLogger:
    """Sends steps' metrics to an MLflow run; nowhere without one."""

    def send(rows: list[Row]) -> None:
        if run_id:
            from .. import tracking

            with tracking.retryable():
                tracking.log_steps(run_id, rows)

    return BufferedLogger(send)


def _uploader(job: Job) -> CheckpointUploader:
    """Sends this run's checkpoints to MLflow, where settings ask for that and the run has a place there."""

    def send(path: Path) -> None:
        from .. import tracking

        tracking.save_checkpoint(job.run_id, path)

    return CheckpointUploader(send, job.folder / "upload", settings().upload_seconds if job.run_id else 0)


def _work(
    job: Job,
    clip: Clip,
    log: Log,
    world: distributed.World,
    after_epoch: AfterEpoch | None = None,
    saved: Callable[[Path], None] | None = None,
    dataset: versioning.Dataset | None = None,
) -> loop.Work:
    spec, domain = job.spec, get_domain(job.spec.domain)
    dataset = dataset or versioning.fetch(versioning.find(job.dataset, spec.domain))

    data = TrainingData.open(
        dataset, clip, domain.augment, split="train", largest=max(sides(spec.resolution, clip.tower.multiple)), batch=spec.train.batch,
        seed=spec.train.seed, sampling=spec.train.sampling, aspect=spec.resolution.aspect, workers=job.plan.workers.value,
        gray_bits=clip.prepared().gray_bits, prompts=clip.prepared().prompts,
    )  # fmt: skip

    def validate(batch: int) -> validation.ValidationResult:
        return validation.evaluate_on_validation(clip, dataset, spec.resolution.side, batch, metric=spec.gate.metric)

    chooses = spec.train.keep == "best" or spec.train.patience > 0
    if chooses and not validation.ValidationRows.of(dataset.frame, metric=spec.gate.metric).is_informative:
        say("The validation rows have neither two classes nor two captions: no epoch is better than another, the last is kept.")
        chooses = False
    limited = chooses and spec.train.max_forgetting < 1
    return loop.Work(
        clip=clip,
        objective=make(spec.objective, dataset.classes),
        data=data,
        spec=spec.train,
        resolution=spec.resolution,
        plan=job.plan,
        checkpoints=Checkpoints(job.folder / "checkpoints", job.key, saved=saved),
        log=log,
        world=world,
        validate=validate if chooses or after_epoch else None,
        saw=MemoryNote(job.folder).saw if world.is_main_process else None,
        general_score=(lambda: validation.general_score(clip, domain, spec.resolution.side)) if limited else None,
        after_epoch=after_epoch,
    )


def take_part(folder: Path) -> None:
    """One process of several, started by torchrun."""
    job, world = Job.read(folder), distributed.initialize()
    try:
        clip = build.load(job.start, domain=job.spec.domain)
        build.prepare(clip, job.spec)
        log = run_logger(job.run_id)
        with _uploader(job) if world.is_main_process else nullcontext() as uploader:
            metrics = loop.train(_work(job, clip, log, world, saved=uploader.saved if uploader else None))
        log.flush()
        if world.is_main_process:
            state = {k: v.detach().cpu().contiguous() for k, v in clip.state().items()}
            save_file(state, folder / "trained.safetensors")
            if clip.adapter:
                clip.adapter.write(folder / "adapter")
            (folder / "metrics.json").write_text(json.dumps(metrics))
    except (ClipftError, TransientError) as error:
        if isinstance(error, loop.StoppedError) and not world.is_main_process:
            return  # in peace: after a failure torchrun soon ends the others too, while the main process uploads its checkpoint
        problem = Problem(kind=type(error).__name__, what=str(error))
        if isinstance(error, ClipftError):
            problem = Problem(kind="ClipftError", what=error.what, why=error.why, fix=error.fix, code=error.code)
        atomic_write(folder / "problem.json", problem.model_dump_json())
        raise SystemExit(1) from error
    finally:
        distributed.shut_down()


def main(arguments: list[str]) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    folder = Path(arguments[0])
    threading.Thread(target=watch_parent, args=(int(arguments[1]), folder / "stop"), daemon=True).start()
    take_part(folder)


if __name__ == "__main__":
    main(sys.argv[1:])

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file

from ..core.console import say
from ..core.errors import ClipftError, Transient
from ..core.settings import settings
from ..data import versioning
from ..data.loader import TrainingData
from ..domains import get_domain
from ..model import build
from ..model.clip import Clip
from ..objectives import make
from ..spec import RunSpec
from . import distributed, loop, validation
from .checkpoint_sync import Handover, Patient
from .checkpoints import Checkpoints
from .plan import Plan, multiple
from .schedule import sides

Log = Callable[[list[tuple[int, dict[str, float]]]], None]
AfterEpoch = Callable[[int, validation.Judged], None]


@dataclass(frozen=True)
class Job:
    """One run's work, in a folder of its own.

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
    run_id: str
    folder: Path

    def write(self) -> None:
        content = {"spec": self.spec.model_dump(mode="json"), "plan": self.plan.to_dict(), "start": self.start}
        content |= {"dataset": self.dataset, "key": self.key, "run_id": self.run_id}
        (self.folder / "job.json").write_text(json.dumps(content))

    @classmethod
    def read(cls, folder: Path) -> "Job":
        content = json.loads((folder / "job.json").read_text())
        spec, plan = RunSpec.model_validate(content.pop("spec")), Plan.from_dict(content.pop("plan"))
        return cls(spec=spec, plan=plan, folder=folder, **content)


def train(job: Job, clip: Clip, log: Log, after_epoch: AfterEpoch | None = None) -> dict[str, float]:
    """Train `clip` in place, here or in as many processes as the plan says. Returns the loop's metrics.

    Args:
        after_epoch: called in this process after each epoch; only where the plan has a single one.
    """
    if job.plan.processes.value == 1:
        with _handover(job) as handover:
            return loop.train(_work(job, clip, log, distributed.ALONE, after_epoch, handover.saved))
    assert after_epoch is None
    job.write()
    problem = job.folder / "problem.json"
    problem.unlink(missing_ok=True)  # of an earlier try
    if code := _in_processes(job):
        said = json.loads(problem.read_text()) if problem.exists() else None
        if said and said["kind"] == "ClipftError":
            raise ClipftError(said["what"], said["why"], said["fix"])
        raise Transient(said["what"] if said else f"A training process ended with {code}; the next try resumes.")
    clip.load_state(load_file(job.folder / "trained.safetensors"))
    clip.model.eval()
    return dict(json.loads((job.folder / "metrics.json").read_text()))


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


def _obey(starter: int, stop: Path) -> None:
    """End as by SIGTERM when told to, or when who started the job is gone: its next try would train beside this one."""
    while _lives(starter) and not stop.exists():
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE  # dead, though whoever started it has not looked yet
    except psutil.NoSuchProcess:
        return False


def _handover(job: Job) -> Handover:
    """What sends this run's checkpoints to MLflow, where settings ask for that and the run has a place there."""

    def send(path: Path) -> None:
        from .. import tracking

        tracking.save_checkpoint(job.run_id, path)

    return Handover(send, job.folder / "handover", settings().upload_seconds if job.run_id else 0)


def _work(
    job: Job,
    clip: Clip,
    log: Log,
    world: distributed.World,
    after_epoch: AfterEpoch | None = None,
    saved: Callable[[Path], None] | None = None,
) -> loop.Work:
    spec, domain = job.spec, get_domain(job.spec.domain)
    dataset = versioning.fetch(versioning.find(job.dataset, spec.domain))

    data = TrainingData.open(
        dataset, clip, domain.augment, split="train", largest=max(sides(spec.resolution, multiple(clip))), batch=spec.train.batch,
        seed=spec.train.seed, sampling=spec.train.sampling, aspect=spec.resolution.aspect, workers=job.plan.workers.value,
        gray_bits=clip.prepared().gray_bits, prompts=clip.prepared().prompts,
    )  # fmt: skip

    def judge(batch: int) -> validation.Judged:
        return validation.judge(clip, dataset, spec.resolution.train, batch, metric=spec.gate.metric)

    chooses = spec.train.keep == "best" or spec.train.patience > 0
    if chooses and not validation.Rows.of(dataset.frame, metric=spec.gate.metric).tells:
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
        judge=judge if chooses or after_epoch else None,
        general_score=(lambda: validation.general_score(clip, domain, spec.resolution.train)) if limited else None,
        after_epoch=after_epoch,
    )


def _take_part(folder: Path) -> None:
    """One process of several, started by torchrun."""
    job, world = Job.read(folder), distributed.join()
    try:
        clip = build.load(job.start, domain=job.spec.domain)
        build.prepare(clip, job.spec)

        def send(rows: list[tuple[int, dict[str, float]]]) -> None:
            if job.run_id:
                from .. import tracking

                with tracking.retryable():
                    tracking.log_steps(job.run_id, rows)

        log = Patient(send)
        with _handover(job) if world.leads else nullcontext() as handover:
            metrics = loop.train(_work(job, clip, log, world, saved=handover.saved if handover else None))
        log.flush()
        if world.leads:
            state = {k: v.detach().cpu().contiguous() for k, v in clip.state().items()}
            save_file(state, folder / "trained.safetensors")
            (folder / "metrics.json").write_text(json.dumps(metrics))
    except (ClipftError, Transient) as error:
        if isinstance(error, loop.Stopped) and not world.leads:
            return  # in peace: after a failure torchrun soon ends the others too, while the leader hands its checkpoint over
        said = {"kind": type(error).__name__, "what": str(error)}
        if isinstance(error, ClipftError):
            said |= {"what": error.what, "why": error.why, "fix": error.fix}
        part = folder / f"problem.{world.rank}.part"
        part.write_text(json.dumps(said))
        os.replace(part, folder / "problem.json")
        raise SystemExit(1) from error
    finally:
        distributed.leave()


def main(arguments: list[str]) -> Any:
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    folder = Path(arguments[0])
    threading.Thread(target=_obey, args=(int(arguments[1]), folder / "stop"), daemon=True).start()
    _take_part(folder)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Several processes share a batch and end with the gradient, the weights and the resumed run of one."""

import os
import signal
import socket
import time
from collections.abc import Callable

import fixtures.forkserver
import psutil
import pytest
import torch
from conftest import a_plan
from fixtures.errors import refuses

from clipft_tasks.model import build
from clipft_tasks.stages import ingest, version
from clipft_tasks.train import launch as jobs
from clipft_tasks.train.checkpoints import Checkpoints
from clipft_tasks.train.distributed import ALONE
from clipft_tasks.train.launch import Job

pytestmark = pytest.mark.slow

PROGRAM = """
import torch
from clipft_tasks.train import distributed, step
from fixtures.parity import a_batch, a_clip, towers
from clipft_tasks.objectives import InfoNCE, MultiPositive
torch.set_num_threads(1)
world = distributed.initialize()
out = {{}}
for name, objective in (("info_nce", InfoNCE(0.1)), ("multi_positive", MultiPositive("label"))):
    for micro in (99, 3):
        for rows in (12, 7, 1):
            clip = a_clip()
            step.backward(towers(clip), objective, a_batch(clip, rows, world.rank, world.size), micro_batch=micro, seed=5, world=world)
            world.sum_gradients(clip.model.parameters(), [clip.model.logit_scale])
            out[name, micro, rows] = [p.grad for p in clip.model.parameters()]
if world.is_main_process:
    torch.save(out, {path!r})
distributed.shut_down()
"""


def start(count: int, program: str) -> list[str]:
    """Run a program in `count` processes, each of which must end well; returns what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    started = [
        fixtures.forkserver.Program(program, environment=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    for process in started:
        assert process.wait(timeout=300) == 0, process.err.read_text()[-3000:]
    return [process.out.read_text().strip() for process in started]


def test_two_processes_have_the_gradient_of_one(tmp_path):
    found = {}
    for count in (1, 2):
        path = tmp_path / f"{count}.pt"
        start(count, PROGRAM.format(path=str(path)))
        found[count] = torch.load(path)
    for case, one in found[1].items():
        first, second = (torch.cat([g.flatten() for g in gradients]) for gradients in (one, found[2][case]))
        assert (first - second).norm() < 1e-5 * first.norm() + 1e-8, case


def test_running_short_on_one_process_is_noticed_by_all(tmp_path):
    program = """
import torch
from clipft_tasks.devices import memory
from clipft_tasks.train import distributed, step
from fixtures.parity import a_batch, a_clip, towers
from clipft_tasks.objectives import InfoNCE
world = distributed.initialize()
clip = a_clip()
whole = clip.model.visual.forward
def short(images):
    if world.rank == 1 and len(images) > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    return whole(images)
clip.model.visual.forward = short
seen = 0
for micro in (99, 3, 2):
    try:
        step.backward(towers(clip), InfoNCE(), a_batch(clip, 12, world.rank, world.size), micro_batch=micro, seed=5, world=world)
    except memory.OutOfMemoryError:
        seen += 1
        clip.model.zero_grad()
print(seen)
distributed.shut_down()
"""
    assert start(2, program) == ["2", "2"]


def test_a_world_of_one_never_communicates():
    own = torch.randn(3, 2)
    assert ALONE.gather(own, 3) is own and ALONE.any(True) and not ALONE.any(False) and ALONE.is_main_process


@pytest.fixture
def job(home, small_spec, tmp_path):
    """A job on real data, ready for any number of processes."""
    made = version.run(small_spec, ingest.run(small_spec).staging)

    def make(name: str, **plan: object) -> Job:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        start, dataset = small_spec.model.start, made.dataset
        return Job(spec=small_spec, plan=a_plan(**plan), start=start, dataset=dataset, key="k", folder=folder)

    return make


def longer(job: Job, epochs: int, **train: object) -> Job:
    spec = job.spec.model_copy(update={"train": job.spec.train.model_copy(update={"epochs": epochs, **train})})
    return job.model_copy(update={"spec": spec})


def trained(job: Job):
    clip = build.prepare(build.load(job.start), job.spec)
    metrics = jobs.train(job, clip, lambda rows: None)
    return clip.model.state_dict(), metrics


def apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([(first[n] - second[n]).flatten() for n in first]).norm())


def test_a_job_in_two_processes_ends_where_one_ends(job):
    alone, _ = trained(longer(job("one"), 2))
    both, metrics = trained(longer(job("two", processes=2), 2))
    assert metrics["steps"] == 6 and metrics["resumed_at"] == 0
    start = build.load(job("one").start).model.state_dict()
    assert apart(alone, both) < 0.01 * apart(alone, start)  # Adam makes much of gradients that are nothing but rounding


STARTER = """
import sys
from pathlib import Path
from clipft_tasks.core.errors import TransientError
from clipft_tasks.model import build
from clipft_tasks.train import launch as jobs
job = jobs.Job.read(Path(sys.argv[1]))
try:
    jobs.train(job, build.prepare(build.load(job.start), job.spec), lambda rows: None)
except TransientError as error:
    sys.exit(f"again: {error}")
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_two_processes_whose_starter_is_stopped_write_a_checkpoint_and_one_goes_on(job, how):
    begun = longer(job("begun", processes=2), 15, checkpoint_seconds=0.0)
    begun.write()
    starter = fixtures.forkserver.Program(STARTER, begun.folder)
    written = begun.folder / "checkpoints"
    until(lambda: list(written.glob("*.pt")) or starter.poll() is not None)
    family = psutil.Process(starter.pid).children(recursive=True)
    os.kill(starter.pid, how)
    starter.wait(timeout=300)
    said = starter.err.read_text()
    assert how == signal.SIGKILL or "again: Stopped by a signal at step" in said, said[-3000:]
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family))
    assert len(family) >= 3  # torchrun and its two

    # What one process resumes from carries nothing of how many there were.
    stopped = Checkpoints(written, "k").latest()["step"]
    assert 0 < stopped < 45
    resumed, metrics = trained(begun.model_copy(update={"plan": a_plan()}))
    assert metrics["resumed_at"] == stopped and metrics["steps"] == 45
    alone, _ = trained(longer(job("alone"), 15))
    assert apart(alone, resumed) < 0.02 * apart(alone, build.load(begun.start).model.state_dict())


def until(true: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_problem_in_a_process_reaches_the_person(job, tmp_path):
    broken = job("broken", processes=2)
    spec = broken.spec.model_copy(
        update={"train": broken.spec.train.model_copy(update={"rules": ["nothing.like.this=freeze"]})}
    )
    with refuses("train.unmatched_rule", "nothing.like.this"):
        jobs.train(broken.model_copy(update={"spec": spec}), build.load(broken.start), lambda rows: None)

"""Several GPUs beside one: python -m bench.parallel [--only gradients|speed|job] [--home FOLDER]

    gradients  of several processes, through NCCL, beside those of one; also where one of the GPUs runs out of memory
    speed      pairs per second of compiled bf16 steps, the same batch a GPU; also beside one GPU with the whole batch
    job        clipft_tasks/train/launch.py as a run starts it: one process, several, and several that are stopped by SIGTERM and
               resumed by one; all must end with the same weights

The job needs a dataset version. `--prepare FOLDER` makes one, and `--home FOLDER` takes it to a machine without DVC.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipft_tasks.contracts.plan import Plan, Precision
from clipft_tasks.core.settings import settings
from clipft_tasks.data import versioning
from clipft_tasks.devices.memory import OutOfMemoryError
from clipft_tasks.devices.precision import precision_context
from clipft_tasks.objectives import InfoNCE
from clipft_tasks.spec import RunSpec
from clipft_tasks.train import distributed, step

CASES = [("ViT-B-32", 1024), ("ViT-L-14", 160)]  # pairs a GPU
MODEL, PAIRS, PART = "ViT-B-32", 256, 48  # of the gradients and the job
IMAGES = 2048
WHOLE = "ViT-B-32"  # of which one GPU of 80 GB takes the batch of two at once as well


# Gradients -----------------------------------------------------------------------------------------------------------


def gradients(out: Path) -> dict[str, float]:
    """Relative difference of the summed gradient to that of one process, by case; or what one process has, written down."""
    from bench import gpu

    world = distributed.initialize()
    reference = out / "gradients.pt"
    known = {} if world.size == 1 else torch.load(reference, map_location="cuda")
    clip = gpu.model_of(MODEL, quick=True)
    images = torch.rand(PAIRS, 3, clip.side, clip.side, generator=torch.Generator().manual_seed(1)).cuda() * 255
    batch = gpu.ready(clip, PAIRS, images, world)
    parameters = list(clip.model.parameters())
    metrics = {}

    def gradient(precision: Precision, micro: int) -> Tensor:
        clip.model.zero_grad(set_to_none=True)
        towers = step.Towers(clip, clip.image_features, clip.text_features, lambda: precision_context("cuda", precision))
        step.backward(towers, InfoNCE(), batch, micro_batch=micro, seed=1, world=world)
        world.sum_gradients(parameters, [clip.model.logit_scale])
        return torch.cat([p.grad.flatten() for p in parameters])

    both: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in both:
        for micro in (PAIRS, PART):
            name, found = f"{precision}, {'one pass' if micro == PAIRS else f'parts of {micro}'}", gradient(precision, micro)
            if world.size == 1:
                known[name] = found.cpu()
            else:
                metrics[name] = float((found - known[name]).norm() / known[name].norm())
    if world.size > 1:
        metrics |= _short(world, gradient, known[f"fp32, parts of {PART}"])
    elif world.is_main_process:
        torch.save(known, reference)
    distributed.shut_down()
    return metrics


def _short(world: distributed.World, gradient: Callable[[Precision, int], Tensor], known: Tensor) -> dict[str, float]:
    """The last GPU alone gets too little memory for the whole share: all halve together, and the gradient is the same."""
    torch.cuda.empty_cache()
    if world.rank == world.size - 1:
        total = torch.cuda.get_device_properties("cuda").total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 2.5 * 2**30) / total)
    micro, failures = PAIRS, 0
    while True:
        try:
            found = gradient("fp32", micro)
            break
        except OutOfMemoryError:
            micro, failures = micro // 2, failures + 1
            torch.cuda.empty_cache()
    difference = float((found - known).norm() / known.norm())
    return {f"fp32, after one GPU ran short {failures} times": difference, "ran_short": failures}


# Speed ---------------------------------------------------------------------------------------------------------------


def speed(names: list[str]) -> dict[str, Any]:
    """Pairs per second and peak memory by model. The first process measures one GPU, alone, while the others wait."""
    from bench import gpu

    def timed(run: Callable[[], Tensor], count: int) -> dict[str, float]:
        taken = gpu.seconds(run, rounds=5, each=5, warm=4)
        return {"pairs": count / taken, "ms": 1e3 * taken, "gib": gpu.peak_gib()}

    world = distributed.initialize()
    metrics: dict[str, Any] = {}
    for name, each in [c for c in CASES if c[0] in names]:
        gpu.fresh()
        clip = gpu.model_of(name, quick=True)
        parameters = list(clip.model.parameters())
        world.broadcast([p.data for p in parameters])
        metrics[name] = {}

        alone = gpu.our_step(clip, gpu.ready(clip, each), True, each)
        together = gpu.our_step(clip, gpu.ready(clip, each * world.size, world=world), True, each, world)
        alone()  # all compile at once
        if world.is_main_process:
            metrics[name]["one"] = timed(alone, each)
        world.any(False)
        metrics[name]["several"] = timed(together, each * world.size)
        metrics[name]["sum_gradients_ms"] = 1e3 * gpu.seconds(partial(world.sum_gradients, parameters), each=10)
        if world.is_main_process:
            print(json.dumps({name: metrics[name]}), flush=True)
        del alone, together, parameters, clip
    if world.is_main_process and WHOLE in names:
        gpu.fresh()
        clip, count = gpu.model_of(WHOLE, quick=True), dict(CASES)[WHOLE] * world.size
        metrics[WHOLE]["one, whole batch"] = timed(gpu.our_step(clip, gpu.ready(clip, count), True, count), count)
        print(json.dumps({WHOLE: metrics[WHOLE]}), flush=True)
    world.any(False)
    distributed.shut_down()
    return metrics


# The job -------------------------------------------------------------------------------------------------------------


def prepare(home: Path) -> None:
    """A dataset version of made images under `home`, and its shards in the cache there."""
    from clipft_tasks.stages import ingest, version

    os.environ["CLIPFT_HOME"] = str(home)
    settings.cache_clear()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = ["image,caption,label"]
        for number in range(IMAGES):
            coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((240, 240), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=80)
            lines.append(f"{number}.jpg,a photo of thing number {number} of kind {number % 16},kind {number % 16}")
        (folder / "images.csv").write_text("\n".join(lines) + "\n")
        spec = RunSpec.from_flat({"domain": "general", "source": str(folder / "images.csv")})
        made = version.run(spec, ingest.run(spec).staging)
    versioning.fetch(versioning.find(made.dataset, "general"))


def starter(folder: Path) -> Path:
    """A package folder with random weights, that every process can open."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.create_model(MODEL)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(MODEL), "preprocess_cfg": open_clip.get_model_preprocess_cfg(model)}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


START = """
import sys
from pathlib import Path
from clipft_tasks.core.errors import TransientError
from clipft_tasks.model import build
from clipft_tasks.train import launch as jobs
job = jobs.Job.read(Path(sys.argv[1]))
try:
    print(jobs.train(job, build.prepare(build.load(job.start), job.spec), lambda rows: None))
except TransientError as error:
    sys.exit(f"again: {error}")
"""


def job(out: Path) -> dict[str, Any]:
    """How far apart the weights end, over how far they moved, and what the loop said of its speed."""
    from clipft_tasks.core.decision import Decision
    from clipft_tasks.model import build
    from clipft_tasks.train import launch as jobs
    from clipft_tasks.train import plan as plans
    from clipft_tasks.train import start_defaults
    from clipft_tasks.train.checkpoints import Checkpoints

    tag = versioning.find("", "general").tag
    spec = RunSpec.from_flat(
        {"domain": "general", "source": "made", "model.start": str(starter(out / "start")), "train.batch": PAIRS, "train.epochs": 3,
         "train.keep": "last", "train.checkpoint_seconds": 1000.0, "train.learning_rate": 1e-4, "resolution.train": 224,
         "resolution.schedule": "plain", "memory.precision": "fp32", "memory.compile": "off"}
    )  # fmt: skip
    clip = build.load(spec.model.start)
    spec = start_defaults.settle(spec, clip)
    build.prepare(clip, spec)
    start = {name: value.clone() for name, value in clip.state().items()}
    version = versioning.find(tag, "general")
    plan = plans.make(spec, clip, version.card.counts["train"])
    clip.to("cpu")
    for line in plan.lines():
        print(line, flush=True)
    count = plan.processes.value
    alone = plan.model_copy(update={"processes": Decision(1, "for comparison")})
    ends: dict[str, dict[str, Tensor]] = {}
    metrics: dict[str, Any] = {"processes": count}

    def job_of(spec: RunSpec, plan: Plan, folder: Path) -> jobs.Job:
        return jobs.Job(spec=spec, plan=plan, start=spec.model.start, dataset=tag, key="bench", folder=folder)

    def run(name: str, folder: str, plan: Plan) -> None:
        place = out / folder
        place.mkdir(exist_ok=True)
        model = build.prepare(build.load(spec.model.start), spec)
        metrics[name] = jobs.train(job_of(spec, plan, place), model, lambda rows: None)
        ends[name] = {n: v.cpu() for n, v in model.state().items()}

    run("one", "one", alone)
    run("several", "several", plan)
    begun = out / "stopped"
    begun.mkdir()
    often = spec.model_copy(update={"train": spec.train.model_copy(update={"checkpoint_seconds": 0.0})})
    job_of(often, plan, begun).write()
    starts = subprocess.Popen([sys.executable, "-c", START, str(begun)], stderr=subprocess.PIPE, text=True)
    while starts.poll() is None and not list((begun / "checkpoints").glob("*.pt")):
        time.sleep(0.1)
    starts.send_signal(signal.SIGTERM)
    _, said = starts.communicate()
    stopped = Checkpoints(begun / "checkpoints", "bench").latest()
    metrics["stopped"] = {"said": said.strip().splitlines()[-1], "step": stopped["step"] if stopped else None}
    del stopped
    run("several, then one", "stopped", alone)

    def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        return float(torch.cat([(a[n] - b[n]).flatten() for n in a if a[n].is_floating_point()]).norm())

    moved = metrics["moved"] = apart(ends["one"], start)
    for name in ("several", "several, then one"):
        metrics[f"one beside {name}"] = apart(ends["one"], ends[name]) / moved
    metrics["several beside several, then one"] = apart(ends["several"], ends["several, then one"]) / moved
    return metrics


# All of it -----------------------------------------------------------------------------------------------------------


def part(name: str, processes: int, out: Path, gpus: str = "", models: str = "") -> subprocess.Popen[str]:
    """A part of this bench in as many processes; each writes what it found to a file of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "bench.parallel", "--part", name, "--out", str(out), "--models", models]
    env = os.environ | ({"CUDA_VISIBLE_DEVICES": gpus} if gpus else {}) | {"OMP_NUM_THREADS": "4"}
    return subprocess.Popen(command, env=env, text=True)


def found(name: str, processes: int, out: Path, running: subprocess.Popen[str], models: str = "") -> dict[str, Any]:
    if running.wait():
        return {"failed": running.returncode}
    return dict(json.loads((out / f"{name}-{processes}-{models}.json").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="gradients,speed,job")
    parser.add_argument("--processes", type=int, default=torch.cuda.device_count())
    parser.add_argument("--home", type=Path)
    parser.add_argument("--prepare", type=Path)
    parser.add_argument("--part", default="")
    parser.add_argument("--models", default="")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.prepare:
        prepare(asked.prepare)
        return
    if asked.part:
        of_part = gradients(asked.out) if asked.part == "gradients" else speed(asked.models.split(","))
        if os.environ.get("RANK", "0") == "0":
            name = f"{asked.part}-{os.environ.get('WORLD_SIZE', '1')}-{asked.models}.json"
            (asked.out / name).write_text(json.dumps(of_part))
        return

    several = asked.processes
    metrics: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if "gradients" in asked.only:
            found("gradients", 1, out, part("gradients", 1, out, "0"))
            metrics["gradients"] = found("gradients", several, out, part("gradients", several, out))
        if "speed" in asked.only:
            names = ",".join(name for name, _ in CASES)
            metrics["speed"] = found("speed", several, out, part("speed", several, out, models=names), names)
        if "job" in asked.only:
            home = asked.home or out / "home"
            os.environ["CLIPFT_HOME"] = str(home)
            settings.cache_clear()
            if not asked.home:
                prepare(home)
            metrics["job"] = job(out)
    show(metrics, several)
    print(json.dumps(metrics))


def show(metrics: dict[str, Any], several: int) -> None:
    print(f"{several} x {torch.cuda.get_device_name()}, torch {torch.__version__}")
    if found := metrics.get("gradients"):
        print("\n| gradient of " + f"{several} processes beside one | relative difference |\n|---|---|")
        for name, value in found.items():
            print(f"| {name} | {value:.1e} |")
    if "speed" in metrics and "failed" not in metrics["speed"]:
        print(f"\n| model, pairs a GPU | one GPU | {several} GPUs | speedup | one GPU with the whole batch | over that |")
        print("|---|---|---|---|---|---|")
        for name, each in CASES:
            of = metrics["speed"][name]
            one, both, whole = (of.get(k, {}).get("pairs", float("nan")) for k in ("one", "several", "one, whole batch"))
            print(f"| {name}, {each} | {one:,.0f} | {both:,.0f} | {both / one:.2f}x | {whole:,.0f} | {both / whole:.2f}x |")
    if "job" in metrics:
        print("\n| weights at the end | apart, over how far they moved |\n|---|---|")
        for name, value in metrics["job"].items():
            if "beside" in name:
                print(f"| {name} | {value:.1e} |")
        print(metrics["job"]["stopped"])


if __name__ == "__main__":
    main()

"""Full fine-tune epochs on a CPU beside open_clip's own trainer: python -m bench.train_cpu [--epochs N]

The same images (elpv, monocrystalline), start model, batch, size and number of pairs; each with its own input pipeline. The
scores are balanced accuracies of the test split, by the same evaluation.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from clipft_tasks.data.versioning import Dataset
    from clipft_tasks.model.clip import Clip

BATCH, SIDE, RATE = 64, 128, 2e-4
STEP = re.compile(r"Batch \(t\): ([0-9.]+)")


def prepare() -> "Dataset":
    """The data set, through the ordinary stages."""
    from clipft_tasks.data import versioning
    from clipft_tasks.spec import RunSpec
    from clipft_tasks.stages import ingest, version

    spec = RunSpec.from_flat({"domain": "industrial", "source": "elpv:mono"})
    made = version.run(spec, ingest.run(spec).staging)
    return versioning.fetch(versioning.find(made.dataset, "industrial"))


def score(clip: "Clip", dataset: "Dataset") -> float:
    from clipft_tasks.evaluate import zero_shot

    return zero_shot.predict(clip, zero_shot.Task(dataset, SIDE, BATCH)).sums("balanced_accuracy").value


def ours(dataset: "Dataset", epochs: int, folder: Path, more: dict[str, Any] | None = None) -> dict[str, float]:
    """Plan, decode, train; the decoding counts.

    Args:
        more: fields of the spec.
    """
    from clipft_tasks.model import build
    from clipft_tasks.spec import RunSpec
    from clipft_tasks.train import launch, plan, start_defaults

    spec = RunSpec.from_flat(
        {"domain": "industrial", "train.epochs": epochs, "train.batch": BATCH, "train.learning_rate": RATE,
         "resolution.train": SIDE, "train.checkpoint_seconds": 1e9, "objective.auxiliary": [], "train.layer_decay": 1.0} | (more or {})
    )  # fmt: skip
    clip = build.load("starter")
    spec = start_defaults.settle(spec, clip)
    build.prepare(clip, spec)
    decided = plan.make(spec, clip, len(dataset.split("train")))
    for line in decided.lines():
        print(line, file=sys.stderr)
    began = time.perf_counter()
    done = launch.train(
        launch.Job(spec=spec, plan=decided, start="starter", dataset=dataset.version.tag, key="bench", folder=folder),
        clip,
        lambda rows: None,
    )
    seconds = time.perf_counter() - began
    return {"pairs_per_second": done["pairs"] / seconds, "pairs": done["pairs"], "score": score(clip, dataset),
            "checkpoint_share": done["checkpoint_share"]}  # fmt: skip


def open_clip_train(
    dataset: "Dataset", folder: Path, epochs: int, side: int, seed: int, rate: float | None, extra: dict[str, Any] | None = None
) -> tuple["Clip", float, int]:
    """open_clip_train.main on the same images as files, from the same start model.

    Args:
        rate: learning rate, with a warm-up of a tenth; None leaves rate, warm-up and weight decay at the trainer's defaults.
    Returns: the model, pairs per second of its steps, pairs.
    """
    from clipft_tasks.devices.hardware import usable_cores
    from clipft_tasks.model import build, starter

    (folder / "images").mkdir()
    lines = ["filepath\ttitle"]
    for row in dataset.split("train").itertuples():
        path = folder / "images" / f"{row.key}.png"
        path.write_bytes(dataset.image_bytes(row))
        lines.append(f"{path}\t{row.caption}")
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    steps = (len(lines) - 1) // BATCH
    arguments = {
        "model": "local-dir:.", "train-data": folder / "train.tsv", "dataset-type": "csv", "csv-separator": "\t", "csv-img-key": "filepath",
        "csv-caption-key": "title", "batch-size": BATCH, "epochs": epochs, "workers": usable_cores(), "device": "cpu",
        "precision": "fp32", "force-image-size": side, "logs": folder / "logs", "name": "peer", "log-every-n-steps": 1,
        "save-frequency": epochs, "seed": seed,
    }  # fmt: skip
    if rate:
        arguments |= {"lr": rate, "wd": 0.05, "warmup": max(1, steps * epochs // 10), "grad-clip-norm": 1.0}
    command = [sys.executable, "-m", "open_clip_train.main"]
    for name, value in (arguments | (extra or {})).items():
        command += [f"--{name}", str(value)]
    env = os.environ | {"OMP_NUM_THREADS": str(usable_cores()), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=starter.build(), env=env, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        raise SystemExit(said[-3000:])
    seconds = [float(s) for s in STEP.findall(said)]
    clip = build.load("starter", domain=dataset.version.domain)
    state = torch.load(folder / "logs" / "peer" / "checkpoints" / f"epoch_{epochs}.pt", weights_only=False)["state_dict"]
    clip.model.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    return clip, BATCH * len(seconds) / sum(seconds), BATCH * len(seconds)


def peers(dataset: "Dataset", epochs: int, folder: Path) -> dict[str, float]:
    clip, speed, pairs = open_clip_train(dataset, folder, epochs, SIDE, 0, RATE, {"aug-cfg": "scale=(0.85,1.0)"})
    return {"pairs_per_second": speed, "pairs": pairs, "score": score(clip, dataset)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    epochs = parser.parse_args().epochs
    with tempfile.TemporaryDirectory() as home:
        os.environ["CLIPFT_HOME"] = home
        dataset = prepare()
        metrics = {}
        for name, run in (("open_clip_train", peers), ("clipft", ours)):
            folder = Path(home, name)
            folder.mkdir()
            metrics[name] = run(dataset, epochs, folder)
            print(json.dumps({name: metrics[name]}), file=sys.stderr, flush=True)
    ratio = metrics["clipft"]["pairs_per_second"] / metrics["open_clip_train"]["pairs_per_second"]
    print(f"elpv mono, starter, {SIDE} px, batch {BATCH}, {epochs} epochs, {torch.get_num_threads()} threads")
    print("| trainer | pairs/s | pairs | balanced accuracy |\n|---|---|---|---|")
    for name, f in metrics.items():
        print(f"| {name} | {f['pairs_per_second']:.1f} | {f['pairs']:.0f} | {f['score']:.3f} |")
    print(f"clipft trains {ratio:.2f} times as many pairs a second.")
    print(json.dumps(metrics | {"ratio": ratio}))


if __name__ == "__main__":
    main()

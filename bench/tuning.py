"""Whether tuning helps where it counts, on the test split: python -m bench.tuning [--data NAME] [--seeds N] [--trials N] [--epochs N]

Per seed: a study with the space of the domain's template and the learning rate, judged on the validation split as always; then the
template's values and the study's decision, trained and scored on the test split that no trial saw. Where the study leaves the
template's values both are one model, and the difference is zero. `--rate 0.125` spoils the template: its learning rate is an eighth
of what it should be. `--cores 2` gives each seed two cores of its own.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.parallel_seeds import Lanes, Run, arguments, mean
from bench.quality import DATA, Bench

if TYPE_CHECKING:
    from clipft_tasks.evaluate.predictions import Predictions
    from clipft_tasks.spec import RunSpec


def scored(bench: Bench, spec: "RunSpec", folder: Path) -> "Predictions":
    """What the model that `spec` trains says of the test rows."""
    from clipft_tasks.evaluate import zero_shot
    from clipft_tasks.model import build
    from clipft_tasks.train import launch, plan

    folder.mkdir()
    clip = build.prepare(build.load("starter"), spec)
    decided = plan.make(spec, clip, len(bench.dataset.split("train")))
    tag = bench.dataset.version.tag
    launch.train(
        launch.Job(spec=spec, plan=decided, start="starter", dataset=tag, key=folder.name, folder=folder),
        clip,
        lambda rows: None,
    )
    return zero_shot.predict(clip, zero_shot.Task(bench.dataset, spec.resolution.side, 64))


def one(ask: Run) -> Run:
    """One seed's study and what came of it, in this process: {"data", "seed", "trials", "epochs", "side", "rate"}."""
    from clipft_tasks.evaluate import predictions
    from clipft_tasks.spec import RunSpec
    from clipft_tasks.stages import plan, tune

    bench, seed = Bench(ask["data"]), ask["seed"]
    size = {"resolution.train": ask["side"], "resolution.evaluate": [ask["side"]], "train.epochs": ask["epochs"]}
    study = {"tune.trials": ask["trials"], "tune.learning_rate": True, "tune.patience": ask["trials"], "tune.minutes": 60}
    spec = RunSpec.from_flat(bench.flat | size | study | {"train.seed": seed, "tune.seed": seed})
    spec = spec.changed({"train.learning_rate": ask["rate"] * spec.train.peak_rate})
    began = time.perf_counter()
    decided = tune.run(spec, plan.run(spec))
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory(dir=os.environ["CLIPFT_HOME"]) as folder:
        old = scored(bench, spec, Path(folder, "template"))
        new = scored(bench, spec.changed(decided.values), Path(folder, "tuned")) if decided.values else old
    metric = spec.gate.metric
    gain = predictions.paired_gain(new, old, metric, 1000)
    return {
        "seed": seed, "metric": metric, "template": old.sums(metric).value, "tuned": new.sums(metric).value,
        "gain": {"value": gain.value, "low": gain.low, "high": gain.high}, "values": decided.values, "reason": decided.reason,
        "stopped": decided.stopped, "trials": len(decided.tried), "seconds": round(seconds),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=list(DATA), default="elpv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--rate", type=float, default=1.0, help="times the template's learning rate, where the study begins")
    asked = arguments(parser, one)
    size = {"data": asked.data, "trials": asked.trials, "epochs": asked.epochs, "side": asked.side, "rate": asked.rate}
    with tempfile.TemporaryDirectory() as home:
        os.environ["CLIPFT_HOME"] = home
        Bench(asked.data)  # the dataset version and the starter, once
        rows = Lanes("bench.tuning", asked.cores).run([{"seed": seed} | size for seed in range(asked.seeds)])
    print(
        f"{asked.data}, starter, {asked.side} px, {asked.epochs} epochs, {asked.trials} trials a study, {asked.rate:g} times the rate"
    )
    print("| seed | template | tuned | gain, paired by group | decision |\n|---|---|---|---|---|")
    for r in rows:
        g = r["gain"]
        gained = f"{g['value']:+.3f} [{g['low']:+.3f}, {g['high']:+.3f}]"
        print(f"| {r['seed']} | {r['template']:.3f} | {r['tuned']:.3f} | {gained} | {r['reason']} |")
    over = mean([r["gain"]["value"] for r in rows])
    print(f"mean gain {over['value']:+.3f} [{over['low']:+.3f}, {over['high']:+.3f}] over {len(rows)} seeds")
    worse = [r["seed"] for r in rows if r["gain"]["high"] < 0]
    print(json.dumps({"seeds": rows, "gain": over, "surely_worse": worse}))


if __name__ == "__main__":
    main()

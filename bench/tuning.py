"""Whether tuning helps where it counts, on the test split: python -m bench.tuning [--seeds N] [--trials N] [--epochs N] [--side N]

Per seed: a study on elpv (monocrystalline) with the industrial template's space and the learning rate, judged on the validation
split as always; then the template's values and the study's decision, trained and scored on the test split that no trial saw.
Where the study leaves the template's values both are one model, and the difference is zero.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.quality import Bench, mean


def scored(bench: Bench, spec: Any, folder: Path) -> Any:
    """What the model that `spec` trains says of the test rows."""
    from clipft_tasks.evaluate import zero_shot
    from clipft_tasks.model import build
    from clipft_tasks.train import job, plan

    folder.mkdir()
    clip = build.prepare(build.load("starter"), spec)
    decided = plan.make(spec, clip, len(bench.dataset.split("train")))
    tag = bench.dataset.version.tag
    job.train(job.Job(spec, decided, "starter", tag, folder.name, "", folder), clip, lambda rows: None)
    return zero_shot.score(clip, bench.dataset, bench.domain, "test", spec.resolution.train, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--side", type=int, default=96)
    asked = parser.parse_args()

    from clipft_tasks.evaluate import zero_shot
    from clipft_tasks.spec import RunSpec
    from clipft_tasks.stages import plan, tune

    with tempfile.TemporaryDirectory() as home:
        os.environ["CLIPFT_HOME"] = home
        bench = Bench("elpv")
        size = {"resolution.train": asked.side, "resolution.evaluate": [asked.side], "train.epochs": asked.epochs}
        study = {"tune.trials": asked.trials, "tune.learning_rate": True, "tune.patience": asked.trials, "tune.minutes": 60}
        rows: list[dict[str, Any]] = []
        for seed in range(asked.seeds):
            spec = RunSpec.from_flat(bench.flat | size | study | {"train.seed": seed, "tune.seed": seed})
            began = time.perf_counter()
            decided = tune.run(spec, plan.run(spec))
            seconds = time.perf_counter() - began
            old = scored(bench, spec, Path(home, f"template-{seed}"))
            new = scored(bench, spec.changed(decided["values"]), Path(home, f"tuned-{seed}")) if decided["values"] else old
            metric = spec.gate.metric
            gain = zero_shot.difference(new, old, metric, 1000)
            rows.append(
                {"seed": seed, "metric": metric, "template": old.sums(metric).value, "tuned": new.sums(metric).value,
                 "gain": {k: gain[k] for k in ("value", "low", "high")}, "values": decided["values"], "reason": decided["reason"],
                 "stopped": decided["stopped"], "trials": len(decided["tried"]), "seconds": round(seconds)}
            )  # fmt: skip
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(f"elpv mono, starter, {asked.side} px, {asked.epochs} epochs, {asked.trials} trials a study")
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

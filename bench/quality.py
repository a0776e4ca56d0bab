"""What a domain's default recipe is worth beside open_clip's own trainer: python -m bench.quality [--data NAME …] [--seeds N]

Both start from the same model and see the same training rows at the same size, for the same wall-clock time on the CPU: how
long the recipe took in its first run. The peer is given whole epochs, rounded up, at the speed that it shows in the same
minutes; so a busy machine changes the time that both get, not who gets more. It runs with its documented defaults, and with the
best of five learning rates, chosen by the *test* score, which favours it. Domain score and retention are those of the same
evaluation, on rows and pictures that no training saw.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.train_cpu import open_clip_train

RATES = (1e-5, 5e-5, 1e-4, 2e-4, 5e-4)
DATA = {
    "elpv": {"domain": "industrial", "source": "elpv:mono"},
    "molecules": {"domain": "scientific", "source": "molecules:900"},
}
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t for the mean of so many seeds


@dataclass
class Bench:
    """One data set, its default recipe, and how a model is judged on it."""

    name: str

    def __post_init__(self) -> None:
        from clipft_tasks.data import versioning
        from clipft_tasks.domains import get_domain
        from clipft_tasks.spec import RunSpec
        from clipft_tasks.stages import ingest, version

        self.flat = DATA[self.name] | {"train.checkpoint_seconds": 1e9}
        self.spec = RunSpec.from_flat(self.flat)
        made = version.run(self.spec, ingest.run(self.spec)["staging"])
        self.dataset = versioning.fetch(versioning.find(made["dataset"], self.spec.domain))
        self.domain = get_domain(self.spec.domain)
        self.side = self.spec.resolution.train

    def judge(self, clip: Any) -> dict[str, float]:
        from clipft_tasks.evaluate import retention, zero_shot

        metric = self.spec.gate.metric
        if metric not in zero_shot.metrics(self.dataset) or self.name == "molecules":
            metric = "image_to_text_r1"
        found = zero_shot.score(clip, self.dataset, self.domain, "test", self.side, 64)
        value = zero_shot.summary(found, [metric], 100)[metric]["value"]
        return {"score": float(value), "retention": retention.score(clip, self.side)["retention"]["value"]}

    def start(self) -> Any:
        from clipft_tasks.model import build

        return build.prepare(build.load("starter"), self.spec)

    def ours(self, seed: int, folder: Path) -> dict[str, float]:
        """The default recipe, decoding included. The package's kept checkpoint is what is judged."""
        from clipft_tasks.spec import RunSpec
        from clipft_tasks.train import job, plan

        spec = RunSpec.from_flat(self.flat | {"train.seed": seed})
        clip = self.start()
        decided = plan.make(spec, clip, len(self.dataset.split("train")))
        began = time.perf_counter()
        done = job.train(
            job.Job(spec, decided, "starter", self.dataset.version.tag, str(seed), "", folder), clip, lambda rows: None
        )
        return {"seconds": time.perf_counter() - began, "pairs": done["pairs"], **self.judge(clip)}

    def theirs(self, folder: Path, epochs: int, seed: int, rate: float | None) -> dict[str, float]:
        """open_clip_train; `rate` None: with its documented defaults."""
        clip, speed, pairs = open_clip_train(self.dataset, folder, epochs, self.side, seed, rate)
        return {"seconds": pairs / speed, "pairs": pairs, "speed": speed, **self.judge(clip)}


def mean(values: list[float]) -> dict[str, float]:
    """Mean over seeds with its 95% interval."""
    spread = T95.get(len(values), 1.96) * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {
        "value": statistics.fmean(values),
        "low": statistics.fmean(values) - spread,
        "high": statistics.fmean(values) + spread,
    }


def measured(bench: Bench, seeds: int, folder: Callable[[str], Path]) -> dict[str, Any]:
    def tell(what: str, run: dict[str, float]) -> dict[str, float]:
        print(f"{bench.name}: {what}: {json.dumps(run)}", file=sys.stderr, flush=True)
        return run

    before = tell("start", bench.judge(bench.start()))
    speed = tell("its speed", bench.theirs(folder("speed"), 1, 0, RATES[2]))["speed"]
    ours = [tell("clipft", bench.ours(0, folder("ours-0")))]
    rows = len(bench.dataset.split("train"))
    epochs = max(1, math.ceil(ours[0]["seconds"] * speed / rows))
    ours += [tell("clipft", bench.ours(seed, folder(f"ours-{seed}"))) for seed in range(1, seeds)]
    swept = {rate: tell(f"peer at {rate:g}", bench.theirs(folder(f"{rate}-0"), epochs, 0, rate)) for rate in RATES}
    best = max(swept, key=lambda rate: swept[rate]["score"])
    tuned = [swept[best]] + [
        tell(f"peer at {best:g}", bench.theirs(folder(f"{best}-{s}"), epochs, s, best)) for s in range(1, seeds)
    ]
    plain = [tell("peer's defaults", bench.theirs(folder(f"plain-{s}"), epochs, s, None)) for s in range(seeds)]
    runs = {"clipft": ours, f"open_clip_train, best of five rates ({best:g})": tuned, "open_clip_train, its defaults": plain}
    return {
        "before": before,
        "epochs": {"clipft": bench.spec.train.epochs, "peer": epochs},
        "rows": {"train": rows, "test": len(bench.dataset.split("test"))},
        "runs": {
            who: {key: mean([r[key] for r in found]) for key in ("score", "retention", "seconds")}
            for who, found in runs.items()
        },
        "ahead": {
            who: {key: mean([a[key] - b[key] for a, b in zip(ours, found, strict=True)]) for key in ("score", "retention")}
            for who, found in runs.items()
            if who != "clipft"
        },
    }


def shown(name: str, figures: dict[str, Any]) -> None:
    def cell(v: dict[str, float]) -> str:
        return f"{v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]"

    start, rows = figures["before"], figures["rows"]
    print(f"\n{name}: {rows['train']} training rows, {rows['test']} test rows; the peer had {figures['epochs']['peer']} epochs")
    print("| trainer | domain score | retention | seconds |\n|---|---|---|---|")
    print(f"| start model | {start['score']:.3f} | {start['retention']:.3f} | |")
    for who, f in figures["runs"].items():
        print(f"| {who} | {cell(f['score'])} | {cell(f['retention'])} | {f['seconds']['value']:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["CLIPFT_HOME"] = home
        found = {}
        for name in arguments.data:

            def folder(what: str, name: str = name) -> Path:
                made = Path(home, "bench", name, what)
                made.mkdir(parents=True)
                return made

            found[name] = measured(Bench(name), arguments.seeds, folder)
            shown(name, found[name])
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""What a domain's default recipe is worth beside open_clip's own trainer: python -m bench.quality [--data NAME …] [--seeds N]

Both start from the same model and see the same training rows at the same size, for the same wall-clock time on the CPU: how
long the slowest run of the recipe took. The peer is given whole epochs, rounded up, at the speed that it shows beside the
recipe's runs; so a busy machine changes the time that both get, not who gets more. It runs with its documented defaults, and
with the best of five learning rates, chosen by the *test* score, which favors it. Domain score and general score are those of the
same evaluation, on rows and images that no training saw.

`--cores 2` gives each run two cores of its own and fills the machine with runs; without it, one at a time has them all.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.parallel_seeds import Lanes, Run, arguments, mean
from bench.train_cpu import open_clip_train

if TYPE_CHECKING:
    from clipft_tasks.model.clip import Clip

K = TypeVar("K")

RATES = (1e-5, 5e-5, 1e-4, 2e-4, 5e-4)
DATA = {
    "elpv": {"domain": "industrial", "source": "elpv:mono"},
    "molecules": {"domain": "scientific", "source": "molecules:900"},
    "brain": {"domain": "medical", "source": "bench.brain_regions:BrainRegions:900"},
}


@dataclass
class Bench:
    """One data set, its default recipe, and how a model is judged on it."""

    name: str

    def __post_init__(self) -> None:
        from clipft_tasks.data import versioning
        from clipft_tasks.model import build
        from clipft_tasks.spec import RunSpec
        from clipft_tasks.stages import ingest, version
        from clipft_tasks.train.start_defaults import settle

        spec = RunSpec.from_flat(DATA[self.name] | {"train.checkpoint_seconds": 1e9})
        self.spec = settle(spec, build.load("starter"))
        self.flat = self.spec.flat()
        if not versioning.versions(self.spec.domain):
            version.run(self.spec, ingest.run(self.spec).staging)
        self.dataset = versioning.fetch(versioning.find("", self.spec.domain))
        self.side = self.spec.resolution.side

    def judge(self, clip: "Clip") -> Run:
        from clipft_tasks.evaluate import forgetting, zero_shot

        found = zero_shot.predict(clip, zero_shot.Task(self.dataset, self.side, 64))
        general = forgetting.score(clip, self.side)
        if general is None:
            raise SystemExit("The general set is not installed: pip install clipft[demo]")
        return {"score": found.sums(self.spec.gate.metric).value, "general_score": general.value}

    def start(self) -> "Clip":
        from clipft_tasks.model import build

        return build.prepare(build.load("starter"), self.spec)

    def ours(self, seed: int, folder: Path) -> Run:
        """The default recipe, decoding included. The package's kept checkpoint is what is judged."""
        from clipft_tasks.spec import RunSpec
        from clipft_tasks.train import launch, plan

        spec = RunSpec.from_flat(self.flat | {"train.seed": seed})
        clip = self.start()
        decided = plan.make(spec, clip, len(self.dataset.split("train")))
        began = time.perf_counter()
        done = launch.train(
            launch.Job(
                spec=spec, plan=decided, start="starter", dataset=self.dataset.version.tag, key=str(seed), folder=folder
            ),
            clip,
            lambda rows: None,
        )
        return {"seconds": time.perf_counter() - began, "pairs": done["pairs"], **self.judge(clip)}

    def theirs(self, seed: int, folder: Path, epochs: int, rate: float | None) -> Run:
        """open_clip_train; `rate` None: with its documented defaults."""
        clip, speed, pairs = open_clip_train(self.dataset, folder, epochs, self.side, seed, rate)
        return {"seconds": pairs / speed, "pairs": pairs, "speed": speed, **self.judge(clip)}


def one(ask: Run) -> Run:
    """A single run, in this process: {"data", "who": start, ours or theirs, and its arguments}."""
    bench, rest = Bench(ask["data"]), {k: v for k, v in ask.items() if k not in ("data", "who")}
    if ask["who"] == "start":
        return bench.judge(bench.start())
    with tempfile.TemporaryDirectory(dir=os.environ["CLIPFT_HOME"]) as folder:
        return getattr(bench, ask["who"])(folder=Path(folder), **rest)  # type: ignore[no-any-return]


def measured(names: Sequence[str], seeds: int, run: Callable[[Sequence[Run]], list[Run]]) -> dict[str, Any]:
    """Every metric of every data set: the recipe and the peer's speed first, then what the peer makes of the same time."""

    def each(asks: Mapping[K, Run]) -> dict[K, Run]:
        return dict(zip(asks, run(list(asks.values())), strict=True))

    def ask(name: str, who: str, **more: object) -> Run:
        return {"data": name, "who": who, **more}

    first = each(
        {(n, "ours", s): ask(n, "ours", seed=s) for n in names for s in range(seeds)}
        | {(n, "speed"): ask(n, "theirs", seed=0, epochs=1, rate=RATES[2]) for n in names}
        | {(n, "start"): ask(n, "start") for n in names}
    )
    benches = {n: Bench(n) for n in names}
    rows = {n: {split: len(b.dataset.split(split)) for split in ("train", "test")} for n, b in benches.items()}
    ours = {n: [first[n, "ours", s] for s in range(seeds)] for n in names}
    epochs = {
        n: max(1, math.ceil(max(r["seconds"] for r in ours[n]) * first[n, "speed"]["speed"] / rows[n]["train"])) for n in names
    }
    second = each(
        {(n, rate, 0): ask(n, "theirs", seed=0, epochs=epochs[n], rate=rate) for n in names for rate in RATES}
        | {(n, None, s): ask(n, "theirs", seed=s, epochs=epochs[n], rate=None) for n in names for s in range(seeds)}
    )
    best = {n: max(RATES, key=lambda rate: second[n, rate, 0]["score"]) for n in names}
    third = second | each(
        {(n, best[n], s): ask(n, "theirs", seed=s, epochs=epochs[n], rate=best[n]) for n in names for s in range(1, seeds)}
    )
    found = {}
    for n in names:
        runs = {
            "clipft": ours[n],
            f"open_clip_train, best of five rates ({best[n]:g})": [third[n, best[n], s] for s in range(seeds)],
            "open_clip_train, its defaults": [second[n, None, s] for s in range(seeds)],
        }
        found[n] = {
            "before": first[n, "start"],
            "epochs": {"clipft": benches[n].spec.train.epochs, "peer": epochs[n]},
            "rows": rows[n],
            "sweep": {f"{rate:g}": {k: second[n, rate, 0][k] for k in ("score", "general_score")} for rate in RATES},
            "runs": {
                who: {key: mean([r[key] for r in them]) for key in ("score", "general_score", "seconds")}
                for who, them in runs.items()
            },
            "ahead": {
                who: {
                    key: mean([a[key] - b[key] for a, b in zip(ours[n], them, strict=True)])
                    for key in ("score", "general_score")
                }
                for who, them in runs.items()
                if who != "clipft"
            },
        }
    return found


def shown(name: str, metrics: dict[str, Any]) -> None:
    def cell(v: dict[str, float]) -> str:
        return f"{v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]"

    start, rows = metrics["before"], metrics["rows"]
    print(f"\n{name}: {rows['train']} training rows, {rows['test']} test rows; the peer had {metrics['epochs']['peer']} epochs")
    print("| trainer | domain score | general score | seconds |\n|---|---|---|---|")
    print(f"| start model | {start['score']:.3f} | {start['general_score']:.3f} | |")
    for who, f in metrics["runs"].items():
        print(f"| {who} | {cell(f['score'])} | {cell(f['general_score'])} | {f['seconds']['value']:.0f} |")
    for who, f in metrics["ahead"].items():
        print(f"ahead of {who}: score {cell(f['score'])}, general score {cell(f['general_score'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--seeds", type=int, default=3)
    asked = arguments(parser, one)
    with tempfile.TemporaryDirectory() as home:
        os.environ["CLIPFT_HOME"] = home
        for name in asked.data:
            Bench(name)  # the dataset version and the starter, once
        found = measured(asked.data, asked.seeds, Lanes("bench.quality", asked.cores).run)
    for name in asked.data:
        shown(name, found[name])
    print(json.dumps(found))


if __name__ == "__main__":
    main()

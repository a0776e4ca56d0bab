"""Domain score against forgetting, of ways to fine-tune, in one harness: python -m bench.frontier [--data NAME …] [--seeds N]

All start from the starter and see the same training rows at the same size, on the same cores. First each way trains one epoch; then
each gets as many whole epochs as fit best into the seconds that the domain's default recipe takes. With `--epochs N` all get N instead:
equal pairs. open_clip's trainer runs with its defaults and with five rates, of which the best is the best by *test* score.
sentence-transformers goes into an environment of its own (`--environment`), where this one has none. docs/frontier.md says more.

`--prepare --home FOLDER` makes data sets and start model there, and `--home FOLDER` takes them to a machine without DVC or network.
What runs found is kept in the folder as well, so that `--minutes N` does the work in pieces.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from bench.frontier import carot, sentence_transformers_run
from bench.frontier.methods import METHODS, SOUP_RATES, Method
from bench.parallel_seeds import Lanes, Run, arguments, mean
from bench.quality import DATA, Bench
from bench.train_cpu import open_clip_train

if TYPE_CHECKING:
    import torch

    from clipft_tasks.data.versioning import Dataset
    from clipft_tasks.model.clip import Clip
    from clipft_tasks.spec import RunSpec

DEFAULT, BEST = "clipft, default", "open_clip_train, best of five rates"
COLUMNS = ("score", "forgetting", "calibration_error", "corruption_score", "seconds", "peak_mib")
CORRUPTIONS, SEVERITIES = ("noise", "blur", "jpeg", "rotation"), 2
MORE = {"train.checkpoint_seconds": 1e9}


class Harness(Bench):
    """One data set, trained on in any way and judged in one.

    Args:
        rows: most of the training split, and of the test split; 0 for all.
    """

    def __init__(self, name: str, rows: int = 0) -> None:
        super().__init__(name)
        if rows:
            self.dataset = fewer(self.dataset, rows)

    def train(self, method: Method, seed: int, epochs: int, folder: Path) -> tuple["Clip", float, float]:
        """The model, the seconds of its training with decoding, and the peak of memory, MiB."""
        if method.trainer == "clipft":
            clip, seconds = self.trained(method, seed, epochs, folder)
            return clip, seconds, peak_mib(resource.RUSAGE_SELF)
        if method.trainer == "open_clip":
            clip, speed, pairs = open_clip_train(self.dataset, folder, epochs, self.side, seed, method.rate)
            seconds = pairs / speed
        else:
            clip, seconds = self.sentence_transformers(seed, epochs, folder)
        return clip, seconds, peak_mib(resource.RUSAGE_CHILDREN)

    def trained(self, method: Method, seed: int, epochs: int, folder: Path) -> tuple["Clip", float]:
        """By clipft: a run, or several whose weights are averaged; and the seconds of all."""
        from clipft_tasks.model import interpolation

        each, total, seconds = max(1, round(epochs / method.runs)), None, 0.0
        for number in range(method.runs):
            more: dict[str, object] = {"train.seed": seed * method.runs + number, "train.epochs": each}
            if method.runs > 1:
                more["train.rate_factor"] = SOUP_RATES[number]
            clip, first, taken = self.run(self.asked({**method.fields, **more}), folder / str(number))
            seconds += taken
            state = {name: value.detach().clone() for name, value in clip.state().items()}
            share = 1 / (number + 1)  # the running mean of the runs
            total = state if total is None else interpolation.between(total, state, share)
        assert total is not None
        clip.load_state(total if method.alpha == 1 else interpolation.between(first, total, method.alpha))
        return clip, seconds

    def asked(self, fields: Mapping[str, object]) -> "RunSpec":
        from clipft_tasks.model import build
        from clipft_tasks.spec import RunSpec
        from clipft_tasks.train.start_defaults import settle

        return settle(RunSpec.from_flat({**DATA[self.name], **MORE, **fields}), build.load("starter"))

    def run(self, spec: "RunSpec", folder: Path) -> tuple["Clip", dict[str, "torch.Tensor"], float]:
        """One run; the model, the weights that it began with, and the seconds after the plan."""
        from clipft_tasks.model import build
        from clipft_tasks.train import launch, plan

        folder.mkdir()
        clip = build.prepare(build.load("starter"), spec)
        first = {name: value.detach().clone() for name, value in clip.state().items()}
        carot.projection[:] = [carot.of(clip.model)]
        decided = plan.make(spec, clip, len(self.dataset.split("train")))
        job = launch.Job(
            spec=spec, plan=decided, start="starter", dataset=self.dataset.version.tag, key="frontier", folder=folder
        )
        began = time.perf_counter()
        launch.train_rows(job, clip, self.dataset)
        return clip, first, time.perf_counter() - began

    def sentence_transformers(self, seed: int, epochs: int, folder: Path) -> tuple["Clip", float]:
        from safetensors.torch import load_file

        from clipft_tasks.model import build

        table: dict[str, list[str]] = {"file": [], "caption": []}
        for row in self.dataset.split("train").itertuples():
            path = folder / f"{row.key}.png"
            path.write_bytes(self.dataset.image_bytes(row))
            table["file"].append(str(path))
            table["caption"].append(str(row.caption))
        (folder / "rows.json").write_text(json.dumps(table))
        ask = {"domain": self.spec.domain, "rows": str(folder / "rows.json"), "epochs": epochs, "seed": seed, "side": self.side,
               "folder": str(folder)}  # fmt: skip
        python = sentence_transformers_run.environment(Path(os.environ["FRONTIER_ENVIRONMENT"]))
        command = [str(python), "-m", sentence_transformers_run.__name__, json.dumps(ask)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        clip = build.load("starter", domain=self.spec.domain)
        clip.model.load_state_dict(load_file(folder / "end"))
        return clip, float(json.loads(done.stdout.splitlines()[-1])["seconds"])

    def columns(self, clip: "Clip") -> Run:
        """What is asked of a model, on rows and images that no training saw."""
        from clipft_tasks.evaluate import forgetting, robustness, zero_shot
        from clipft_tasks.evaluate.predictions import all_metrics

        task, metric = zero_shot.Task(self.dataset, self.side, 64), self.spec.gate.metric
        found, general = zero_shot.predict(clip, task), forgetting.score(clip, self.side)
        if general is None:
            raise SystemExit("The general set is not installed: pip install clipft[demo]")
        corrupted = robustness.score(clip, task, metric, names=CORRUPTIONS, severities=SEVERITIES)
        return {"score": found.sums(metric).value, "general_score": general.value,
                "calibration_error": all_metrics(found)[0].get("calibration_error", math.nan),
                "corruption_score": corrupted.mean_corruption_score}  # fmt: skip


def fewer(dataset: "Dataset", rows: int) -> "Dataset":
    """At most so many rows of each split, as a data set of its own: decoded images are kept by revision."""
    frame = dataset.frame.groupby("split", group_keys=False).sample(frac=1, random_state=0).groupby("split").head(rows)
    version = replace(dataset.version, revision=f"{rows:08x}{dataset.version.revision}"[:40])
    return replace(dataset, frame=frame.reset_index(drop=True), version=version)


def peak_mib(whose: int) -> float:
    return resource.getrusage(whose).ru_maxrss / 1024


def one(ask: Run) -> Run:
    """A single run, in this process: {"data", "rows", "method", "seed", "epochs", "judge"}; the start model without a method."""
    harness = Harness(ask["data"], ask["rows"])
    if not ask["method"]:
        return harness.columns(harness.start())
    with tempfile.TemporaryDirectory(dir=os.environ["CLIPFT_HOME"]) as folder:
        clip, seconds, peak = harness.train(METHODS[ask["method"]], ask["seed"], ask["epochs"], Path(folder))
        return {"seconds": seconds, "peak_mib": peak, **(harness.columns(clip) if ask["judge"] else {})}


class Found(TypedDict):
    """A data set's part of the last line."""

    start: Run
    epochs: dict[str, int]
    seeds: int
    table: dict[str, dict[str, dict[str, float]]]
    ahead_of_default: list[str]


def measured(data: str, names: Sequence[str], asked: argparse.Namespace, lanes: Lanes) -> Found:
    """Every column of every way, by seed, and what the default's place is."""

    def ask(method: str, seed: int = 0, epochs: int = 1, judge: bool = True) -> Run:
        return {"data": data, "rows": asked.rows, "method": method, "seed": seed, "epochs": epochs, "judge": judge}

    epochs = dict.fromkeys(names, asked.epochs)
    if not asked.epochs:
        as_fast = {name: alike(name, names) for name in names}
        timed = list(dict.fromkeys(as_fast.values()))
        runs = lanes.run([ask(name, epochs=METHODS[name].runs, judge=False) for name in timed])
        epoch = {name: run["seconds"] / METHODS[name].runs for name, run in zip(timed, runs, strict=True)}
        room = Harness(data).spec.train.epochs * epoch[as_fast[DEFAULT]]
        epochs = {name: max(METHODS[name].runs, round(room / epoch[as_fast[name]])) for name in names}
    start, *runs = lanes.run([ask("")] + [ask(n, s, epochs[n]) for s in range(asked.seeds) for n in names])
    by_name = {name: runs[i :: len(names)] for i, name in enumerate(names)}
    for run in runs:
        run["forgetting"] = start["general_score"] - run["general_score"]
    rates = [name for name in names if METHODS[name].rate]
    if rates:
        best = max(rates, key=lambda name: sum(run["score"] for run in by_name[name]))
        by_name[BEST] = by_name[best]
    table = {
        name: {c: mean([run[c] for run in found]) for c in COLUMNS} for name, found in by_name.items() if name not in rates
    }
    return {"start": start, "epochs": epochs, "seeds": asked.seeds, "table": table, "ahead_of_default": dominating(table)}


def alike(name: str, names: Sequence[str]) -> str:
    """The first of the ways whose epoch takes as long as this one's: the same but for rates, seeds and what becomes of the weights."""

    return next(
        way for way in names if (METHODS[way].trainer, METHODS[way].fields) == (METHODS[name].trainer, METHODS[name].fields)
    )


def dominating(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Ways that score more and forget less than the default recipe; none where it is on the front."""
    if DEFAULT not in table:
        return []
    score, lost = (table[DEFAULT][c]["value"] for c in ("score", "forgetting"))
    return [name for name, f in table.items() if f["score"]["value"] > score and f["forgetting"]["value"] < lost]


def plot(found: Mapping[str, Found], path: Path) -> None:
    """Score over forgetting, one panel a data set."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    fig, panels = plt.subplots(1, len(found), figsize=(4.5 * len(found) + 3, 4.5), squeeze=False)
    for axes, (data, part) in zip(panels[0], found.items(), strict=True):
        for number, (name, columns) in enumerate(part["table"].items()):
            x, y = columns["forgetting"]["value"], columns["score"]["value"]
            marker, size = ("*", 160) if name == DEFAULT else ("osD^v<>PX"[number % 9], 36)
            axes.scatter(x, y, s=size, marker=marker, color=f"C{number % 10}", label=name)
        axes.set(title=data, xlabel="forgetting (general score lost)", ylabel="domain score")
        axes.grid(alpha=0.3)
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
    fig.tight_layout()
    fig.savefig(path, dpi=120, bbox_inches="tight")


def shown(data: str, part: Found) -> None:
    print(
        f"\n{data}; {part['seeds']} seeds; the start model scores {part['start']['score']:.3f}, knows {part['start']['general_score']:.3f}"
    )
    print("| way | " + " | ".join(c.replace("_", " ") for c in COLUMNS) + f" |\n|{'---|' * (len(COLUMNS) + 1)}")
    for name, columns in part["table"].items():
        cells = [
            f"{columns[c]['value']:.0f}" if c in ("seconds", "peak_mib") else f"{columns[c]['value']:.3f}" for c in COLUMNS
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    ahead = part["ahead_of_default"]
    print(f"The default recipe is {'behind ' + ', '.join(ahead) if ahead else 'on the front'} of score and forgetting.")


def finite(value: object) -> object:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def home(kept: Path | None) -> Iterator[Path]:
    """The folder of data sets, start model and runs, as this process's home: a given one, or one for the time being."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (kept or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["CLIPFT_HOME"] = str(folder)
        yield folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--epochs", type=int, default=0, help="of every way; 0: as many as fit into the default recipe's seconds"
    )
    parser.add_argument("--rows", type=int, default=0, help="most rows of each split; 0: all")
    parser.add_argument("--environment", type=Path, default=Path(".clipft/bench-frontier"), help="for sentence-transformers")
    parser.add_argument(
        "--home", type=Path, help="keeps data sets, start model and what runs found; default: a temporary folder"
    )
    parser.add_argument("--prepare", action="store_true", help="make what --home keeps, and no more")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no run that would end later; --home keeps the others"
    )
    parser.add_argument("--plot", type=Path, default=Path(".clipft/frontier.png"))
    asked = arguments(parser, one)
    if not asked.epochs and DEFAULT not in asked.methods:
        parser.error(f"equal seconds are those of {DEFAULT!r}: name it too, or give --epochs")
    os.environ["FRONTIER_ENVIRONMENT"] = str(asked.environment.absolute())
    if any(METHODS[name].trainer == "sentence_transformers" for name in asked.methods):
        sentence_transformers_run.environment(asked.environment.absolute())
    with home(asked.home) as folder:
        for data in asked.data:
            Harness(data)  # the dataset version and the starter, once
        if asked.prepare:
            return
        lanes = Lanes("bench.frontier", asked.cores, folder / "runs.jsonl", asked.minutes)
        found = {data: measured(data, asked.methods, asked, lanes) for data in asked.data}
    for data, part in found.items():
        shown(data, part)
    asked.plot.parent.mkdir(parents=True, exist_ok=True)
    plot(found, asked.plot)
    print(json.dumps(finite(found)))


if __name__ == "__main__":
    main()

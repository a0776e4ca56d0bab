"""What the blended point keeps and what it costs, on rows that did not choose it: python -m bench.blend [--seeds N] [--epochs N] [--cores N]

Per seed: the industrial template on elpv (monocrystalline) without what holds it near the start (objective.auxiliary, layer decay), so
that there is something to win back; then ten points of the way, chosen from as the stage `blend` does, by validation split and
general set. Domain score is that of the test split; general score is that of the general set, one half of which
chooses and the other is reported.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.parallel_seeds import Lanes, Run, arguments, mean
from bench.quality import Bench

if TYPE_CHECKING:
    from clipft_tasks.model.clip import Clip

PLAIN = {"objective.auxiliary": [], "train.layer_decay": 1.0}


def known(clip: "Clip", side: int) -> tuple[float, float]:
    """General score on the half of the general set that chooses, and on the half that is reported."""
    from clipft_tasks.evaluate import forgetting

    chooses, reported = forgetting.score(clip, side, part="selection"), forgetting.score(clip, side, part="report")
    if chooses is None or reported is None:
        raise SystemExit("The general set is not installed: pip install clipft[demo]")
    return chooses.value, reported.value


def one(ask: Run) -> Run:
    """The path of one seed, in this process: {"seed", "epochs"}."""
    with tempfile.TemporaryDirectory(dir=os.environ["CLIPFT_HOME"]) as folder:
        return path_of(Bench("elpv"), ask["seed"], ask["epochs"], Path(folder))


def path_of(bench: Bench, seed: int, epochs: int, folder: Path) -> Run:
    """A training, its way back, and the point that is taken."""
    from clipft_tasks.evaluate import interpolation as paths
    from clipft_tasks.evaluate import zero_shot
    from clipft_tasks.model import build, interpolation
    from clipft_tasks.spec import RunSpec
    from clipft_tasks.train import launch, plan, validation

    spec = RunSpec.from_flat(bench.flat | PLAIN | {"train.seed": seed, "train.epochs": epochs, "blend.points": 10})
    clip = build.prepare(build.load("starter"), spec)
    first = {name: w.clone() for name, w in clip.state().items()}
    decided = plan.make(spec, clip, len(bench.dataset.split("train")))
    tag = bench.dataset.version.tag
    launch.train(
        launch.Job(spec=spec, plan=decided, start="starter", dataset=tag, key=str(seed), folder=folder), clip, lambda rows: None
    )
    last = {name: w.detach().clone() for name, w in clip.state().items()}
    points, reported = [], {}
    for i in range(spec.blend.points + 1):
        alpha = i / spec.blend.points
        clip.load_state(interpolation.between(first, last, alpha))
        result = validation.evaluate_on_validation(clip, bench.dataset, bench.side, 64, metric=spec.gate.metric)
        choosing, reporting = known(clip, bench.side)
        points.append(paths.Point(alpha, result.score, choosing))
        reported[alpha] = reporting
    taken = paths.choose(paths.curve(points), spec.blend.min_gain, spec.blend.max_forgetting)

    def on_test(alpha: float) -> float:
        clip.load_state(interpolation.between(first, last, alpha))
        found = zero_shot.predict(clip, zero_shot.Task(bench.dataset, bench.side, 64))
        return float(found.sums(spec.gate.metric).value)

    score = {alpha: on_test(alpha) for alpha in {0.0, taken.value, 1.0}}
    return {
        "seed": seed, "alpha": taken.value, "reason": taken.reason,
        "score": [score[0.0], score[taken.value], score[1.0]],
        "general_score": [reported[0.0], reported[taken.value], reported[1.0]],
        "gain_kept": (score[taken.value] - score[0.0]) / (score[1.0] - score[0.0]),
        "forgetting": (reported[0.0] - reported[taken.value]) / (reported[0.0] - reported[1.0]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    asked = arguments(parser, one)
    with tempfile.TemporaryDirectory() as home:
        os.environ["CLIPFT_HOME"] = home
        Bench("elpv")  # the dataset version and the starter, once
        rows = Lanes("bench.blend", asked.cores).run([{"seed": s, "epochs": asked.epochs} for s in range(asked.seeds)])
    print("| seed | alpha | score: start, blended, fine-tuned | general score, likewise | of the gain | of the forgetting |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        scores, kept = (", ".join(f"{x:.3f}" for x in r[name]) for name in ("score", "general_score"))
        print(f"| {r['seed']} | {r['alpha']:g} | {scores} | {kept} | {r['gain_kept']:.0%} | {r['forgetting']:.0%} |")
    over = {name: mean([r[name] for r in rows]) for name in ("gain_kept", "forgetting")}
    for name, v in over.items():
        print(f"{name}: {v['value']:.2f} [{v['low']:.2f}, {v['high']:.2f}] over {len(rows)} seeds")
    print(json.dumps({"seeds": rows, **over}))


if __name__ == "__main__":
    main()

"""Whether intervals and tests by group keep their level with few groups.

Studies are simulated whose truth is known: groups (patients, modules) differ in how hard they are, their rows are right or wrong.
Each is evaluated as `evaluate` does it. A 95% interval should hold the truth in 95% of studies, p should be at most 0.05 in 5%
of those where two models are equally good, and `gain_lower_bound(score) > 0` should pass in 2.5% of them.

    python -m bench.intervals                   # seven minutes on one core
    python -m bench.intervals --studies 200

To expect: between 93 and 97% from five groups on; more, so never too sure, where scores are nearly perfect or groups are few and
of very different sizes. The last line is JSON.
"""

import argparse
import json

import numpy as np

from clipft_tasks.evaluate import predictions
from clipft_tasks.evaluate.predictions import Predictions

GROUPS = (3, 5, 10, 20, 50)
METRIC = "balanced_accuracy"


def sizes(rng: np.random.Generator, kind: str, count: int) -> np.ndarray:
    """Rows of each group: all alike, or some large and many small as patients are."""
    if kind == "equal":
        return np.full(count, 50)
    if kind == "unequal":
        return np.maximum(2, np.exp(rng.normal(3, 1, count))).astype(int)
    return np.ones(count, int)


def study(rng: np.random.Generator, groups: np.ndarray, right: np.ndarray) -> Predictions:
    """A model that is right with probability `right` (rows,) about rows of two classes."""
    rows = len(groups)
    truth = np.arange(rows) % 2
    predicted = np.where(rng.random(rows) < right, truth, 1 - truth)
    none = np.zeros(rows)
    return Predictions(
        keys=np.arange(rows), groups=groups, truth=truth, predicted=predicted, margin=none, scores=np.zeros((rows, 2)),
        image_rank=none, text_rank=none, image_weight=np.ones(rows), image=np.zeros((rows, 1)), scale=1.0, seconds=0.0, geometry={},
    )  # fmt: skip


def gains(kind: str, count: int, studies: int, resamples: int) -> dict[str, float]:
    """Two models that are equally good on the whole; which is better differs by group (standard deviation .05 each)."""
    rng = np.random.default_rng(count)
    held = p_small = sure = 0
    for _ in range(studies):
        groups = np.repeat(np.arange(count), sizes(rng, kind, count))
        effect = rng.normal(0, 0.05, count)[groups]
        new, old = (study(rng, groups, np.clip(0.8 + side * effect, 0, 1)) for side in (1, -1))
        gain = predictions.paired_gain(new, old, METRIC, resamples)
        held += gain.low <= 0 <= gain.high
        p_small += gain.p <= 0.05
        sure += gain.low > 0
    return {"held": held / studies, "p_at_most_.05": p_small / studies, "gain_lower_bound_passes": sure / studies}


def levels(kind: str, count: int, studies: int, resamples: int, truth: float) -> dict[str, float]:
    """One model that is right about `truth` of the rows; groups differ (intraclass correlation .1)."""
    rng, spread = np.random.default_rng(count), 9.0
    held = perfect = 0
    for _ in range(studies):
        groups = np.repeat(np.arange(count), sizes(rng, kind, count))
        right = rng.beta(truth * spread, (1 - truth) * spread, count)[groups]
        name = "accuracy"  # of one row a group, balanced accuracy would be of another population
        found = predictions.intervals(study(rng, groups, right), [name], resamples)[name]
        held += found.low <= truth <= found.high
        perfect += found.value == 1
    return {"held": held / studies, "perfect_scores": perfect / studies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=400)
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    print("| what | groups | 95% interval holds the truth | p <= .05 | gain_lower_bound passes |\n|---|---|---|---|---|")
    for count in GROUPS:
        for kind in ("equal", "unequal"):
            row = gains(kind, count, options.studies, options.resamples)
            found[f"gain/{kind}/{count}"] = row
            held, p_small, sure = (f"{x:.1%}" for x in row.values())
            print(f"| gain, groups of {kind} size | {count} | {held} | {p_small} | {sure} |", flush=True)
    for count in GROUPS[1:]:
        for truth, kind in ((0.8, "equal"), (0.8, "unequal"), (0.97, "equal"), (0.97, "one row each")):
            row = levels(kind, count, options.studies, options.resamples, truth)
            found[f"value {truth}/{kind}/{count}"] = row
            perfect = f", {row['perfect_scores']:.0%} of scores perfect" if row["perfect_scores"] else ""
            print(f"| accuracy {truth}, {kind}{perfect} | {count} | {row['held']:.1%} | | |", flush=True)
    print(json.dumps({"studies": options.studies, **found}))


if __name__ == "__main__":
    main()

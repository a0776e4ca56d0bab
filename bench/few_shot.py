"""Few images a class: each way of fitting, and the one that is chosen without a validation set: python -m bench.few_shot [--seeds N]

The starter embeds each image once. For each seed half of the groups are for shots, the other half is the test; the shots are drawn class by
class. A way's strength is chosen by cross-validation on its shots alone, as the choice between ways is; `tip` and `tip_f`, Tip-Adapter
without training and with trained keys, are peers that do not fold into one embedding a class: their factors are chosen on the shots too.
`--features FOLDER` keeps the embeddings there.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from bench.promises import Features
    from clipft_tasks.train.class_heads import Shots
    from clipft_tasks.train.few_shot_choice import HeldOutFolds

SIDE = 128
SHOTS = (1, 2, 4, 8, 16)
SOURCES = {"elpv mono": ("industrial", "elpv:mono"), "elpv poly": ("industrial", "elpv:poly"), "molecules": ("scientific", "molecules:900"),
           "digits": ("general", ""), "digits, known": ("general", "")}  # fmt: skip
KNOWN = 500  # images that stand for what a start model saw, where it knows the classes
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TIP = [(alpha, beta) for alpha in (1.0, 3.0, 10.0) for beta in (1.0, 5.5)]
STEPS, RATE = 40, 0.01  # of trained keys


def digits(domain: str) -> "Features":
    """scikit-learn's handwritten digits, enlarged; each its own group, since nobody says who wrote it."""
    from sklearn.datasets import load_digits

    from bench import promises
    from clipft_tasks.model import build

    clip, found = build.load("starter", domain=domain), load_digits()
    images = [
        Image.fromarray((x * 15.9).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
        for x in found.images
    ]
    embedded = np.concatenate([promises.embedded(clip, images[i : i + 256]) for i in range(0, len(images), 256)])
    with torch.inference_mode():
        classes = clip.class_embeddings([f"the digit {number}" for number in NUMBERS]).numpy()
    scale = float(clip.model.logit_scale.detach().exp())
    return promises.Features(embedded, found.target, np.arange(len(images)).astype(str), classes, scale)


def known(features: "Features") -> "Features":
    """The rest of the digits as a start model sees them that has learned the classes from some: where shots can do harm."""
    from clipft_tasks.train.class_heads import Shots, whitened

    order = np.random.default_rng(0).permutation(len(features.truth))
    image, texts = torch.from_numpy(features.image).double(), torch.from_numpy(features.classes).double()
    seen = Shots(image[order[:KNOWN]], torch.from_numpy(features.truth)[order[:KNOWN]], texts, features.scale)
    return replace(features.take(order[KNOWN:]), classes=whitened(seen, 4.0).float().numpy())


def features_of(name: str, folder: Path | None) -> "Features":
    from bench import promises
    from clipft_tasks.model import build

    path = folder / f"{name.replace(' ', '-')}.npz" if folder else None
    if path and path.exists():
        kept = np.load(path)
        return promises.Features(kept["image"], kept["truth"], kept["groups"], kept["classes"], float(kept["scale"]))
    domain, source = SOURCES[name]
    if name == "digits, known":
        return known(features_of("digits", folder))
    made = promises.of_source(build.load("starter", domain=domain), source) if source else digits(domain)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, image=made.image, truth=made.truth, groups=made.groups, classes=made.classes, scale=made.scale)
    return made


def drawn(features: "Features", shots: int, seed: int) -> tuple["Shots", np.ndarray, Tensor, np.ndarray]:
    """Shots and their groups; images and classes of the other half of the groups."""
    from clipft_tasks.train.class_heads import Shots

    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.unique(features.groups))
    mine = np.isin(features.groups, groups[: len(groups) // 2])
    image, truth = torch.from_numpy(features.image).double(), features.truth
    rows = [row for c in range(len(features.classes)) for row in rng.permutation(np.flatnonzero(mine & (truth == c)))[:shots]]
    texts = torch.from_numpy(features.classes).double()
    test = ~mine & (truth >= 0)
    return (
        Shots(image[rows], torch.from_numpy(truth[rows]), texts, features.scale),
        features.groups[rows],
        image[test],
        truth[test],
    )


def tip(shots: "Shots", queries: Tensor, alpha: float, beta: float, train: bool = False) -> Tensor:
    """Logits (q, c) of Tip-Adapter (Zhang et al. 2022, https://arxiv.org/abs/2207.09519)."""
    values = torch.nn.functional.one_hot(shots.labels, len(shots.texts)).double()
    keys = shots.features.clone()

    def logits(some: Tensor) -> Tensor:
        return shots.scale * some @ shots.texts.T + alpha * torch.exp(-beta * (1 - some @ keys.T)) @ values

    if train:
        keys.requires_grad_()
        optimizer = torch.optim.AdamW([keys], lr=RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits(shots.features), shots.labels).backward()
            optimizer.step()
        keys.requires_grad_(False)
    return logits(queries)


def peer(shots: "Shots", folds: "HeldOutFolds", groups: np.ndarray, queries: Tensor, train: bool) -> np.ndarray:
    """Tip-Adapter with the factors that held-out shots like best; the middle ones where none can be held out."""
    from clipft_tasks.train import few_shot_choice as choice

    taken = TIP[3]
    if folds.count:
        labels, found = shots.labels.numpy(), {}
        for factors in TIP:
            out = np.zeros((len(labels), len(shots.texts)))
            for fold in np.unique(folds.fold):
                there = torch.from_numpy(folds.fold == fold)
                out[there.numpy()] = tip(shots.take(~there), shots.features[there], *factors, train).numpy()
            gain = choice.Judged.of(out, labels, folds).gain
            found[factors] = choice.mean_and_error(gain, labels[folds.judged], groups[folds.judged])[0]
        taken = max(found, key=lambda factors: found[factors])
    return tip(shots, queries, *taken, train).numpy()


def scores(features: "Features", shots: int, seed: int) -> dict[str, float]:
    """Balanced accuracy on the test half of each way, and of the chosen one."""
    from clipft_tasks.evaluate.metrics import balanced_accuracy
    from clipft_tasks.train import few_shot_choice as choice

    few, groups, queries, truth = drawn(features, shots, seed)
    folds = choice.HeldOutFolds.of(few.labels.numpy(), groups)

    def score(logits: np.ndarray) -> float:
        return float(balanced_accuracy(truth, logits.argmax(axis=1)))

    began = time.process_time()
    chosen = choice.choose(few, groups)
    seconds = time.process_time() - began
    strengths = {tried.method: tried.strength for tried in chosen.tried}
    out = {}
    for name, (head, grid) in choice.HEADS.items():
        out[name] = score((queries @ head(few, strengths.get(name, grid[len(grid) // 2])).T).numpy())
    out |= {name: score(peer(few, folds, groups, queries, train)) for name, train in (("tip", False), ("tip_f", True))}
    head = choice.HEADS[chosen.method][0]
    return out | {
        "chosen": score((queries @ head(few, chosen.strength).T).numpy()),
        "seconds": seconds,
        f"took {chosen.method}": 1.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", nargs="*", default=list(SOURCES))
    parser.add_argument("--features", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    worst: dict[str, float] = {}
    behind: dict[str, float] = {}
    taken: dict[str, dict[str, int]] = {}
    means: list[dict[str, float]] = []
    ways: list[str] = []
    for name in asked.data:
        features = features_of(name, asked.features)
        known = features.truth >= 0
        features = replace(features, image=features.image[known], truth=features.truth[known], groups=features.groups[known])
        for shots in SHOTS:
            runs = [scores(features, shots, seed) for seed in range(asked.seeds)]
            ways = ways or [key for key in runs[0] if key not in ("seconds",) and not key.startswith("took")]
            if not taken:
                print(
                    f"| data, shots | {' | '.join(ways)} | chosen − text, worst | − best way, mean | took | CPU s |\n|{'---|' * (len(ways) + 5)}"
                )
            mean = {way: float(np.mean([run[way] for run in runs])) for way in ways}
            means.append(mean)
            key = f"{name}, {shots}"
            worst[key] = float(min(run["chosen"] - run["text"] for run in runs))
            behind[key] = mean["chosen"] - max(mean[way] for way in ways if way != "chosen")
            took = [next(k[5:] for k in run if k.startswith("took")) for run in runs]
            taken[key] = {way: took.count(way) for way in dict.fromkeys(took)}
            shown = ", ".join(f"{way} {count}" for way, count in taken[key].items())
            print(f"| {key} | {' | '.join(f'{mean[way]:.3f}' for way in ways)} | {worst[key]:+.3f} | {behind[key]:+.3f} | {shown} | "
                  f"{np.mean([run['seconds'] for run in runs]):.1f} |", flush=True)  # fmt: skip
    overall = {way: float(np.mean([mean[way] for mean in means])) for way in ways}
    best = max((way for way in ways if way != "chosen"), key=lambda way: overall[way])
    print(f"Mean over all: {', '.join(f'{way} {value:.3f}' for way, value in overall.items())}; the best single way is {best}.")
    print(json.dumps({
        "worst_to_text": min(worst.values()), "mean_to_best_single_way": overall["chosen"] - overall[best], "best_single_way": best,
        "mean_to_best_way_of_each": float(np.mean(list(behind.values()))), "overall": overall, "worst": worst, "behind": behind,
        "taken": taken,
    }))  # fmt: skip


if __name__ == "__main__":
    if "CLIPFT_HOME" not in os.environ:
        with tempfile.TemporaryDirectory() as home:
            os.environ["CLIPFT_HOME"] = home
            main()
    else:
        main()

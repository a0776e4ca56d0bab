"""What the classifier's answers claim of themselves, and what holds on new groups: python -m bench.promises [--splits 20] [--tuned]

The starter embeds each image once. Then groups (modules, scaffolds) are split anew, `--splits` times: class vectors are trained on the
embeddings of the training groups at a learned temperature, from the class prompts on, and kept from the pass that is best on the validation
groups, as training keeps its epoch. Calibration, limit of sets and limit of novelty are made by the package's own functions from the
validation groups; what holds is counted on the test groups. Foreign images are told from the test rows by `none_of_these`.

elpv has 45 modules, of which a third are for validation, since 90% takes nine; the monocrystalline ones alone, split as the demo splits them,
are 19, of which three are: there the package offers less. `--tuned` adds models that the ordinary stages fine-tune, one split of each.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from clipft_tasks.model.clip import Clip

SIDE = 128
DEMO = {"train": 0.6, "val": 0.15, "test": 0.25}  # shares of the groups
THIRDS = {"train": 0.34, "val": 0.33, "test": 0.33}
PASSES, LOOK = 150, 15  # over the training rows, and how often the validation rows are looked at
FOREIGN = 300  # images of each other kind
NUMBERS = ("accuracy", "error_today", "error", "coverage_asked", "coverage", "set_size", "coverage_of_rows", "false_alarms")


@dataclass
class Features:
    """Images of a source as a model sees them: embeddings (n, d), the class number of each (-1: none), its group; class vectors (c, d)."""

    image: np.ndarray
    truth: np.ndarray
    groups: np.ndarray
    classes: np.ndarray
    scale: float

    def take(self, rows: np.ndarray) -> "Features":
        return Features(self.image[rows], self.truth[rows], self.groups[rows], self.classes, self.scale)


@dataclass
class Found:
    """What held on the test groups of each split; and which other kinds of images were told from them."""

    numbers: dict[str, list[float]] = field(default_factory=dict)
    auroc: dict[str, list[float]] = field(default_factory=dict)
    told: dict[str, list[float]] = field(default_factory=dict)
    sizes: dict[str, list[float]] = field(default_factory=dict)

    def add(self, into: dict[str, list[float]], **values: float) -> None:
        for name, value in values.items():
            into.setdefault(name, []).append(float(value))


def embedded(clip: "Clip", images: Sequence[Image.Image]) -> np.ndarray:
    from clipft_tasks.data.images import square

    with torch.inference_mode():
        parts = [images[i : i + 64] for i in range(0, len(images), 64)]
        squares = (torch.from_numpy(np.stack([square(image, SIDE, clip.aspect) for image in part])) for part in parts)
        return np.concatenate([clip.encode_images(some).numpy() for some in squares])


def of_source(clip: "Clip", source: str) -> Features:
    """A source's rows, labeled or not."""
    from clipft_tasks.data.readers import open_source
    from clipft_tasks.spec import DataSpec

    rows = list(open_source(source, DataSpec()).rows())
    names = sorted({row.label for row in rows} - {""})
    image = np.concatenate(
        [
            embedded(clip, [clip.open_image(row.image_bytes()).rgb for row in rows[start : start + 256]])
            for start in range(0, len(rows), 256)
        ]
    )
    with torch.inference_mode():
        classes = clip.class_embeddings(names).numpy()
    truth = np.array([names.index(row.label) if row.label else -1 for row in rows])
    return Features(image, truth, np.array([row.group for row in rows]), classes, float(clip.model.logit_scale.detach().exp()))


def everyday(clip: "Clip") -> np.ndarray:
    from clipft_tasks.evaluate import forgetting

    known = forgetting.general_set()
    if known is None:
        raise SystemExit("The general set is not installed: pip install clipft[demo]")
    squares = known.take(SIDE, clip.aspect, np.arange(FOREIGN))
    with torch.inference_mode():
        return np.concatenate([clip.encode_images(squares[i : i + 64]).numpy() for i in range(0, FOREIGN, 64)])


def noise(clip: "Clip") -> np.ndarray:
    """Noise of every grain, and single colors."""
    rng = np.random.default_rng(0)
    grains = [
        rng.integers(0, 256, (grain, grain, 3), dtype=np.uint8)
        for grain in (1, 4, 8, 16, 32, SIDE)
        for _ in range(FOREIGN // 6)
    ]
    return embedded(clip, [Image.fromarray(g).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for g in grains])


def trained(rows: Features, val: Features) -> Features:
    """Class vectors and temperature that tell the rows' classes apart, of the look that is best on the validation rows."""
    from clipft_tasks.evaluate import metrics

    vectors = torch.tensor(rows.classes, requires_grad=True)
    scale = torch.tensor(float(np.log(rows.scale)), requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [vectors], "lr": 0.01}, {"params": [scale], "lr": 0.03}])
    image, truth, best, kept = torch.from_numpy(rows.image), torch.from_numpy(rows.truth), -1.0, rows
    for number in range(1, PASSES + 1):
        loss = torch.nn.functional.cross_entropy(scale.exp() * image @ torch.nn.functional.normalize(vectors, dim=1).T, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number % LOOK == 0:
            classes = torch.nn.functional.normalize(vectors.detach(), dim=1).numpy()
            score = metrics.balanced_accuracy(val.truth, (val.image @ classes.T).argmax(axis=1))
            if score > best:
                best, kept = score, Features(val.image, val.truth, val.groups, classes, float(scale.detach().exp()))
    return kept


def aps(probabilities: np.ndarray, penalty: float = 0.0) -> np.ndarray:
    """The mass of likelier classes (APS; Romano et al. 2020), with a penalty for each rank beyond the second (RAPS; Angelopoulos 2021)."""
    order = np.argsort(-probabilities, axis=1)
    sorted_ = np.take_along_axis(probabilities, order, axis=1)
    ranked = sorted_.cumsum(axis=1) - sorted_ + penalty * np.maximum(0, np.arange(sorted_.shape[1]) - 1)
    out = np.empty_like(probabilities)
    np.put_along_axis(out, order, ranked, axis=1)
    return out


def count(
    train: Features, val: Features, test: Features, foreign: dict[str, np.ndarray], found: Found
) -> tuple[np.ndarray, ...]:
    """Make what a package holds from the validation rows, and count what holds on the test rows.

    Returns: of the labeled test rows truth, prediction, log-probabilities of today and calibrated ones.
    """
    from clipft_tasks.drift.measure_reference import novelty_limit, sample_rows
    from clipft_tasks.drift.statistics import area_under_curve
    from clipft_tasks.evaluate import conformal, metrics
    from clipft_tasks.evaluate.calibration import calibrate
    from clipft_tasks.model.group_quantile import group_quantile
    from clipft_tasks.model.held_out import HeldOut

    held_out = HeldOut(val.image, val.image @ val.classes.T, val.truth, val.groups)
    calibration = calibrate(held_out, [str(i) for i in range(len(val.classes))], ["{}"], val.scale)
    labeled = test.take(test.truth >= 0)
    scores, truth = labeled.image @ val.classes.T, labeled.truth
    assert calibration is not None
    rows, predicted = np.arange(len(truth)), scores.argmax(axis=1)
    today, now = metrics.log_softmax(val.scale * scores), metrics.log_softmax(scores / calibration.temperature)
    asked = calibration.coverage or 0.0
    limit = group_quantile(calibration.scores, calibration.groups, asked)
    assert limit is not None
    probabilities, of_val = np.exp(now), np.exp(metrics.log_softmax(held_out.labeled.similarity / calibration.temperature))
    inside = conformal.sets(probabilities, limit)
    plain = conformal.sets(probabilities, float(np.quantile(calibration.scores, asked, method="higher")))
    for name, nonconformity in (("APS", aps(of_val)), ("RAPS", aps(of_val, 0.05))):
        own = nonconformity[np.arange(len(of_val)), held_out.labeled.truth]
        most = group_quantile(own, calibration.groups, asked)
        assert most is not None
        sets = aps(probabilities, 0.05 if name == "RAPS" else 0.0) <= most
        sets[rows, predicted] = True
        found.add(found.sizes, **{name: sets.sum(axis=1).mean()})

    known = Features(
        np.concatenate([train.image, val.image]),
        np.concatenate([train.truth, val.truth]),
        np.concatenate([train.groups, val.groups]),
        val.classes,
        val.scale,
    )
    sample = known.take(sample_rows(known.groups.tolist()))
    novel = novelty_limit(sample.image, sample.groups.tolist(), held_out)
    assert novel is not None

    def novelty(image: np.ndarray) -> np.ndarray:
        return np.asarray((1 - (image @ sample.image.T).max(axis=1)) / novel.distance)

    own = novelty(test.image)
    found.add(
        found.numbers,
        accuracy=(predicted == truth).mean(),
        error_today=metrics.calibration_error(metrics.reliability(truth, predicted, today)),
        error=metrics.calibration_error(metrics.reliability(truth, predicted, now)),
        coverage_asked=asked,
        coverage=inside[rows, truth].mean(),
        set_size=inside.sum(axis=1).mean(),
        coverage_of_rows=plain[rows, truth].mean(),
        false_alarms=(own > 1).mean(),
    )
    for name, image in foreign.items():
        other = novelty(image)
        both, is_other = np.concatenate([own, other]), np.repeat([False, True], [len(own), len(other)])
        found.add(found.auroc, **{name: area_under_curve(both, is_other)})
        found.add(found.told, **{name: (other > 1).mean()})
    return truth, predicted, today, now


def splits(
    features: Features, shares: dict[str, float], foreign: dict[str, np.ndarray], times: int
) -> tuple[Found, dict[str, float]]:
    """Split the groups anew, so many times; also the calibration errors of all test rows together, where groups average out."""
    from clipft_tasks.data.splits import assign
    from clipft_tasks.evaluate import metrics

    component = np.unique(features.groups, return_inverse=True)[1]
    found, pooled = Found(), []
    for seed in range(times):
        split = np.array(assign(component, [str(t) for t in features.truth], [""] * len(component), shares, seed).splits)
        train, val, test = (features.take(split == name) for name in ("train", "val", "test"))
        best = trained(train.take(train.truth >= 0), val.take(val.truth >= 0))
        val = Features(val.image, val.truth, val.groups, best.classes, best.scale)
        pooled.append(count(train, val, test, foreign, found))
    truth, predicted, today, now = (np.concatenate(parts) for parts in zip(*pooled, strict=True))
    errors = {
        name: metrics.calibration_error(metrics.reliability(truth, predicted, these))
        for name, these in (("error_today", today), ("error", now))
    }
    return found, errors


def tuned(domain: str, source: str, foreign: dict[str, str]) -> Found:
    """A model that the ordinary stages fine-tune, on its own split."""
    from bench.drift import Watched

    watched, found = Watched.trained(domain, source, 3), Found()
    clip, frame = watched.clip, watched.dataset.frame
    names = watched.dataset.classes
    with torch.inference_mode():
        classes = clip.class_embeddings(names).numpy()
    opened = [clip.open_image(watched.dataset.image_bytes(row)).rgb for row in frame.itertuples()]
    every = Features(
        embedded(clip, opened),
        np.array([names.index(label) if label else -1 for label in frame["label"]]),
        frame["group"].to_numpy(dtype=str),
        classes,
        float(clip.model.logit_scale.detach().exp()),
    )
    train, val, test = (every.take((frame["split"] == name).to_numpy()) for name in ("train", "val", "test"))
    others = {name: of_source(clip, of).image[:FOREIGN] for name, of in foreign.items()}
    count(train, val, test, others | {"everyday": everyday(clip), "noise": noise(clip)}, found)
    return found


def cost(clip: "Clip", features: Features) -> float:
    """What the claims of an answer take, as a share of decoding and encoding its image: the median over pairs of measurements."""
    import io

    from clipft_tasks.data.images import square
    from clipft_tasks.evaluate import conformal, metrics

    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300), dtype=np.uint8)).save(out, "PNG")
    sample, shares = features.image[:512], []
    for _ in range(60):
        began = time.perf_counter()
        rgb = clip.open_image(out.getvalue()).rgb
        with torch.inference_mode():
            image = clip.encode_images(torch.from_numpy(square(rgb, SIDE, clip.aspect)[None])).numpy()
        scores = image @ features.classes.T
        middle = time.perf_counter()
        inside = conformal.sets(np.exp(metrics.log_softmax(scores / 0.07)), 0.4)
        novelty = (1 - (image @ sample.T).max(axis=1)) / 0.2
        assert inside.any() and np.isfinite(novelty).all()
        shares.append((time.perf_counter() - middle) / (middle - began))
    return float(np.median(shares))


def shown(name: str, found: Found, errors: dict[str, float] | None = None) -> dict[str, object]:
    """Print a data set's lines; returns its numbers."""
    mean = {key: float(np.mean(values)) for key, values in found.numbers.items()}
    low, high = min(found.numbers["coverage"]), max(found.numbers["coverage"])
    together = f", of all splits together {errors['error_today']:.3f} and {errors['error']:.3f}" if errors else ""
    print(f"\n{name}: {len(found.numbers['coverage'])} splits, accuracy {mean['accuracy']:.3f}\n")
    print("| claim | asked | held |\n|---|---|---|")
    print(f"| sets hold the true class | {mean['coverage_asked']:.3f} | {mean['coverage']:.3f} ({low:.2f} to {high:.2f}) |")
    print(f"| … with a quantile of rows | {mean['coverage_asked']:.3f} | {mean['coverage_of_rows']:.3f} |")
    sizes = ", ".join(f"{kind} {np.mean(values):.2f}" for kind, values in found.sizes.items())
    print(f"| classes in a set | | {mean['set_size']:.2f} ({sizes}) |")
    print(
        f"| calibration error, today's and with the package's temperature | | {mean['error_today']:.3f}, {mean['error']:.3f}{together} |"
    )
    print(f"| the test rows are taken for none of these | 0.05 | {mean['false_alarms']:.3f} |")
    for other, areas in found.auroc.items():
        print(
            f"| AUROC of {other}; share told | 0.95 | {np.mean(areas):.3f} (least {min(areas):.3f}); {np.mean(found.told[other]):.2f} |"
        )
    return {
        **mean,
        "coverage_range": [low, high],
        "sizes": {kind: float(np.mean(values)) for kind, values in found.sizes.items()},
        "auroc": {other: float(np.mean(areas)) for other, areas in found.auroc.items()},
        "told": {other: float(np.mean(shares)) for other, shares in found.told.items()},
        "pooled": errors or {},
    }


def main() -> None:
    from clipft_tasks.model import build
    from clipft_tasks.spec import RunSpec

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--tuned", action="store_true", help="also fine-tune a model on each data set, which takes minutes")
    asked = parser.parse_args()
    cells, drawings = (
        build.prepare(build.load("starter"), RunSpec.from_flat({"domain": domain, "source": source, "resolution.train": SIDE}))
        for domain, source in (("industrial", "elpv:mono"), ("scientific", "molecules"))
    )
    mono, poly, molecules = of_source(cells, "elpv:mono"), of_source(cells, "elpv:poly"), of_source(drawings, "molecules:2000")
    both = Features(
        np.concatenate([mono.image, poly.image]),
        np.concatenate([mono.truth, poly.truth]),
        np.concatenate([mono.groups, poly.groups]),
        mono.classes,
        mono.scale,
    )
    of_cells = {"everyday": everyday(cells), "noise": noise(cells), "molecules": of_source(cells, f"molecules:{FOREIGN}").image}
    of_drawings = {
        "everyday": everyday(drawings),
        "noise": noise(drawings),
        "cells": of_source(drawings, "elpv:mono").image[:FOREIGN],
    }
    out: dict[str, object] = {}
    for name, features, shares, foreign in (
        ("elpv, both kinds of cells", both, THIRDS, of_cells),
        ("elpv, monocrystalline", mono, DEMO, of_cells | {"polycrystalline cells": poly.image}),
        ("molecules", molecules, DEMO, of_drawings),
    ):
        out[name] = shown(name, *splits(features, shares, foreign, asked.splits))
    if asked.tuned:
        for name, domain, source, others in (
            (
                "elpv, fine-tuned",
                "industrial",
                "elpv:mono",
                {"polycrystalline cells": "elpv:poly", "molecules": f"molecules:{FOREIGN}"},
            ),
            ("molecules, fine-tuned", "scientific", "molecules:1500", {"cells": "elpv:mono"}),
        ):
            out[name] = shown(name, tuned(domain, source, others))
    out["cost"] = cost(cells, both)
    print(f"\nThe claims take {out['cost']:.2%} of the time in which an image is decoded and encoded.")
    print(json.dumps(out))


if __name__ == "__main__":
    from clipft_tasks.core.settings import settings

    with tempfile.TemporaryDirectory() as home:
        os.environ["CLIPFT_HOME"] = home
        settings.cache_clear()
        main()

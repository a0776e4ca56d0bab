"""An evaluation without its towers: what comparing, ranking, metrics and intervals take.

    python -m bench.evaluation_scale                    # 100,000 pairs, and 4,000 rows of 1,000 classes; ten minutes on two cores
    python -m bench.evaluation_scale --pairs 20000 --peer-pairs 5000

Embeddings are made (512 numbers, as of ViT-B-32), and two models are compared on them as the stage evaluate does, with slices,
intervals and paired tests. Each step is a process of its own, so that its peak memory is its own; `at start` is what it held before:
libraries and embeddings. Peers: retrieval as open_clip_train measures it, at fewer pairs, since it holds all similarities; area under
the curve and average precision as scikit-learn computes them. The last line is JSON.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from bench.step_cost import Cost, each_alone, measured, told

if TYPE_CHECKING:
    from clipft_tasks.data.versioning import Dataset

WIDTH, CLASSES, ROWS = 512, 1_000, 4_000


def made(rows: int, classes: int, captions: int) -> "Dataset":
    """Rows of images of their own, four to a group, and a quarter of them again for validation; no image lies anywhere."""
    from clipft_tasks.contracts.dataset import DatasetCard
    from clipft_tasks.data.versioning import Dataset, Version

    number = np.arange(rows + rows // 4)
    split = np.where(number < rows, "test", "val")
    frame = pd.DataFrame(
        {
            "key": [f"{i:032x}" for i in number],
            "sha256": [f"{i:064x}" for i in number],
            "caption": [f"a photo of thing {i % captions}" for i in number],
            "label": [f"kind {i % classes}" for i in number] if classes else "",
            "group": [f"group {i // 4}" for i in number],
            "split": split,
            "width": 200 + number % 7,
            "height": 200,
            "mode": "RGB",
            "format": "PNG",
        }
    )
    card = DatasetCard(domain="general", source="made", rows=len(frame), rejected=0, counts={}, classes={}, content="")
    return Dataset(Version("general", 1, f"{rows:040x}", card), frame, Path())


def evaluation(rows: int, classes: int, captions: int) -> Cost:
    """Two models on made rows, by the stage's own code with the towers' part replaced."""
    import torch

    from clipft_tasks.contracts.evaluation import Role
    from clipft_tasks.devices import hardware
    from clipft_tasks.domains import get_domain
    from clipft_tasks.evaluate import evaluator, predictions, zero_shot
    from clipft_tasks.model.clip import Clip
    from clipft_tasks.model.similarity import Cosine
    from clipft_tasks.spec import RunSpec

    class Compared:
        """What of a model is left without towers."""

        device, similarity = torch.device("cpu"), Cosine(WIDTH)
        model = SimpleNamespace(logit_scale=torch.tensor(4.6))

    hardware.use_threads(hardware.detect("cpu").cores)
    dataset, noise = made(rows, classes, captions), torch.Generator().manual_seed(0)

    def unit(rows: int) -> torch.Tensor:
        made = torch.randn(rows, WIDTH, generator=noise)
        return made.div_(made.norm(dim=1, keepdim=True))

    texts, of_classes = unit(captions), unit(classes) if classes else None
    roles: tuple[Role, ...] = ("candidate", "start")
    models = {role: cast(Clip, Compared()) for role in roles}
    seen: dict[tuple[int, str], tuple[torch.Tensor, zero_shot.TextEmbeddings]] = {}
    for clip in models.values():
        for split in ("test", "val") if classes else ("test",):
            own, names = pd.factorize(dataset.split(split)["caption"], sort=True)
            images = torch.randn(len(own), WIDTH, generator=noise).mul_(0.1)
            for some, of_some in zip(images.split(1000), torch.from_numpy(own).split(1000), strict=True):
                some.add_(texts[of_some])  # in place, which takes no memory that is not the evaluation's
            seen[id(clip), split] = images, zero_shot.TextEmbeddings(texts[: len(names)], own, of_classes)

    said: dict[tuple[int, str], predictions.Predictions] = {}

    def predict(clip: Clip, task: zero_shot.Task, split: str = "test", limit: int = 0) -> predictions.Predictions:
        of = id(clip), split
        if of not in said:
            said[of] = zero_shot.predictions_of(clip, *seen[of], dataset.split(split), dataset.classes)
        return said[of]

    setattr(evaluator, "predict", predict)  # noqa: B010 - not one that it exports
    spec = RunSpec.from_flat({"domain": "general", "resolution.evaluate": [96, 128], "resolution.train": 128})
    domain, names = get_domain("general"), zero_shot.headlines(dataset)
    task = zero_shot.Task(dataset, 96, spec.evaluate.batch)  # not the size at which the general score needs towers

    def work() -> None:
        evaluator.evaluate(models, task, spec, domain=domain, metric=names[0], names=names)
        for clip in models.values() if classes else ():
            predictions.calibration(predict(clip, task), predict(clip, task, "val"))

    return measured(work)


def retrieval(pairs: int) -> Cost:
    """The peer of the ranks of one model: all similarities, sorted."""
    import torch
    from open_clip_train.train import get_clip_metrics

    from clipft_tasks.devices import hardware

    hardware.use_threads(hardware.detect("cpu").cores)
    noise = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(pairs, WIDTH, generator=noise), dim=1)
    images = texts + 0.1 * torch.randn(pairs, WIDTH, generator=noise)
    return measured(lambda: get_clip_metrics(images, texts, torch.tensor(100.0)))


def areas(peer: bool) -> Cost:
    """Area under the curve and average precision of each class, by our code or by scikit-learn's."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    from clipft_tasks.evaluate.metrics import log_softmax, one_against_rest

    rng = np.random.default_rng(0)
    truth, scores = np.arange(ROWS) % CLASSES, log_softmax(rng.normal(size=(ROWS, CLASSES)))
    of_class = np.eye(CLASSES, dtype=int)[truth]

    def theirs() -> None:
        roc_auc_score(of_class, scores, average="macro")
        average_precision_score(of_class, scores, average="macro")

    return measured(theirs if peer else lambda: one_against_rest(truth, scores))


def steps(pairs: int, peer_pairs: int) -> dict[str, Callable[[], Cost]]:
    """By name."""
    return {
        f"evaluation, {pairs:,} x {pairs:,} pairs": lambda: evaluation(pairs, 0, pairs),
        f"evaluation, {ROWS:,} rows x {CLASSES:,} classes": lambda: evaluation(ROWS, CLASSES, CLASSES),
        f"evaluation, {peer_pairs:,} x {peer_pairs:,} pairs": lambda: evaluation(peer_pairs, 0, peer_pairs),
        f"retrieval of one model by open_clip_train, {peer_pairs:,} pairs": lambda: retrieval(peer_pairs),
        "areas and precisions": lambda: areas(False),
        "areas and precisions by scikit-learn": lambda: areas(True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--peer-pairs", type=int, default=10_000, help="at which the peer is measured")
    parser.add_argument("--step", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    every = steps(asked.pairs, asked.peer_pairs)
    if asked.step:
        told(every[asked.step]())
        return
    sizes = ["--pairs", str(asked.pairs), "--peer-pairs", str(asked.peer_pairs)]
    print(json.dumps(each_alone("bench.evaluation_scale", every, sizes)))


if __name__ == "__main__":
    main()

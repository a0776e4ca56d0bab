"""How much of a model's score is left on corrupted images."""

from collections.abc import Sequence

import numpy as np
import torch

from ..contracts.evaluation import Robustness
from ..data.decoded_cache import decoded
from ..model.clip import Clip
from .corruptions import corrupt
from .zero_shot import Task, TextEmbeddings, embed_images, predictions_of, sample

ROWS = 256  # most rows looked at: each costs corruptions times severities images


def score(clip: Clip, task: Task, metric: str, *, names: Sequence[str], severities: int) -> Robustness:
    """A metric on a sample of the test rows, whole and under each of some corruptions.

    Args:
        names: of the corruptions.
        severities: how many of the five, from the mildest.
    """
    dataset = task.dataset
    every = dataset.split("test")
    frame, rows = sample(every, ROWS)
    images = decoded(dataset, every, task.size, "test", gray_bits=clip.prepared().gray_bits, aspect=clip.aspect)
    texts = TextEmbeddings.of(clip, frame, dataset.classes)
    keys = list(frame["key"])

    def value(name: str = "", severity: int = 0) -> float:
        def take(some: np.ndarray) -> torch.Tensor:
            plain = images.take(rows[some])
            if not name:
                return plain
            changed = [corrupt(p, name, severity, keys[i]) for p, i in zip(plain.numpy(), some, strict=True)]
            return torch.from_numpy(np.stack(changed))

        embeddings, _ = embed_images(clip, take, frame, task, quiet=bool(name))
        return predictions_of(clip, embeddings, texts, frame, dataset.classes).sums(metric).value

    clean = value()
    table = {name: [value(name, s) for s in range(1, severities + 1)] for name in names}
    mean = float(np.mean([v for values in table.values() for v in values])) if table else clean
    kept = mean / clean if clean else None
    return Robustness(rows=len(frame), clean=clean, corruptions=table, mean_corruption_score=mean, kept=kept)

"""How much of a model's score is left on corrupted images."""

from typing import Any

import numpy as np
import torch

from ..data.decoded_cache import decoded
from ..data.versioning import Dataset
from ..domains import Domain
from ..model.clip import Clip
from .corruptions import corrupt
from .zero_shot import Words, judge, look, sample

ROWS = 256  # most rows looked at: each costs corruptions times severities images


def score(clip: Clip, dataset: Dataset, domain: Domain, side: int, batch: int, metric: str, severities: int) -> dict[str, Any]:
    """A metric on a sample of the test rows, whole and under each of the domain's corruptions.

    Args:
        severities: how many of the five, from the mildest.
    Returns: rows; clean; by corruption the value at each severity; mean_corruption_score, over all corruptions and
        severities; kept, that over clean (None where clean is 0).
    """
    every = dataset.split("test")
    frame, rows = sample(every, ROWS)
    images = decoded(dataset, every, side, "test", gray_bits=clip.prepared().gray_bits, aspect=clip.aspect)
    words = Words.of(clip, frame, dataset.classes)
    keys = list(frame["key"])

    def value(name: str = "", severity: int = 0) -> float:
        def take(some: np.ndarray) -> torch.Tensor:
            plain = images.take(rows[some])
            if not name:
                return plain
            changed = [corrupt(p, name, severity, keys[i]) for p, i in zip(plain.numpy(), some, strict=True)]
            return torch.from_numpy(np.stack(changed))

        image, _ = look(clip, take, frame, batch, side, quiet=bool(name))
        return judge(clip, image, words, frame, dataset.classes).sums(metric).value

    clean = value()
    table = {name: [value(name, s) for s in range(1, severities + 1)] for name in domain.corruptions}
    mean = float(np.mean([v for values in table.values() for v in values])) if table else clean
    kept = mean / clean if clean else None
    return {"rows": len(frame), "clean": clean, "corruptions": table, "mean_corruption_score": mean, "kept": kept}

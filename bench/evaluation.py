"""The share of an evaluation that is spent in the models: python -m bench.evaluation [--pairs N] [--sides S ...]

Made images, since only time is measured: the starter and a copy of it, all headline metrics with intervals, comparisons,
slices, details. Images are decoded before, as a second evaluation finds them; the time of that is shown apart.
"""

import argparse
import hashlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np
import pandas as pd
from PIL import Image

if TYPE_CHECKING:
    from clipft_tasks.data.versioning import Dataset

P = ParamSpec("P")
T = TypeVar("T")


def made(folder: Path, pairs: int) -> "Dataset":
    """Images of colored blocks with captions, classes and groups, a fifth more of them for validation."""
    from clipft_tasks.contracts.dataset import DatasetCard
    from clipft_tasks.data import shards
    from clipft_tasks.data.versioning import Dataset, Version

    rows, entries = [], []
    for i in range(pairs + pairs // 5):
        out = io.BytesIO()
        blocks = np.random.default_rng(i).integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(blocks).resize((200, 200), Image.Resampling.BICUBIC).save(out, "PNG")
        key = f"{i:032x}"
        entries.append(shards.Entry(key, "png", out.getvalue()))
        rows.append(
            {"key": key, "name": key, "caption": f"a photo of thing {i % (pairs // 4)}", "label": f"kind {i % 20}",
             "group": f"group {i // 4}", "split": "test" if i < pairs else "val", "width": 200, "height": 200, "mode": "RGB",
             "format": "PNG", "sha256": hashlib.sha256(out.getvalue()).hexdigest(), "phash": ""}
        )  # fmt: skip
    places = dict(shards.pack(entries, folder))
    frame = pd.DataFrame(rows)
    for name in ("shard", "offset", "length"):
        frame[name] = [getattr(places[key], name) for key in frame["key"]]
    card = DatasetCard(domain="general", source="made", rows=len(frame), rejected=0, counts={}, classes={}, content="")
    return Dataset(Version("general", 1, f"{pairs:040x}", card), frame, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--sides", type=int, nargs="+", default=[96, 128, 160, 192])
    asked = parser.parse_args()

    from clipft_tasks.contracts.evaluation import Role
    from clipft_tasks.data.decoded_cache import decoded
    from clipft_tasks.devices import hardware
    from clipft_tasks.domains import get_domain
    from clipft_tasks.evaluate import evaluator, forgetting, zero_shot
    from clipft_tasks.model import build
    from clipft_tasks.model.clip import Clip
    from clipft_tasks.spec import RunSpec

    hardware.use_threads(hardware.detect("cpu").cores)
    in_models = 0.0

    def timed(function: Callable[P, T]) -> Callable[P, T]:
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            nonlocal in_models
            began = time.perf_counter()
            out = function(*args, **kwargs)
            in_models += time.perf_counter() - began
            return out

        return call

    models: dict[Role, Clip] = {
        "candidate": build.load("starter", domain="general"),
        "start": build.load("starter", domain="general"),
    }
    for clip in models.values():
        for name in ("encode_images", "encode_texts"):
            setattr(clip, name, timed(getattr(clip, name)))
    spec = RunSpec.from_flat(
        {"domain": "general", "resolution.evaluate": asked.sides, "resolution.train": asked.sides[len(asked.sides) // 2]}
    )
    domain = get_domain("general")
    with tempfile.TemporaryDirectory() as folder:
        dataset = made(Path(folder), asked.pairs)
        began = time.perf_counter()
        for side in asked.sides:
            for split in ("test", "val"):
                aspect = models["candidate"].aspect
                decoded(dataset, dataset.split(split), side, split, gray_bits=domain.gray_bits, aspect=aspect)
        decoding = time.perf_counter() - began
        forgetting.general_set()
        began = time.perf_counter()
        names = zero_shot.headlines(dataset)
        for side in asked.sides:
            task = zero_shot.Task(dataset, side, spec.evaluate.batch)
            evaluator.evaluate(models, task, spec, domain=domain, metric=names[0], names=names)
        seconds = time.perf_counter() - began
    print(
        json.dumps(
            {"pairs": asked.pairs, "sides": asked.sides, "seconds": round(seconds, 1), "in_models": round(in_models, 1),
             "share_in_models": round(in_models / seconds, 4), "decoding_once": round(decoding, 1)}
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()

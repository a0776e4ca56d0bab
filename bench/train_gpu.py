"""Training steps on one GPU beside open_clip's own, eager and compiled: python -m bench.train_gpu [--only MODEL]

bf16, captions of 6 to 20 tokens, data on the GPU; then the same step fed from JPEG shards through the whole input pipeline.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from PIL import Image

from bench import gpu
from clipft_tasks.contracts.dataset import DatasetCard
from clipft_tasks.core.settings import settings
from clipft_tasks.data import loader, shards
from clipft_tasks.data.versioning import Dataset, Version
from clipft_tasks.domains import Augment
from clipft_tasks.model.clip import Clip

CASES = [("ViT-B-32", 1024), ("ViT-B-16", 512), ("ViT-L-14", 160)]
IMAGES = 6144
WORKERS = 12


def shard_set(folder: Path) -> Dataset:
    """JPEG images of 256 to 320 pixels with captions of their own, in shards."""
    rng = np.random.default_rng(0)

    def entry(number: int) -> shards.Entry:
        wide, high = rng.integers(256, 321, 2)
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(coarse).resize((int(wide), int(high)), Image.Resampling.BICUBIC).save(out, "JPEG", quality=88)
        return shards.Entry(f"{number:032x}", "jpg", out.getvalue())

    places = dict(shards.pack((entry(i) for i in range(IMAGES)), folder))
    rows = [
        {"key": key, "name": key, "sha256": key, "shard": p.shard, "offset": p.offset, "length": p.length, "label": "", "group": "",
         "caption": " ".join(["a photo of thing", *(str(int(d)) for d in str(int(key, 16)))]), "split": "train"}
        for key, p in places.items()
    ]  # fmt: skip
    card = DatasetCard(domain="general", source="made", rows=len(rows), rejected=0, counts={}, classes={}, content="")
    return Dataset(Version("general", 1, "bench" * 8, card), pd.DataFrame(rows), folder)


def pipeline(clip: Clip, batch: int) -> dict[str, float]:
    """Pairs per second from shards: the first epoch's decoding, and the epochs after it."""
    device = torch.device("cuda")
    with tempfile.TemporaryDirectory() as folder:
        dataset = shard_set(Path(folder, "shards"))
        began = time.perf_counter()
        data = loader.TrainingData.open(
            dataset, clip, Augment(crop_min=0.8), largest=clip.side, batch=batch, seed=0, workers=WORKERS, gray_bits=8
        )
        decoding = time.perf_counter() - began
        run = gpu.our_step(clip, gpu.ready(clip, batch), True, batch)
        current: list[loader.Batch] = []
        step_on = gpu.our_step(clip, cast(loader.Batch, _Current(current)), True, batch)
        first, last = 0, 8 * data.sampler.steps_per_epoch

        def make(step: int) -> loader.Batch:
            return data.batch(step, clip.side, bucketed=True, pinned=True)

        taken: list[float] = []
        for fed in loader.ahead(make, first, last, device=device, resident=True, workers=WORKERS):
            current[:] = [fed]
            if len(taken) == 5:
                torch.cuda.synchronize()
                began = time.perf_counter()
            step_on()
            taken.append(len(fed))
        torch.cuda.synchronize()
        fed_rate = sum(taken[5:]) / (time.perf_counter() - began)
        own = batch / gpu.seconds(run)
    return {"decode_images_per_second": IMAGES / decoding, "from_shards": fed_rate, "ready": own, "share": fed_rate / own}


class _Current:
    """Stands for whichever batch is current, so that one step function serves all."""

    def __init__(self, holder: list[loader.Batch]) -> None:
        self.holder = holder

    def __getattr__(self, name: str) -> object:
        return getattr(self.holder[0], name)

    def __len__(self) -> int:
        return len(self.holder[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="one model")
    parser.add_argument("--no-pipeline", action="store_true")
    asked = parser.parse_args()
    metrics: dict[str, dict[str, float]] = {}
    for name, batch in [c for c in CASES if not asked.only or c[0] == asked.only]:
        rates = {}
        for case in ("peer eager", "peer compiled", "ours"):
            gpu.fresh()
            clip = gpu.model_of(name, quick=case == "ours")
            if case == "ours":
                run = gpu.our_step(clip, gpu.ready(clip, batch), True, batch)
            else:
                run = gpu.open_clips_step(clip, batch, case == "peer compiled")
            rates[case] = batch / gpu.seconds(run)
            rates[f"{case} GiB"] = gpu.peak_gib()
            if case == "ours" and name == "ViT-B-32" and not asked.no_pipeline:
                metrics["pipeline ViT-B-32"] = pipeline(clip, batch)
            del run, clip
            print(json.dumps({name: rates}), file=sys.stderr, flush=True)
        rates |= {"over eager": rates["ours"] / rates["peer eager"], "over compiled": rates["ours"] / rates["peer compiled"]}
        metrics[f"{name} at {batch}"] = rates
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, pairs per second")
    print(
        "| model and batch | open_clip eager | compiled | ours | over eager | over compiled | GiB ours / eager |\n|---|---|---|---|---|---|---|"
    )
    for name, f in metrics.items():
        if "ours" in f:
            print(
                f"| {name} | {f['peer eager']:,.0f} | {f['peer compiled']:,.0f} | {f['ours']:,.0f} | {f['over eager']:.2f}x | "
                f"{f['over compiled']:.2f}x | {f['ours GiB']:.1f} / {f['peer eager GiB']:.1f} |"
            )
    if p := metrics.get("pipeline ViT-B-32"):
        print(f"From JPEG shards: {p['from_shards']:,.0f} of {p['ready']:,.0f} pairs/s ({p['share']:.0%}); "
              f"decoding once: {p['decode_images_per_second']:,.0f} images/s")  # fmt: skip
    print(json.dumps(metrics))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["CLIPFT_HOME"] = home
        settings.cache_clear()
        main()

"""A small real model and a batch of it, for every test that compares two ways to one gradient."""

import copy
from functools import partial

import numpy as np
import open_clip
import torch
from conftest import TINY

from clipft_tasks.data import augment
from clipft_tasks.data.loader import Batch
from clipft_tasks.domains import Augment
from clipft_tasks.model.clip import Clip
from clipft_tasks.train import step
from clipft_tasks.train.probes import precision_context

DEVICE = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
CAPTIONS = [
    "a red square",
    "a blue square with a rather long description of everything in it",
    "green",
    "a red square in a box",
]


def a_clip(kind: type = open_clip.CLIP) -> Clip:
    torch.manual_seed(0)
    model = kind(**copy.deepcopy(TINY["model_cfg"])).train()
    return Clip(model, open_clip.SimpleTokenizer(context_length=32), copy.deepcopy(TINY), "tiny", "").to(DEVICE)


def a_batch(clip: Clip, n: int = 12, rank: int = 0, world: int = 1) -> Batch:
    """`n` pairs over four captions; the share of `rank`."""
    generator = torch.Generator().manual_seed(1)
    caption = torch.randint(0, len(CAPTIONS), (n,), generator=generator)
    share = -(-n // world)
    mine = slice(min(rank * share, n), min((rank + 1) * share, n))
    return Batch(
        side=32,
        pictures=torch.randint(0, 256, (n, 3, 40, 40), generator=generator, dtype=torch.uint8)[mine],
        geometry=augment.draw(n, Augment(rotate90=True, brightness=0.1), 0, 1).part(mine),
        rows=mine,
        tokens=clip.tokenise(CAPTIONS),
        caption=caption,
        label=caption % 2,
        keys=np.array([f"row {i}" for i in range(n)]),
    )


def towers(clip: Clip, precision: str = "fp32") -> step.Towers:
    return step.Towers(clip, clip.image_features, clip.text_features, partial(precision_context, DEVICE.type, precision))

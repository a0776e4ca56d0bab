"""What the GPU benches share: a model by name with random weights, captions as people write them, timing, open_clip's step."""

import copy
import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import open_clip
import torch
from torch import Tensor

from clipft_tasks.data import augment
from clipft_tasks.data.loader import Batch
from clipft_tasks.devices.precision import precision_context
from clipft_tasks.model.clip import Clip, OpenClipConfig
from clipft_tasks.model.fastpath import quicken
from clipft_tasks.objectives import InfoNCE
from clipft_tasks.train import step
from clipft_tasks.train.distributed import ALONE, World

WORDS = 20  # captions of 6 to 20 tokens


def model_of(name: str, quick: bool) -> Clip:
    """An open_clip model with random weights on the GPU."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, output_dict=True)
    config: OpenClipConfig = {
        "model_cfg": open_clip.get_model_config(name),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }
    clip = Clip(quicken(model) if quick else model, open_clip.get_tokenizer(name), copy.deepcopy(config), name, "")
    clip.model.cuda().train()
    return clip


def tokens_of(count: int, context: int = 77) -> Tensor:
    """Token ids of captions of 6 to 20 tokens, padded to the context."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(count, context, dtype=torch.long)
    for row in tokens:
        length = int(torch.randint(6, WORDS + 1, (1,), generator=generator))
        row[0], row[length + 1] = 49406, 49407
        row[1 : length + 1] = torch.randint(1, 40000, (length,), generator=generator)
    return tokens


class Ready(Batch):
    """Images that need nothing but to be taken: fp32 on the GPU."""

    def augmented(self, part: slice, device: torch.device) -> Tensor:
        return self.images[part]


def ready(clip: Clip, count: int, images: Tensor | None = None, world: World = ALONE) -> Ready:
    """A batch of `count` pairs; of the images, this process's share."""
    side, mine = clip.side, world.local_rows(count)
    tokens = tokens_of(count)
    return Ready(
        side=side,
        images=torch.rand(mine.stop - mine.start, 3, side, side, device="cuda") * 255 if images is None else images[mine],
        geometry=augment.draw(1, augment.PLAIN, 0, 0),
        rows=mine,
        tokens=tokens[:, :24],
        caption=torch.arange(count),
        label=torch.full((count,), -1),
        keys=np.arange(count),
    )


def adamw(clip: Clip) -> torch.optim.Optimizer:
    return torch.optim.AdamW(clip.model.parameters(), lr=1e-5, fused=True)


def our_step(clip: Clip, batch: Batch, compiled: bool, micro: int, world: World = ALONE) -> Callable[[], Tensor]:
    """One optimization step as the training loop takes it."""
    image, text = clip.image_features, clip.text_features
    if compiled:
        image, text = torch.compile(image, dynamic=False), torch.compile(text, dynamic=False)

    def context() -> AbstractContextManager[object]:
        return precision_context("cuda", "bf16")

    towers, optimizer = step.Towers(clip, image, text, context), adamw(clip)
    parameters = list(clip.model.parameters())
    unread: list[Tensor] = []  # the loop reads a step's metrics while the next one runs

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        report = step.backward(towers, InfoNCE(), batch, micro_batch=micro, seed=1, world=world)
        world.sum_gradients(parameters, [clip.model.logit_scale])
        report["norm"] = step.total_norm(parameters)
        metrics = torch.stack(list(report.values()))
        step.clip_and_skip(optimizer, metrics, report["norm"], 1.0)
        optimizer.step()
        clip.model.logit_scale.data.clamp_(0, math.log(100))
        while unread:
            unread.pop().tolist()
        unread.append(metrics)
        return report["loss"]

    return run


def open_clips_step(clip: Clip, count: int, compiled: bool, accumulate: int = 1) -> Callable[[], Tensor]:
    """One optimization step as open_clip_train takes it: bf16 autocast, fused AdamW, all of the context."""
    model = torch.compile(clip.model) if compiled else clip.model
    loss_of, optimizer = open_clip.ClipLoss(), adamw(clip)
    images, texts = torch.randn(count, 3, clip.side, clip.side, device="cuda"), tokens_of(count).cuda()

    def run() -> Tensor:
        loss: Tensor
        optimizer.zero_grad()
        if accumulate == 1:
            with torch.autocast("cuda", torch.bfloat16):
                out = model(images, texts)
                loss = loss_of(out["image_features"], out["text_features"], out["logit_scale"])
            loss.backward()
        else:
            kept: dict[str, list[Tensor]] = {"image_features": [], "text_features": []}
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
                for _ in range(accumulate):
                    out = model(images, texts)
                    for name, values in kept.items():
                        values.append(out[name])
            for j in range(accumulate):
                with torch.autocast("cuda", torch.bfloat16):
                    out = model(images, texts)
                    inputs = {n: torch.cat([*v[:j], out[n], *v[j + 1 :]]) for n, v in kept.items()}
                    loss = loss_of(**inputs, logit_scale=out["logit_scale"])
                loss.backward()
        optimizer.step()
        clip.model.logit_scale.data.clamp_(0, math.log(100))
        return loss

    return run


def seconds(run: Callable[[], object], rounds: int = 3, each: int = 4, warm: int = 3) -> float:
    """Seconds of one call: the median over rounds of several calls, after warming up."""
    for _ in range(warm):
        run()
    torch.cuda.synchronize()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(each):
            run()
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - began) / each)
    return statistics.median(taken)


def fresh() -> None:
    """Forget what the case before compiled and allocated."""
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    return torch.cuda.max_memory_allocated() / 2**30

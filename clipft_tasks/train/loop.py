"""The training loop: flat, from the first step to the last."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from ..data.loader import TrainingData
from ..errors import ClipftError
from ..model.clip import Clip
from ..objectives import Objective
from ..progress import progress, say
from ..spec import TrainSpec
from . import step as steps
from .checkpoints import Checkpoints
from .hardware import use_threads
from .plan import DTYPES, MEMORY_FORMATS, Plan

MAX_SCALE = 100.0  # of the logits, as in CLIP
Log = Callable[[int, dict[str, float]], None]


def train(
    clip: Clip, objective: Objective, data: TrainingData, spec: TrainSpec, plan: Plan, checkpoints: Checkpoints, log: Log
) -> dict[str, float]:
    """Fine-tune `clip` in place, from its newest checkpoint if there is one.

    Args:
        log: receives (step, figures) for every step, in batches, each step exactly once per process.
    Returns: figures of the whole run: steps, pairs, pairs per second of this process, steps resumed from.
    Raises:
        ClipftError: the loss is not finite (with step and learning rate), or a checkpoint cannot be written.
    """
    use_threads(plan.threads.value)
    device = torch.device(plan.device.value)
    clip.to(device)
    model = clip.model.train().to(memory_format=MEMORY_FORMATS[plan.layout.value])
    steps.freeze_statistics(model)
    dtype = DTYPES[plan.precision.value]
    optimiser = torch.optim.AdamW(_groups(model, spec.weight_decay), lr=spec.learning_rate, fused=device.type == "cuda")
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    last = data.sampler.steps_per_epoch * spec.epochs

    first = 0
    if state := checkpoints.latest():
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])
        first = state["step"]
        say(f"Resumed at step {first} of {last}.")

    def autocast() -> Any:
        return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)

    pending: list[tuple[int, dict[str, float]]] = []

    def save(done: int) -> None:
        checkpoints.save(
            done, {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "scaler": scaler.state_dict()}
        )
        for number, figures in pending:  # after the checkpoint: what a resumed run repeats was not logged before
            log(number, figures)
        pending.clear()

    began = saved = time.monotonic()
    pairs = 0
    for number in progress(range(first, last), "steps", last - first):
        rate = _learning_rate(number, last, spec)
        for group in optimiser.param_groups:
            group["lr"] = rate
        waited = time.monotonic()
        batch = data.batch(number, device)
        data_seconds = time.monotonic() - waited

        optimiser.zero_grad(set_to_none=True)
        figures = steps.backward(
            clip,
            objective,
            batch,
            micro_batch=plan.micro_batch.value,
            seed=(spec.seed * 1_000_003 + number) * 1009 % 2**62,
            autocast=autocast,
            layout=MEMORY_FORMATS[plan.layout.value],
            loss_scale=scaler.scale,
        )
        if not math.isfinite(figures["loss"]):
            raise ClipftError(
                f"training step {number}",
                f"the loss is {figures['loss']} (learning rate {rate:.2g}, temperature {figures['temperature']:.3g})",
                "Lower train.learning_rate, or look at this batch's pictures; the last good checkpoint is kept.",
            )
        scaler.unscale_(optimiser)
        norm = nn.utils.clip_grad_norm_(model.parameters(), spec.grad_clip or math.inf)
        scaler.step(optimiser)
        scaler.update()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(MAX_SCALE))

        rows = len(batch["label"])
        pairs += rows
        seconds = time.monotonic() - waited
        pending.append(
            (
                number,
                figures
                | {
                    "learning_rate": rate,
                    "gradient_norm": float(norm),
                    "epoch": number / data.sampler.steps_per_epoch,
                    "pairs_per_second": rows / seconds,
                    "data_wait_share": data_seconds / seconds,
                    "memory_gb": _memory(device) / 2**30,
                },
            )
        )
        if number + 1 < last and time.monotonic() - saved >= spec.checkpoint_seconds:
            save(number + 1)
            saved = time.monotonic()
    if first < last:
        save(last)
    seconds = time.monotonic() - began
    model.eval()
    return {"steps": last, "resumed_at": first, "pairs": pairs, "pairs_per_second": pairs / seconds if pairs else 0.0}


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; norms, biases and the temperature do not."""
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _learning_rate(step: int, last: int, spec: TrainSpec) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(last * spec.warmup))
    if step < warm:
        return spec.learning_rate * (step + 1) / warm
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, last - warm)))


def _memory(device: torch.device) -> int:
    """Bytes in use: the device's allocator, or the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    import psutil

    return int(psutil.Process().memory_info().rss)

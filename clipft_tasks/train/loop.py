"""The training loop: flat, from the first step to the last."""

import copy
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..core.console import progress, say
from ..core.errors import ClipftError, Transient
from ..data import loader
from ..data.augment import PLAIN
from ..data.loader import Batch, TrainingData
from ..devices import memory
from ..devices.hardware import free_memory, hold_to, keep_freed_memory, use_threads
from ..devices.memory import MicroBatches, OutOfMemory
from ..model import attention
from ..model.activation_checkpointing import checkpoint_blocks, plain_blocks
from ..model.adapters import add_low_rank, merge_low_rank
from ..model.clip import Clip
from ..objectives import Objective
from ..spec import ResolutionSpec, TrainSpec
from . import microbenchmarks
from . import step as steps
from .checkpoints import Checkpoints
from .distributed import ALONE, World
from .param_groups import groups
from .plan import EVERY, Plan, multiple
from .schedule import Schedule
from .validation import Best, Judged

MAX_SCALE = 100.0  # of the logits, as in CLIP
MAX_OVERFLOWS = 25  # in a row: then it is no longer the scale that is too high
Log = Callable[[list[tuple[int, dict[str, float]]]], None]


class Stopped(Transient):
    """SIGTERM came, and the checkpoint is written; on every process at the same step."""


@dataclass
class Work:
    """What one training run works on.

    Attributes:
        data: the training split.
        log: receives (step, metrics) of steps, each once, after the checkpoint that covers them.
        world: the processes that share the run.
        judge: asks the model, as it would be kept now, about the validation split, some images at a time; called after each
            epoch. None: the last weights are kept.
        general_score: how much of the general set that model still knows, 0..1, likewise; None where nothing limits forgetting.
        after_epoch: receives (epochs done, the judge's answer); may end the run by raising.
    """

    clip: Clip
    objective: Objective
    data: TrainingData
    spec: TrainSpec
    resolution: ResolutionSpec
    plan: Plan
    checkpoints: Checkpoints
    log: Log
    world: World = field(default=ALONE)
    judge: Callable[[int], Judged] | None = None
    general_score: Callable[[], float] | None = None
    after_epoch: Callable[[int, Judged], None] | None = None


def train(work: Work) -> dict[str, float]:
    """Fine-tune the model in place, from its newest checkpoint if there is one.

    Returns: metrics of the whole run: steps, the epoch whose weights are kept, pairs, pairs per second of this process, the
        step resumed from, and how often memory was short or fp16 overflowed.
    Raises:
        ClipftError: the loss is not finite (with step, rows and layer), one pair does not fit, or a checkpoint cannot be written.
        Stopped: SIGTERM came; a checkpoint was written first.
    """
    clip, plan, spec, world = work.clip, work.plan, work.spec, work.world
    use_threads(plan.threads.value)
    keep_freed_memory()
    device = torch.device(plan.device.value)
    hold_to(device.type, int(plan.memory_gb.value * 2**30))
    start = _frozen(clip, plan) if work.objective.needs_start else None
    if spec.lora_rank:
        add_low_rank(clip.model, spec.lora_rank, spec.seed)
    clip.to(device)
    work.objective.to(device)
    model = clip.model.train().to(memory_format=microbenchmarks.MEMORY_FORMATS[plan.layout.value])
    steps.freeze_statistics(model)
    if EVERY[plan.checkpointing.value]:
        checkpoint_blocks(model, EVERY[plan.checkpointing.value])
    towers = _towers(clip, plan)

    trained = groups(model, spec)
    shared = [*work.objective.parameters(), *clip.similarity.parameters()]  # gradients that every process computes whole
    trained.append({"params": shared, "factor": 1.0, "head": True, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW([g for g in trained if g["params"]], lr=spec.learning_rate, fused=device.type == "cuda")
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    shared += [p for name in ("logit_scale", "logit_bias") if (p := getattr(model, name, None)) is not None]
    half = plan.precision.value == "fp16"
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    per_epoch = work.data.sampler.steps_per_epoch
    last = per_epoch * spec.epochs
    schedule = Schedule(spec, work.resolution, work.data.how, last, multiple(clip))
    share = -(-work.data.sampler.batch // world.size)
    micro = MicroBatches(plan.micro_batches, share, int(plan.memory_gb.value * 2**30))
    best = Best(spec.keep == "best", spec.patience, spec.max_forgetting)

    first = done = overflows = in_a_row = 0
    _fit_similarity(towers, work)
    if start:
        start.clip.similarity = copy.deepcopy(clip.similarity).requires_grad_(False)
    pull = _Pull(trained[:-1], spec.l2_start) if spec.l2_start else None
    average = _Average(clip, spec.ema) if spec.ema else None
    if state := work.checkpoints.latest():
        clip.load_state(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        work.objective.load_state_dict(state["objective"])
        if average:
            average.load(state["average"])
        best.load(state["best"])
        first = last if best.stopped else state["step"]
        done = state["step"]
        say(f"Resumed at step {state['step']} of {last}.")
    world.copy_from_leader([*clip.state().values()])  # a process without the file has the same weights

    pending: list[tuple[int, dict[str, float]]] = []
    unread: deque[_Unread] = deque()
    # On CUDA a step's metrics are read while the next one runs, so that the device never waits for us; should they be no
    # numbers, the fused optimizer has skipped the step by itself.
    late = device.type == "cuda" and not half

    def settle(keep: int = 0) -> None:
        while len(unread) > keep:
            step = unread.popleft()
            metrics = dict(zip(step.names, step.values.tolist(), strict=True))
            if late and not all(map(math.isfinite, metrics.values())):
                raise _not_finite(towers, step.batch, step.number, step.rate, metrics, 0)
            pending.append((step.number, metrics | step.extra))

    def save(done: int) -> None:
        settle()
        if world.leads:
            content = {"model": clip.state(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
            content |= {"objective": work.objective.state_dict(), "average": average.state() if average else {}}
            work.checkpoints.save(done, content | {"best": best.state(), "plan": plan.to_dict()})
            work.log(list(pending))  # after the checkpoint: what a resumed run repeats was not logged before
        pending.clear()

    def prepare(number: int) -> Batch:
        return work.data.batch(
            number, schedule.side(number), how=schedule.augment(number), rank=world.rank, world=world.size,
            bucketed=device.type != "cpu", pinned=device.type == "cuda",
        )  # fmt: skip

    @contextmanager
    def asked() -> Iterator[None]:
        with _as_kept(clip, average), towers.context(), attention.use(plan.policy(free_memory(device.type))):
            yield

    def judge(epoch: int) -> dict[str, float]:
        assert work.judge is not None
        with asked():
            judged = work.judge(micro.at(plan.sides[-1]))
            known = work.general_score() if work.general_score else None
        beside = best.note(epoch, judged, known, average.weights if average else clip.state())
        say(f"Epoch {epoch} of {spec.epochs}: {judged}{beside}")
        if work.after_epoch is not None:
            work.after_epoch(epoch, judged)
        return {"val.score": judged.score} | ({} if known is None else {"val.general_score": known})

    if work.general_score and not done and world.leads:
        with asked():
            best.start = work.general_score()
    resident = all(micro.fits(side, share) for side in plan.sides)
    batches = loader.ahead(prepare, first, last, device=device, resident=resident, workers=plan.workers.value)
    began = saved = time.monotonic()
    pairs = 0
    side = 0
    stop = threading.Event()
    with on_sigterm(stop.set):
        for number in progress(range(first, last), "steps", last - first) if world.leads else range(first, last):
            waited = time.monotonic()
            batch = next(batches)
            data_seconds = time.monotonic() - waited
            rate = schedule.rate(number)
            heads = schedule.heads_only(number)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
                for parameter in group["params"]:
                    parameter.requires_grad_(group["head"] or not heads)
            if side and batch.side != side:
                memory.release(device)  # graphs and buffers of the old size
            side = batch.side

            seed = (spec.seed * 1_000_003 + number) * 1009 % 2**62
            while True:
                optimizer.zero_grad(set_to_none=True)
                try:
                    with attention.use(plan.policy(free_memory(device.type))):
                        report = steps.backward(
                            towers,
                            work.objective,
                            batch,
                            micro_batch=micro.at(side),
                            seed=seed,
                            loss_scale=scaler.scale,
                            world=world,
                            start=start,
                            progress=number / last,
                        )
                    break
                except OutOfMemory as error:  # the same rows again in smaller parts; the gradient is the same
                    why = str(error)
                optimizer.zero_grad(set_to_none=True)
                memory.release(device)
                micro.failed(side, share, why)
            world.sum_gradients(parameters, shared)
            scaler.unscale_(optimizer)
            norm = report["gradient_norm"] = steps.total_norm(parameters)
            limit = spec.grad_clip or math.inf
            values = torch.stack(list(report.values()))
            overflow = False
            if late:
                steps.clip_and_skip(optimizer, values, norm, limit)
            else:
                nn.utils.clip_grads_with_norm_(parameters, limit, norm)
                metrics = dict(zip(report, values.tolist(), strict=True))
                overflow = half and math.isfinite(metrics["loss"]) and not math.isfinite(metrics["gradient_norm"])
                in_a_row = in_a_row + 1 if overflow else 0
                overflows += overflow
                if (not overflow and not all(map(math.isfinite, metrics.values()))) or in_a_row > MAX_OVERFLOWS:
                    raise _not_finite(towers, batch, number, rate, metrics, in_a_row)
            scaler.step(optimizer)  # skipped by the scaler after an overflow, which also halves the scale
            scaler.update()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(MAX_SCALE))
            if pull and not overflow:
                pull(rate)
            if average and not overflow:
                average.update(clip)

            rows = len(batch)
            pairs += rows
            seconds = time.monotonic() - waited
            in_use = memory.used(device)
            micro.went_well(side, in_use)
            flops = plan.flops.value.get(str(side), 0.0) * rows / seconds
            extra = {
                "learning_rate": rate,
                "epoch": number / per_epoch,
                "side": side,
                "micro_batch": min(micro.at(side), share),
                "pairs_per_second": rows / seconds,
                "data_wait_share": data_seconds / seconds,
                "seconds_left": (last - number - 1) * (time.monotonic() - began) / (number + 1 - first),
                "memory_gb": in_use / 2**30,
                "flops_utilization": flops / world.size / plan.flops.measured.get("device_flops", math.inf),
            }
            if half:
                extra |= {"loss_scale": scaler.get_scale(), "overflows": overflows}
            unread.append(_Unread(number, batch, rate, list(report), values, extra))
            settle(keep=1 if late else 0)
            done = number + 1

            if done % per_epoch == 0 and work.judge is not None:
                settle()
                if world.leads:
                    pending[-1][1].update(judge(done // per_epoch))
                if world.any(best.stopped):
                    if world.leads:
                        say(f"Stopped after epoch {done // per_epoch}: nothing better in {spec.patience} epochs.")
                    break
            if world.any(stop.is_set()):
                save(done)
                raise Stopped(
                    f"Stopped by a signal at step {done} of {last}; the checkpoint is written and the next try resumes."
                )
            if done < last and time.monotonic() - saved >= spec.checkpoint_seconds:
                save(done)
                saved = time.monotonic()
        if first < last:
            save(done)
    seconds = time.monotonic() - began

    if best.weights:
        clip.load_state(best.weights)
    elif average:
        clip.load_state(average.weights)
    world.copy_from_leader([*clip.state().values()])  # who alone has the best
    plain_blocks(model)
    merge_low_rank(model)
    model.requires_grad_(True).eval()
    return {
        "steps": done,
        "kept_epoch": best.epoch if best.weights else done / per_epoch,
        "resumed_at": first,
        "pairs": pairs,
        "pairs_per_second": pairs / seconds if pairs else 0.0,
        "overflows": overflows,
        "out_of_memory": micro.failures,
    }


def _frozen(clip: Clip, plan: Plan) -> steps.Towers:
    """The model as it is now, on the plan's device, never to change."""
    model = copy.deepcopy(clip.model).eval().requires_grad_(False).to(plan.device.value)
    still = replace(clip, model=model.to(memory_format=microbenchmarks.MEMORY_FORMATS[plan.layout.value]))
    return _towers(still, plan)


def _fit_similarity(towers: steps.Towers, work: Work) -> None:
    """Fit a similarity that the start model did not have to the features that it will see first."""
    similarity = towers.clip.similarity
    if not similarity.fitted and similarity.state_dict():
        batch, part = work.data.batch(0, work.resolution.train, how=PLAIN), slice(0, 32)
        with torch.no_grad():
            similarity.begin(towers.image_features(batch, part, 0), towers.text_features(batch.tokens[part], 0))
    similarity.fitted = True


def _towers(clip: Clip, plan: Plan) -> steps.Towers:
    """The towers as the plan wants them run."""
    image, text = clip.image_features, clip.text_features
    if plan.compile.value:
        # Sizes come from small sets, so each is compiled for its own shape, the fastest code there is.
        torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
        image, text = torch.compile(image, dynamic=False), torch.compile(text, dynamic=False)
    context = partial(microbenchmarks.precision_context, plan.device.value, plan.precision.value)
    return steps.Towers(clip, image, text, context, microbenchmarks.MEMORY_FORMATS[plan.layout.value])


@contextmanager
def _as_kept(clip: Clip, average: "_Average | None") -> Iterator[None]:
    """The model as it would be kept if training ended here: not training, with the averaged weights where there are any."""
    trained = {name: value.clone() for name, value in clip.state().items()} if average else {}
    if average:
        clip.load_state(average.weights)
    clip.model.eval()
    try:
        yield
    finally:
        if average:
            clip.load_state(trained)
        clip.model.train()
        steps.freeze_statistics(clip.model)


def _not_finite(
    towers: steps.Towers, batch: Batch, number: int, rate: float, metrics: dict[str, float], overflows: int
) -> ClipftError:
    """What to say of a loss or gradient that is no number: where, on which rows, and what to do."""
    if overflows > MAX_OVERFLOWS:
        why = f"the gradient overflowed fp16 in {overflows} steps in a row"
        fix = "Set memory.precision to bf16 or fp32, or lower train.learning_rate."
    else:
        bad = next(name for name, value in metrics.items() if not math.isfinite(value))
        for parameter in towers.clip.model.parameters():
            parameter.grad = None
        module = steps.first_bad_module(towers, batch, slice(0, min(8, len(batch.images))), 0)
        where = f" first in {module}" if module else " outside the towers"
        why = f"{bad} is {metrics[bad]},{where} (learning rate {rate:.2g}, temperature {metrics['temperature']:.3g})"
        fix = f"Lower train.learning_rate, or look at this batch (rows {', '.join(k[:12] for k in batch.keys[:4])}, …)."
    return ClipftError(f"training step {number}", why, f"{fix} The last good checkpoint is kept.")


@dataclass
class _Unread:
    """A step whose metrics are still on the device."""

    number: int
    batch: Batch
    rate: float
    names: list[str]
    values: torch.Tensor
    extra: dict[str, float]


@contextmanager
def on_sigterm(do: Callable[[], None]) -> Iterator[None]:
    """SIGTERM calls `do` instead of ending the process, so that a checkpoint can be written first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: do())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Pull:
    """Weights drawn back to where they began, beside the gradient as in AdamW's weight decay (L2-SP, Li et al. 2018,
    https://arxiv.org/abs/1802.01483). A resumed run begins with the start model again, so nothing of it is kept.

    Args:
        groups: of the optimizer; only the start model's own weights.
        strength: share of the way back that a step goes, over the learning rate.
    """

    def __init__(self, groups: list[dict[str, Any]], strength: float) -> None:
        self.strength = strength
        self.members = [(g["params"], [p.detach().clone() for p in g["params"]], g["factor"]) for g in groups]

    @torch.no_grad()
    def __call__(self, rate: float) -> None:
        for parameters, start, factor in self.members:
            torch._foreach_lerp_(parameters, start, min(1.0, rate * factor * self.strength))


class _Average:
    """A running average of the weights (EMA), in fp32 beside them."""

    def __init__(self, clip: Clip, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.weights = {name: value.detach().clone() for name, value in clip.state().items()}

    @torch.no_grad()
    def update(self, clip: Clip) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))  # or the start would weigh too much in short runs
        for name, value in clip.state().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "weights": self.weights}

    def load(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)

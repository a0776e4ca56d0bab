"""The training loop: flat, from the first step to the last."""

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..contracts.plan import Plan
from ..core.console import progress, say
from ..core.errors import TransientError
from ..data import loader
from ..data.augment import PLAIN
from ..data.loader import Batch, TrainingData
from ..devices import backend
from ..devices.hardware import use_threads
from ..devices.host_allocator import keep_freed_memory
from ..devices.memory import OutOfMemoryError
from ..devices.precision import MEMORY_FORMATS
from ..model import attention
from ..model.activation_checkpointing import checkpoint_blocks, plain_blocks
from ..model.adapter_folder import Adapter
from ..model.adapters import add_low_rank, merge_low_rank
from ..model.clip import Clip
from ..objectives import Objective
from ..spec import ResolutionSpec, TrainSpec
from . import step as steps
from .best_epoch import BestEpoch
from .checkpoints import Checkpoints
from .distributed import ALONE, World
from .divergence import StepJudge
from .micro_batches import MicroBatches
from .param_groups import ParamGroup, groups
from .plan import EVERY, attention_policy
from .schedule import Schedule
from .state import PullToStart, TrainingState, WeightAverage, trained_names
from .step import Towers
from .step_log import Log, Step, StepLog
from .validation import ValidationResult

MAX_SCALE = 100.0  # of the logits, as in CLIP; a start model that has more (SigLIP) keeps what it has


class StoppedError(TransientError):
    """SIGTERM came, and the checkpoint is written; on every process at the same step."""


@dataclass
class Work:
    """What one training run works on.

    Attributes:
        data: the training split.
        log: receives (step, metrics) of steps, each once, after the checkpoint that covers them.
        world: the processes that share the run.
        validate: scores the model, as it would be kept now, on the validation split, some images at a time; called after each
            epoch. None: the last weights are kept.
        general_score: how much of the general set that model still knows, 0..1, likewise; None where nothing limits forgetting.
        after_epoch: receives (epochs done, the validation's result); may end the run by raising.
        saw: receives the bytes in use after each step.
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
    validate: Callable[[int], ValidationResult] | None = None
    general_score: Callable[[], float] | None = None
    after_epoch: Callable[[int, ValidationResult], None] | None = None
    saw: Callable[[int], None] | None = None


def train(work: Work) -> dict[str, float]:
    """Fine-tune the model in place, from its newest checkpoint if there is one.

    Returns: metrics of the whole run: steps, the epoch whose weights are kept, pairs, pairs per second of this process, the
        step resumed from, how often memory was short or fp16 overflowed, and the share of the time that checkpoints took.
    Raises:
        ClipftError: the loss is not finite (with step, rows and layer), one pair does not fit, or a checkpoint cannot be written.
        StoppedError: SIGTERM came; a checkpoint was written first.
    """
    # The model on its device, and what is computed from it.
    clip, plan, spec, world = work.clip, work.plan, work.spec, work.world
    device = backend(plan.device.value)
    use_threads(plan.threads.value)
    keep_freed_memory()
    device.limit_memory(plan.memory_limit)
    start = Towers.frozen(clip, plan) if work.objective.needs_start else None
    if spec.low_rank:
        say(f"LoRA: {add_low_rank(clip.model, spec.low_rank, spec.seed)}.")
    clip.to(device.name)
    work.objective.to(device.name)
    model = clip.model.train().to(memory_format=MEMORY_FORMATS[plan.layout.value])
    steps.freeze_statistics(model)
    if EVERY[plan.checkpointing.value]:
        checkpoint_blocks(model, EVERY[plan.checkpointing.value])
    towers = Towers.of(clip, plan)
    _fit_similarity(towers, work)
    ceiling = max(math.log(MAX_SCALE), float(model.logit_scale.detach().max()))
    if start:
        start.clip.similarity = copy.deepcopy(clip.similarity).requires_grad_(False)

    # What trains it, and how far it got.
    per_epoch = work.data.sampler.steps_per_epoch
    last = per_epoch * spec.epochs
    schedule = Schedule(spec, work.resolution, work.data.how, last, clip.tower.multiple)
    own = groups(model, spec)
    pull = PullToStart(own, spec.l2_start) if spec.l2_start else None
    state = _beginning(work, own)
    half = plan.precision.value == "fp16"
    late = device.late_metrics and steps.fused_step_skips(clip.device)
    log = StepLog(late, StepJudge(towers, state, scaled=half))
    if checkpoint := work.checkpoints.latest():
        state.load(checkpoint["step"], checkpoint)
        say(f"Resumed at step {state.step} of {last}.")
    world.broadcast([*clip.state().values()])  # a process without the file has the same weights
    first = last if state.best.stopped else state.step
    if work.general_score and not state.step and world.is_main_process:
        with _as_kept(work, state, towers):
            state.best.start = work.general_score()

    def batch_of(number: int) -> Batch:
        return work.data.batch(
            number, schedule.side(number), how=schedule.augment(number), rank=world.rank, world=world.size,
            bucketed=device.fixed_shapes, pinned=device.pinned_memory,
        )  # fmt: skip

    def save(*, over: bool = False) -> None:
        log.read()
        logged = partial(work.log, log.flush())  # after the checkpoint: what a resumed run repeats was not logged before
        if world.is_main_process:  # nothing changes any more once it is over: there is no need of a copy
            room = 0 if over else _room_to_copy(plan)
            work.checkpoints.begin(state.step, state.state(over=over), room=room, then=logged)

    resident = all(map(state.micro_batches.fits, plan.sides))
    batches = loader.ahead(
        batch_of, first, last, device=torch.device(device.name), resident=resident, workers=plan.workers.value
    )
    began = saved = time.monotonic()
    pairs = side = 0
    stop = threading.Event()
    with on_sigterm(stop.set), work.checkpoints:
        for number in progress(range(first, last), "steps", last - first) if world.is_main_process else range(first, last):
            waited = time.monotonic()
            batch = replace(next(batches), held=True)  # by its step, until that one's metrics are read
            data_seconds = time.monotonic() - waited
            rate = schedule.rate(number)
            _set_rates(state.optimizer, rate, schedule.heads_only(number))
            if number > first and schedule.phase(number) is not schedule.phase(number - 1):
                device.release()  # graphs and buffers of sizes that do not come again
            side = batch.side

            # The gradient, and a step along it.
            report = _gradient(work, state, towers, batch, number, start=start, progress=number / last)
            parameters = state.parameters
            world.sum_gradients(parameters, _computed_whole(work))
            state.scaler.unscale_(state.optimizer)
            norm = report["gradient_norm"] = steps.total_norm(parameters)
            if half:
                report["loss_scale"] = state.scaler.scale(torch.ones((), device=norm.device))
            limit = spec.grad_clip or math.inf
            values = torch.stack(list(report.values()))
            step = Step(number, batch, rate, list(report), values, {})
            if log.late:
                steps.clip_and_skip(state.optimizer, values, norm, limit)
                state.scaler.step(state.optimizer)
            else:
                nn.utils.clip_grads_with_norm_(parameters, limit, norm)
                if not log.settle(step):  # not every fused kernel skips such a step by itself
                    state.scaler.step(state.optimizer)
            state.scaler.update()  # halves the scale after an overflow
            with torch.no_grad():
                model.logit_scale.clamp_(0, ceiling)
            if pull:
                pull(rate)
            if state.average:
                state.average.update(clip)

            # What is known of it.
            rows = len(batch)
            pairs += rows
            seconds = time.monotonic() - waited
            in_use = device.memory_peak()
            device.reset_peak()
            if work.saw is not None:
                work.saw(in_use)
            state.micro_batches.went_well(side, in_use)
            flops = plan.flops.value.get(side, 0.0) * rows / seconds
            step.known.update({
                "learning_rate": rate,
                "epoch": number / per_epoch,
                "side": side,
                "micro_batch": min(state.micro_batches.at(side), state.micro_batches.local_batch),
                "pairs_per_second": rows / seconds,
                "data_wait_share": data_seconds / seconds,
                "seconds_left": (last - number - 1) * (time.monotonic() - began) / (number + 1 - first),
                "memory_gb": in_use / 2**30,
                "flops_utilization": flops / world.size / plan.flops.measured.get("device_flops", math.inf),
            })  # fmt: skip
            log.add(step)
            state.step = number + 1

            # The end of an epoch, of the run's time, or of a while.
            if state.step % per_epoch == 0 and work.validate is not None:
                log.read()
                if world.is_main_process:
                    log.add_to_last(_validate(work, state, towers, state.step // per_epoch))
                if world.any(state.best.stopped):
                    if world.is_main_process:
                        say(f"Stopped after epoch {state.step // per_epoch}: nothing better in {spec.patience} epochs.")
                    break
            if world.any(stop.is_set()):
                save()
                work.checkpoints.wait()
                raise StoppedError(
                    f"Stopped by a signal at step {state.step} of {last}; the checkpoint is written and the next try resumes."
                )
            if state.step < last and work.checkpoints.is_due(saved, spec.checkpoint_seconds, step.known["seconds_left"]):
                save()
                saved = time.monotonic()
        if first < last:
            save(over=True)
    seconds = time.monotonic() - began

    if state.best.weights or state.average:
        clip.load_state(state.best.weights or state.weights, some=True)
    world.broadcast([*clip.state().values()])  # one process alone has the best
    plain_blocks(model)
    if spec.low_rank:
        clip.adapter = Adapter.of(clip, spec.low_rank, state.trained)
    merge_low_rank(model)
    model.requires_grad_(True).eval()
    return {
        "steps": state.step,
        "kept_epoch": state.best.epoch if state.best.weights else state.step / per_epoch,
        "resumed_at": first,
        "pairs": pairs,
        "pairs_per_second": pairs / seconds if pairs else 0.0,
        "overflows": state.overflows,
        "out_of_memory": state.micro_batches.failures,
        "checkpoint_share": work.checkpoints.seconds / seconds if pairs else 0.0,
    }


# Before the first step ------------------------------------------------------------------------------------------------


def _fit_similarity(towers: Towers, work: Work) -> None:
    """Fit a similarity that the start model did not have to the features that it will see first."""
    similarity = towers.clip.similarity
    if not similarity.fitted and similarity.state_dict():
        batch, chunk = work.data.batch(0, work.resolution.side, how=PLAIN), slice(0, 32)
        with torch.no_grad():
            similarity.begin(towers.image_features(batch, chunk, 0), towers.text_features(batch.tokens[chunk], 0))
    similarity.fitted = True


def _beginning(work: Work, own: list[ParamGroup]) -> TrainingState:
    """The state before the first step.

    Args:
        own: the model's parameters, in groups.
    """
    clip, plan, spec = work.clip, work.plan, work.spec
    device = backend(plan.device.value)
    learned = [*work.objective.parameters(), *clip.similarity.parameters()]
    every = [*own, ParamGroup(params=learned, factor=1.0, head=True, weight_decay=0.0)]
    some = [dict(group) for group in every if group["params"]]
    trained = trained_names(clip, own)
    return TrainingState(
        clip=clip,
        objective=work.objective,
        optimizer=torch.optim.AdamW(
            some, lr=spec.peak_rate, betas=spec.betas, eps=spec.epsilon, fused=device.fused_optimizer
        ),
        scaler=torch.amp.GradScaler(device.name, enabled=plan.precision.value == "fp16"),
        average=WeightAverage(clip, spec.ema, trained) if spec.ema else None,
        best=BestEpoch(spec.keep == "best", spec.patience, spec.max_forgetting),
        micro_batches=MicroBatches(
            plan.micro_batch.value, work.world.local_batch(work.data.sampler.batch), plan.memory_limit,
            fixed=round(plan.micro_batch.measured.get("fixed_gib", 0.0) * 2**30), largest=work.world.most,
        ),
        plan=plan,
        trained=trained,
    )  # fmt: skip


def _room_to_copy(plan: Plan) -> int:
    """Bytes of the host's memory that a copy of the run's state may take."""
    device, host = backend(plan.device.value), backend("cpu")
    free = host.memory_free()
    return min(free, plan.memory_limit - device.memory_used()) if device.shares_host_memory else free


def _computed_whole(work: Work) -> list[nn.Parameter]:
    """Parameters whose gradient every process computes whole."""
    model = work.clip.model
    scale_and_bias = [p for name in ("logit_scale", "logit_bias") if (p := getattr(model, name, None)) is not None]
    return [*work.objective.parameters(), *work.clip.similarity.parameters(), *scale_and_bias]


# In a step ------------------------------------------------------------------------------------------------------------


def _set_rates(optimizer: torch.optim.Optimizer, rate: float, heads_only: bool) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
        for parameter in group["params"]:
            parameter.requires_grad_(group["head"] or not heads_only)


def _gradient(
    work: Work, state: TrainingState, towers: Towers, batch: Batch, number: int, *, start: Towers | None,
    progress: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Fill the gradients of a batch's loss: where memory runs out, of the same rows in smaller chunks, which gives the same.

    Returns: what `step.backward` reports.
    """
    device, side = backend(work.plan.device.value), batch.side
    seed = work.spec.seed * 1_000_003 + number
    while True:
        state.optimizer.zero_grad(set_to_none=True)
        try:
            with attention.use(attention_policy(work.plan.attention.value, device, work.plan.memory_limit)):
                return steps.backward(
                    towers,
                    work.objective,
                    batch,
                    micro_batch=state.micro_batches.at(side),
                    seed=seed,
                    loss_scale=state.scaler.scale,
                    world=work.world,
                    start=start,
                    progress=progress,
                )
        except OutOfMemoryError as error:
            why = str(error)
        state.optimizer.zero_grad(set_to_none=True)
        device.release()
        state.micro_batches.failed(side, why)


# After an epoch -------------------------------------------------------------------------------------------------------


def _validate(work: Work, state: TrainingState, towers: Towers, epoch: int) -> dict[str, float]:
    """Score the model as it would be kept now, and note whether it is the best so far. Returns metrics."""
    assert work.validate is not None
    with _as_kept(work, state, towers):
        result = work.validate(state.micro_batches.at(work.plan.sides[-1]))
        known = work.general_score() if work.general_score else None
    verdict = state.best.note(epoch, result, known, state.weights)
    say(f"Epoch {epoch} of {work.spec.epochs}: {result}{verdict}")
    if work.after_epoch is not None:
        work.after_epoch(epoch, result)
    return {"val.score": result.score} | ({} if known is None else {"val.general_score": known})


@contextmanager
def _as_kept(work: Work, state: TrainingState, towers: Towers) -> Iterator[None]:
    """The model as it would be kept if training ended here: not training, with the averaged weights where there are any."""
    clip, average = work.clip, state.average
    trained = {name: value.clone() for name, value in clip.state(state.trained).items()} if average else {}
    if average:
        clip.load_state(average.weights, some=True)
    clip.model.eval()
    policy = attention_policy(work.plan.attention.value, backend(work.plan.device.value), work.plan.memory_limit)
    try:
        with towers.context(), attention.use(policy):
            yield
    finally:
        if average:
            clip.load_state(trained, some=True)
        clip.model.train()
        steps.freeze_statistics(clip.model)


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

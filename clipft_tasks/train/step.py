"""One optimization step's gradient: the whole batch at once, in parts, on several devices; exactly the same, but for what dropout
and dropped paths draw, which each part draws for itself.

A contrastive loss needs all pairs of a batch at the same time, so ordinary accumulation changes it. Here the towers run
twice over parts: once to collect features, whose gradient is taken on the whole batch, and once more to carry that gradient
into the weights (GradCache, Gao et al. 2021, https://arxiv.org/abs/2101.06983). Memory follows the part, not the batch.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..contracts.plan import Plan
from ..data.loader import Batch
from ..devices import moved
from ..devices.memory import OutOfMemoryError, is_out_of_memory
from ..devices.precision import MEMORY_FORMATS, precision_context
from ..model.clip import Clip, by_length
from ..objectives import Objective, Pairs
from .distributed import ALONE, World

Context = Callable[[], AbstractContextManager[object]]
Encoder = Callable[[Tensor], Tensor]


@dataclass
class Towers:
    """How a model's two towers are run: precision, layout, attention, and what compiled them.

    Args:
        image: normalized images -> features; text: token ids -> features.
        context: precision and attention policy of both.
        layout: memory format of the images.
    """

    clip: Clip
    image: Encoder
    text: Encoder
    context: Context
    layout: torch.memory_format = torch.contiguous_format

    @classmethod
    def of(cls, clip: Clip, plan: Plan) -> "Towers":
        """The towers as a plan wants them run."""
        image, text = clip.image_features, clip.text_features
        if plan.compile.value:
            # Sizes come from small sets, so each is compiled for its own shape, the fastest code there is.
            torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
            image, text = torch.compile(image, dynamic=False), torch.compile(text, dynamic=False)
        context = partial(precision_context, plan.device.value, plan.precision.value)
        return cls(clip, image, text, context, MEMORY_FORMATS[plan.layout.value])

    @classmethod
    def frozen(cls, clip: Clip, plan: Plan) -> "Towers":
        """Those of a copy of the model as it is now, on the plan's device, never to change."""
        model = copy.deepcopy(clip.model).eval().requires_grad_(False).to(plan.device.value)
        return cls.of(replace(clip, model=model.to(memory_format=MEMORY_FORMATS[plan.layout.value])), plan)

    def image_features(self, batch: Batch, part: slice, seed: int) -> Tensor:
        """Features of some of the batch's images (p, d), fp32."""
        images = self.clip.normalize(batch.augmented(part, self.clip.device)).contiguous(memory_format=self.layout)
        return self._run(self.image, images, seed)

    def text_features(self, tokens: Tensor, seed: int, *, held: bool = False) -> Tensor:
        """Features of texts (p, d), fp32. held: see `moved`."""
        tokens = moved(tokens, self.clip.device, held=held)
        encode = partial(by_length, self.text, pad=self.clip.pad) if self.clip.pays_by_length(tokens) else self.text
        return self._run(encode, tokens, seed)

    def _run(self, encode: Encoder, inputs: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)  # seeds every device, so a second pass draws what the first one drew, on MPS too
        with self.context():
            return encode(inputs).float()


def backward(
    towers: Towers,
    objective: Objective,
    batch: Batch,
    *,
    micro_batch: int,
    seed: int,
    loss_scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    world: World = ALONE,
    start: Towers | None = None,
    progress: float = 0.0,
) -> dict[str, Tensor]:
    """Add the gradient of the batch's loss to the weights.

    Args:
        micro_batch: most pairs per forward pass; the batch's size or more means a single pass.
        seed: random numbers of the towers (dropout), the same in both passes.
        loss_scale: a gradient scaler's `scale`.
        world: the processes that share the batch; each ends with the gradient of its own share, to be summed.
        start: the frozen start model, for objectives that look at its features too.
        progress: share of the run that is done, for weights on schedule.
    Returns: the loss terms, their sum as `loss`, and mean cosines of matched and unmatched pairs, as scalars on the device.
    Raises:
        OutOfMemoryError: on any of the processes, on all of them. The weights' gradients are then incomplete.
    """
    own_texts = batch.tokens[world.local_rows(len(batch.tokens))]
    image_parts, text_parts = chunks_of(len(batch.images), micro_batch), chunks_of(len(own_texts), micro_batch)
    device = towers.clip.device

    def encode(number: int, towers: Towers = towers) -> Tensor:
        if number < len(image_parts):
            return towers.image_features(batch, image_parts[number], mixed(seed, world.rank, number))
        part = own_texts[text_parts[number - len(image_parts)]]
        return towers.text_features(part, mixed(seed, world.rank, number), held=batch.held)

    def gathered(features: Sequence[Tensor], width: int) -> tuple[Tensor, Tensor]:
        """Features of the parts, here and elsewhere, as those of all images and of all texts."""
        totals = len(batch), len(batch.tokens)
        with _agreeing(world):
            own = _joined(features[: len(image_parts)], width, device), _joined(features[len(image_parts) :], width, device)
            rooms = [world.room(part, total) if world.size > 1 else None for part, total in zip(own, totals, strict=True)]
        with _agreeing(world):
            return world.gather(own[0], totals[0], rooms[0]), world.gather(own[1], totals[1], rooms[1])

    everything = range(len(image_parts) + len(text_parts))
    largest = -(-max(len(batch), len(batch.tokens)) // world.size)
    single = largest <= micro_batch  # the same answer on every process
    with _agreeing(world), torch.enable_grad() if single else torch.no_grad():
        features = [encode(i) for i in everything]
    leaves = features if single else [f.requires_grad_() for f in features]
    image, text = gathered(leaves, towers.clip.embed_dim)
    before = None
    if start is not None:
        with _agreeing(world), torch.no_grad():
            frozen = [encode(i, start) for i in everything]
            before = as_pairs(start.clip, *gathered(frozen, start.clip.embed_dim), batch)
    with _agreeing(world):
        loss, report = batch_loss(towers.clip, objective, image, text, batch, before, progress)
        if loss.requires_grad:  # or no row is this process's own, and the objective looks at nothing else that learns
            loss_scale(loss).backward()  # fills the leaves' gradients, and those of scale, bias and objective
    if not single:
        with _agreeing(world):
            for i, leaf in zip(everything, leaves, strict=True):
                again = encode(i)
                if again.requires_grad and leaf.grad is not None:  # a tower may be frozen whole, or not be looked at
                    again.backward(leaf.grad)
    return report


def mixed(seed: int, rank: int, part: int) -> int:
    """A seed of its own for each part of a step in each process: rows elsewhere are not dropped out alike."""
    return int(np.random.SeedSequence([seed, rank, part]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _agreeing:
    """Running out of memory in here is the same exception everywhere, on every process."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        short = error is not None and is_out_of_memory(error)
        if error is not None and not short:
            return
        if self.world.any(short):
            raise OutOfMemoryError(str(error) if error else "on another process") from error


def chunks_of(count: int, each: int) -> list[slice]:
    return [slice(start, min(start + each, count)) for start in range(0, count, each)]


def _joined(features: Sequence[Tensor], width: int, device: torch.device) -> Tensor:
    return torch.cat(list(features)) if features else torch.zeros((0, width), device=device)


def as_pairs(clip: Clip, image: Tensor, text: Tensor, batch: Batch, start: Pairs | None = None, progress: float = 0.0) -> Pairs:
    """What an objective sees of a batch: features of every image (n, d), and of its captions, each once (u, d)."""
    device = image.device
    # Copies that wait for the device would keep it idle until all that follows has been queued.
    caption, label = (moved(of, device, held=batch.held) for of in (batch.caption, batch.label))
    return Pairs(
        image=clip.similarity.embed_image(image),
        text=clip.similarity.embed_text(text)[caption],  # a repeated caption was encoded once
        similarity=clip.similarity,
        scale=clip.model.logit_scale.exp(),
        captions=caption,
        labels=label,
        new=torch.zeros_like(label, dtype=torch.bool) if batch.new is None else moved(batch.new, device, held=batch.held),
        bias=getattr(clip.model, "logit_bias", None),
        start=start,
        progress=progress,
    )


def batch_loss(
    clip: Clip,
    objective: Objective,
    image: Tensor,
    text: Tensor,
    batch: Batch,
    start: Pairs | None = None,
    progress: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of features, and metrics about it.

    Args:
        image: of every image of the batch (n, d); text: of its captions, each once (u, d).
        start: what the frozen start model sees of the same batch.
    Raises: ClipftError for an objective that returns no loss.
    """
    pairs = as_pairs(clip, image, text, batch, start, progress)
    terms = objective(pairs)
    loss = torch.stack(list(terms.values())).sum()
    with torch.no_grad():
        caption = pairs.captions
        image, unique = normalize(image, dim=-1), normalize(text, dim=-1)
        text = unique[caption]
        # Sums over all pairs, and over pairs of equal captions, without the matrix of all pairs.
        n = len(image)
        each = image.new_zeros(len(unique)).index_add_(0, caption, image.new_ones(n))  # bincount would wait for the device
        image_sums = torch.zeros_like(unique).index_add_(0, caption, image)
        matched = (each * (image_sums * unique).sum(dim=1)).sum()
        equal = (each**2).sum()
        report = {name: value.detach() for name, value in terms.items()}
        report |= {"loss": loss.detach(), "temperature": 1 / pairs.scale.detach(), "similarity_matched": matched / equal}
        if pairs.bias is not None:
            report["bias"] = pairs.bias.detach()
        report["similarity_unmatched"] = ((image.sum(0) * text.sum(0)).sum() - matched) / (n * n - equal).clamp_min(1)
    return loss, report


def total_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """2-norm of all gradients together, as a scalar on the device."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def clip_and_skip(optimizer: torch.optim.Optimizer, metrics: Tensor, norm: Tensor, limit: float) -> None:
    """Have a fused optimizer scale gradients of more than `limit` down, and skip the step where a metric is no number.

    It does both while it reads the gradients anyway, so neither costs a pass over them nor a wait for the device.
    """
    optimizer.grad_scale = (norm / limit).clamp_min(1.0)  # type: ignore[attr-defined]
    optimizer.found_inf = (~metrics.isfinite().all()).float()  # type: ignore[attr-defined]


def fused_step_skips(device: torch.device) -> bool:
    """Whether the device's fused AdamW does what `clip_and_skip` asks of it; there were kernels that ignored both."""
    parameter = nn.Parameter(torch.ones(8, device=device))
    optimizer = torch.optim.AdamW([parameter], lr=0.5, betas=(0.5, 0.5), weight_decay=0.0, fused=True)
    parameter.grad = torch.full_like(parameter, 4.0)
    norm = torch.full((), 8.0, device=device)
    clip_and_skip(optimizer, torch.full((1,), math.nan, device=device), norm, 2.0)
    optimizer.step()
    skipped = parameter.detach().clone()
    clip_and_skip(optimizer, norm[None], norm, 2.0)
    optimizer.step()
    # A quarter of the gradient came through, and half of that is the first momentum.
    found = torch.stack([skipped.min(), skipped.max(), optimizer.state[parameter]["exp_avg"].mean(), parameter.detach().max()])
    least, most, momentum, after = found.tolist()
    return bool(least == most == 1 and abs(momentum - 0.5) < 1e-3 and after < 1)


def freeze_statistics(model: nn.Module) -> None:
    """Keep batch norm at its pretrained statistics: then a batch in parts equals the batch at once, and a resumed run the
    unbroken one. Its weights still train."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def first_bad_module(towers: Towers, batch: Batch, part: slice, seed: int) -> str:
    """Name of the first module whose output is no number, for a batch whose loss is none; "" when the towers are fine."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            values = output if isinstance(output, tuple) else (output,)
            if not found and any(isinstance(v, Tensor) and v.is_floating_point() and not v.isfinite().all() for v in values):
                found.append(name)

        return hook

    hooks = [m.register_forward_hook(watch(n)) for n, m in towers.clip.model.named_modules() if n and not list(m.children())]
    try:
        with torch.no_grad():
            plain = Towers(towers.clip, towers.clip.image_features, towers.clip.text_features, towers.context, towers.layout)
            plain.image_features(batch, part, seed)
            plain.text_features(batch.tokens, seed)
    finally:
        for hook in hooks:
            hook.remove()
    if not found and not math.isfinite(float(towers.clip.model.logit_scale)):
        return "logit_scale"
    return found[0] if found else ""

"""Bytes that a run takes whatever the size of a pass: weights, and what its recipe keeps beside them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import nn

from .. import objectives
from ..model.adapters import add_low_rank, remove_low_rank
from ..spec import RunSpec, TrainSpec
from .microbenchmarks import same_random_numbers
from .param_groups import groups

FP32 = 4  # bytes of a number


@dataclass(frozen=True)
class Footprint:
    """What is there for the whole of a run, in bytes.

    Args:
        weights: of the model, low-rank updates with them. training: gradients and both moments of what trains.
        average: the weights' running average. start: the frozen start model. pull: the start's weights of what trains.
        best: weights of the kept epoch. copy: of a checkpoint that is being written, which is there only where there is room.
            Both are in the host's memory, and count where the device shares that.
    """

    weights: int
    training: int
    average: int = 0
    start: int = 0
    pull: int = 0
    best: int = 0
    copy: int = 0

    @property
    def total(self) -> int:
        """What must be there."""
        return sum(int(getattr(self, part.name)) for part in fields(self)) - self.copy

    def __str__(self) -> str:
        named = {"weights": "weights", "training": "gradients and optimizer", "average": "their average", "start": "the start model",
                 "pull": "the start's weights", "best": "the kept epoch's"}  # fmt: skip
        return ", ".join(
            f"{getattr(self, name) / 2**30:.2f} GiB {words}" for name, words in named.items() if getattr(self, name)
        )


def footprint(spec: RunSpec, model: nn.Module, *, on_host: bool = False) -> Footprint:
    """That of a run of `spec` with a start model.

    Args:
        on_host: the device shares the host's memory.
    """
    every = sum(p.numel() for p in model.parameters()) * FP32
    sketch = _as_trained(model, spec.train)
    weights = sum(p.numel() for p in sketch.parameters()) * FP32
    trained = sum(p.numel() for p in sketch.parameters() if p.requires_grad) * FP32
    named = (spec.objective.name, *(loss.name for loss in spec.objective.auxiliary_losses))
    average = trained if spec.train.ema else 0
    return Footprint(
        weights=weights,
        training=3 * trained,
        average=average,
        start=every if any(objectives.objective_class(name).needs_start for name in named) else 0,
        pull=trained if spec.train.l2_start else 0,
        best=trained if on_host and spec.train.keep == "best" else 0,
        copy=3 * trained + average if on_host else 0,
    )


@contextmanager
def as_it_trains(model: nn.Module, spec: TrainSpec) -> Iterator[None]:
    """In here the model is set up as a run would train it, so that nothing is kept for what does not train."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        _set_up(model, spec)
        yield
    finally:
        remove_low_rank(model)
        for parameter, was in before:
            parameter.requires_grad_(was)


def _as_trained(model: nn.Module, spec: TrainSpec) -> nn.Module:
    """The model as training would set it up, without a single number in it."""
    memo: dict[int, object] = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    memo |= {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    sketch = copy.deepcopy(model, memo)
    _set_up(sketch, spec)
    return sketch


def _set_up(model: nn.Module, spec: TrainSpec) -> None:
    if spec.low_rank:
        device = next(model.parameters()).device.type
        with same_random_numbers("cpu" if device == "meta" else device):
            add_low_rank(model, spec.low_rank, spec.seed)
    groups(model, spec)  # freezes what its rules freeze

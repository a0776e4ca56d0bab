"""Checks of an objective on random features: what it returns, its gradient, its operators.

Each takes a `Subject`, an objective under a similarity, and raises `Failed` with the reason.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from ..devices.mps_operators import Recorder, fallbacks
from ..model import similarity as similarities
from ..objectives import blocks, make, make_single, objective_class
from ..objectives.base import Objective, Pairs
from ..spec import ObjectiveSpec

CLASSES = ("a", "b", "c")
CAPTIONS = 5


class FailedCheckError(Exception):
    """A check that an objective did not pass, with the reason."""


@dataclass(frozen=True)
class Subject:
    """An objective, as the spec describes it, under a similarity."""

    objective: ObjectiveSpec

    def make(self) -> Objective:
        spec = self.objective
        if not objective_class(spec.name).auxiliary_only:
            return make(spec, CLASSES)
        objective = make_single(spec, spec.name, spec.options)
        objective.prepare(CLASSES)
        return objective

    def similarity(self, width: int) -> similarities.Similarity:
        with seeded():
            made = similarities.make(self.objective.similarity, width)
            made.begin(torch.randn(16, width), torch.randn(16, width))
        return made


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def pairs(subject: Subject, rows: int = 6, *, width: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0) -> Pairs:
    """Pairs of random features over a few captions and classes, some of them unknown, as leaves of a gradient.

    Equal captions have texts of their own here: between exact twins, rounding would decide which of them a maximum takes.
    """
    similarity = subject.similarity(width).to(dtype)
    with seeded(seed), torch.no_grad():
        image, before = (similarity.embed_image(torch.randn(rows, width, dtype=dtype)) for _ in range(2))
        text, told = (similarity.embed_text(torch.randn(rows, width, dtype=dtype)) for _ in range(2))
    caption, new = torch.arange(rows) % CAPTIONS, torch.arange(rows) % 3 == 0
    labels, scale = caption % (len(CLASSES) + 1) - 1, torch.tensor(5.0, dtype=dtype)
    still = copy.deepcopy(similarity).requires_grad_(False)
    start = Pairs(before, told, still, scale, caption, labels, new)
    image, text, learned = (x.clone().requires_grad_() for x in (image, text, scale))
    return Pairs(image, text, similarity, learned, caption, labels, new, start=start, progress=0.5)


def total(objective: Objective, given: Pairs) -> Tensor:
    return torch.stack(list(objective(given).values())).sum()


def leaves(objective: Objective, given: Pairs) -> list[Tensor]:
    """Everything that a gradient may reach."""
    learned = [given.scale, *given.similarity.parameters(), *objective.parameters()]
    return [given.image, given.text, *(x for x in learned if x.requires_grad)]


def form(subject: Subject) -> None:
    """A dict of scalars whose names end in _loss, with a gradient (`Objective.__call__` looks at it each step)."""
    for name, value in subject.make()(pairs(subject, dtype=torch.float32)).items():
        if value.dtype != torch.float32:
            raise FailedCheckError(
                f"{name} is {value.dtype} for fp32 features; keep the dtype of pairs.image (MPS has no fp64)"
            )


def finite(subject: Subject) -> None:
    """Numbers, and gradients that are numbers, on odd batches too."""
    usual = pairs(subject, dtype=torch.float32)
    nothing, everything = torch.zeros(6, dtype=torch.long), torch.ones(6, dtype=torch.bool)
    batches = {
        "a usual batch": usual,
        "a single pair": pairs(subject, 1, dtype=torch.float32),
        "captions and labels all alike": replace(usual, captions=nothing, labels=nothing),
        "no labels": replace(usual, labels=nothing - 1),
        "nothing new": replace(usual, new=~everything),
        "everything new": replace(usual, new=everything),
        "a temperature of 0.01": replace(usual, scale=torch.tensor(100.0, requires_grad=True)),
        "a model with a bias": replace(usual, bias=torch.tensor(-10.0, requires_grad=True)),
        "texts equal to their images": replace(usual, text=usual.image.detach().clone().requires_grad_()),
        "the start model itself": replace(usual, start=replace(usual, start=None)),
    }
    for name, given in batches.items():
        objective = subject.make()
        loss = total(objective, given)
        gradients = torch.autograd.grad(loss, leaves(objective, given), allow_unused=True)
        if not loss.isfinite():
            raise FailedCheckError(f"the loss is {loss.item()} on {name}")
        if not all(g.isfinite().all() for g in gradients if g is not None):
            raise FailedCheckError(f"the gradient is no number on {name}")


def gradients(subject: Subject) -> None:
    """The gradient is that of the value, by finite differences in float64."""
    objective, given = subject.make().double(), pairs(subject)
    try:
        gradcheck(lambda *_: total(objective, given), leaves(objective, given), atol=1e-5, rtol=1e-3)
    except GradcheckError as error:
        why = "a .detach(), a cast to fp32 or something random in it would do that"
        raise FailedCheckError(f"its gradient is not that of its value ({why}): {' '.join(str(error).split())[:160]}") from None


def in_blocks(subject: Subject) -> None:
    """The same value and gradient when the pairs are many and worked through in blocks of rows."""
    found = []
    for limit in (blocks.LOGITS, 1, 20):
        objective, given = subject.make().double(), pairs(subject, rows=9)
        before, blocks.LOGITS = blocks.LOGITS, limit
        try:
            loss = total(objective, given)
            found.append(
                (loss, *torch.autograd.grad(loss, leaves(objective, given), materialize_grads=True, allow_unused=True))
            )
        finally:
            blocks.LOGITS = before
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            if not torch.allclose(a, b, rtol=1e-6, atol=1e-9):
                raise FailedCheckError(f"in blocks of rows it differs by {(a - b).abs().max():.2g}")


def operators(subject: Subject) -> None:
    """Every operator has an MPS kernel, so that nothing falls back to the CPU there."""
    recorder = Recorder()
    with recorder:
        given, objective = pairs(subject, dtype=torch.float32), subject.make()
        recorder.names.clear()  # of making the features
        total(objective, given).backward()
    if missing := fallbacks(recorder.names):
        raise FailedCheckError(f"MPS has no kernel for {', '.join(sorted(missing))}")

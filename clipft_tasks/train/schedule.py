"""What changes over a run: image size, augmentation and learning rate, as pure functions of the step."""

import math

import numpy as np

from ..contracts.plan import Phase
from ..data.augment import PLAIN
from ..domains import Augment
from ..spec import ResolutionSpec, TrainSpec

GROWTH = (0.5, 0.7, 0.85)  # sides of progressive training before the last, as shares of it
SCALES = (0.75, 1.0, 1.25)  # sides of multi-scale training
TAIL = 0.1  # share of the steps that FixRes spends at the deployment size
TAIL_RATE = 0.3  # of the peak learning rate, from which that tail falls
LAST = 0.4  # share of the steps that progressive training spends at its last size
SETTLE = 0.02  # share of the steps in which the rate rises again after a change of size


def sides(spec: ResolutionSpec, multiple: int = 16) -> tuple[int, ...]:
    """Every size that training will ask for, smallest first."""
    if spec.schedule == "plain":
        return (spec.side,)
    if spec.sizes:
        return tuple(sorted({*spec.sizes, spec.side}))
    shares = {"progressive": (*GROWTH, 1.0), "multi_scale": SCALES, "fixres": (0.75, 1.0)}[spec.schedule]
    return tuple(sorted({max(multiple, round(spec.side * share / multiple) * multiple) for share in shares} | {spec.side}))


def phases(spec: ResolutionSpec, steps: int, multiple: int = 16) -> list[Phase]:
    """The run in phases.

    Progressive sizes get equal shares of the steps but the last one, smallest first (Tan and Le 2021,
    https://arxiv.org/abs/2104.00298); multi-scale draws a size each step; FixRes trains small and ends at the deployment size on
    plain images (Touvron et al. 2019, https://arxiv.org/abs/1906.06423).
    """
    every = sides(spec, multiple)
    if spec.schedule == "progressive":
        rising = [*(side for side in every if side != spec.side), spec.side]  # it ends at the size it is for
        before = len(rising) - 1
        last = min(steps - 1, round(steps * (1 - LAST))) if before else 0
        starts = [last * i // before for i in range(before)] if before else []
        own = dict(zip([*starts, last], rising, strict=True))  # of two at one step, the later
        return [Phase(first, (side,)) for first, side in own.items()]
    if spec.schedule == "fixres":
        tail = Phase(steps - max(1, round(steps * TAIL)), (spec.side,), plain=True)
        smaller = tuple(side for side in every if side < spec.side) or (spec.side,)
        return [Phase(0, smaller[-1:]), tail] if tail.first else [tail]
    return [Phase(0, every)]


class Schedule:
    """Size, augmentation and learning rate of every step.

    Args:
        steps: of the whole run.
        seed: draws the sizes of multi-scale training.
    """

    def __init__(self, spec: TrainSpec, resolution: ResolutionSpec, how: Augment, steps: int, multiple: int = 16) -> None:
        self.spec, self.steps, self.how = spec, steps, how
        self.phases = phases(resolution, steps, multiple)

    def phase(self, step: int) -> Phase:
        return next(p for p in reversed(self.phases) if p.first <= step)

    def side(self, step: int) -> int:
        choices = self.phase(step).sides
        return choices[int(np.random.default_rng([self.spec.seed, 3, step]).integers(len(choices)))]

    def augment(self, step: int) -> Augment:
        return PLAIN if self.phase(step).plain else self.how

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero; after a change of size it rises anew over a few steps.

        What a run learns at the size that it ends at is what counts, so the fall is arranged by phases: growing sizes train at the
        full rate, and the last one has the whole cosine (warm-up, stable, decay: Hu et al. 2024, https://arxiv.org/abs/2404.06395); a
        FixRes tail falls along a cosine of its own, from a lower peak, as fine-tuning at a test size does.
        """
        warm = max(1, round(self.steps * self.spec.warmup))
        phase, tail = self.phase(step), self.phases[-1]
        settle = max(1, round(self.steps * SETTLE))
        rising = (step - phase.first + 1) / (settle + 1) if phase.first and step - phase.first < settle else 1.0
        if phase.plain and phase.first:
            along = (step - phase.first) / (self.steps - phase.first)
            return self.spec.peak_rate * TAIL_RATE * _cosine(along) * rising
        if step < warm:
            return self.spec.peak_rate * (step + 1) / warm * rising
        end = tail.first if tail.plain and tail.first else self.steps
        falls_from = max(warm, tail.first) if tail.first and not tail.plain else warm
        along = max(0, step - falls_from) / max(1, end - falls_from)
        return self.spec.peak_rate * _cosine(along) * rising

    def heads_only(self, step: int) -> bool:
        """Whether only the heads train yet (LP-FT, Kumar et al. 2022, https://arxiv.org/abs/2202.10054)."""
        return step < round(self.steps * self.spec.head_first)


def _cosine(along: float) -> float:
    """From 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * along))

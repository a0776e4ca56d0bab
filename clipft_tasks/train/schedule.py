"""What changes over a run: image size, augmentation and learning rate, as pure functions of the step."""

import math
from dataclasses import dataclass

import numpy as np

from ..data.augment import PLAIN
from ..domains import Augment
from ..spec import ResolutionSpec, TrainSpec

GROWTH = (0.5, 0.7, 0.85)  # sides of progressive training before the last, as shares of it
SCALES = (0.75, 1.0, 1.25)  # sides of multi-scale training
TAIL = 0.1  # share of the steps that FixRes spends at the deployment size
TAIL_RATE = 0.1  # of the learning rate, in that tail
SETTLE = 0.02  # share of the steps in which the rate rises again after a change of size


@dataclass(frozen=True)
class Stage:
    """Steps that share their sizes.

    Attributes:
        first: its first step.
        sides: sizes to draw from, one a step.
        plain: no augmentation but what a test does to an image.
    """

    first: int
    sides: tuple[int, ...]
    plain: bool = False

    def to_dict(self) -> dict[str, object]:
        return {"first": self.first, "sides": list(self.sides), "plain": self.plain}


def sides(spec: ResolutionSpec, multiple: int = 16) -> tuple[int, ...]:
    """Every size that training will ask for, smallest first."""
    if spec.schedule == "plain":
        return (spec.train,)
    if spec.sizes:
        return tuple(sorted({*spec.sizes, spec.train}))
    shares = {"progressive": (*GROWTH, 1.0), "multi_scale": SCALES, "fixres": (0.75, 1.0)}[spec.schedule]
    return tuple(sorted({max(multiple, round(spec.train * share / multiple) * multiple) for share in shares} | {spec.train}))


def stages(spec: ResolutionSpec, steps: int, multiple: int = 16) -> list[Stage]:
    """The run in stages.

    Progressive sizes get equal shares of the steps, smallest first (Tan and Le 2021, https://arxiv.org/abs/2104.00298);
    multi-scale draws a size each step; FixRes trains small and ends at the deployment size on plain images (Touvron et al.
    2019, https://arxiv.org/abs/1906.06423).
    """
    every = sides(spec, multiple)
    if spec.schedule == "progressive":
        rising = [*(side for side in every if side != spec.train), spec.train]  # it ends at the size it is for
        return [Stage(steps * i // len(rising), (side,)) for i, side in enumerate(rising)]
    if spec.schedule == "fixres":
        tail = Stage(steps - max(1, round(steps * TAIL)), (spec.train,), plain=True)
        smaller = tuple(side for side in every if side < spec.train) or (spec.train,)
        return [Stage(0, smaller[-1:]), tail] if tail.first else [tail]
    return [Stage(0, every)]


class Schedule:
    """Size, augmentation and learning rate of every step.

    Args:
        steps: of the whole run.
        seed: draws the sizes of multi-scale training.
    """

    def __init__(self, spec: TrainSpec, resolution: ResolutionSpec, how: Augment, steps: int, multiple: int = 16) -> None:
        self.spec, self.steps, self.how = spec, steps, how
        self.stages = stages(resolution, steps, multiple)

    def stage(self, step: int) -> Stage:
        return next(s for s in reversed(self.stages) if s.first <= step)

    def side(self, step: int) -> int:
        choices = self.stage(step).sides
        return choices[int(np.random.default_rng([self.spec.seed, 3, step]).integers(len(choices)))]

    def augment(self, step: int) -> Augment:
        return PLAIN if self.stage(step).plain else self.how

    def rate(self, step: int) -> float:
        """Linear warm-up, a cosine to zero; after a change of size it rises anew over a few steps, lower in a FixRes tail."""
        warm = max(1, round(self.steps * self.spec.warmup))
        if step < warm:
            base = self.spec.learning_rate * (step + 1) / warm
        else:
            along = (step - warm) / max(1, self.steps - warm)
            base = self.spec.learning_rate * 0.5 * (1 + math.cos(math.pi * along))
        stage = self.stage(step)
        settle = max(1, round(self.steps * SETTLE))
        if stage.first and step - stage.first < settle:
            base *= (step - stage.first + 1) / (settle + 1)
        return base * TAIL_RATE if stage.plain else base

    def heads_only(self, step: int) -> bool:
        """Whether only the heads train yet (LP-FT, Kumar et al. 2022, https://arxiv.org/abs/2202.10054)."""
        return step < round(self.steps * self.spec.head_first)

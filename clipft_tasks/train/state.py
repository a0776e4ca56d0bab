"""What changes while a run trains: all of it, and nothing else, is in its checkpoints."""

from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch

from ..contracts.plan import Plan
from ..model.clip import SIMILARITY, Clip
from ..objectives import Objective
from .best_epoch import BestEpoch, BestEpochState
from .micro_batches import MicroBatches, MicroBatchState
from .param_groups import ParamGroup

Weights = dict[str, torch.Tensor]


class AverageState(TypedDict):
    steps: int
    weights: Weights


class RunState(TypedDict):
    """What a checkpoint holds. The last two are missing in checkpoints of the release before.

    Attributes:
        overflows: steps that overflowed, and how many of them were the last ones.
    """

    model: Weights
    optimizer: dict[str, object]
    scaler: dict[str, object]
    objective: Weights
    average: AverageState | None
    best: BestEpochState
    plan: dict[str, object]
    micro_batches: NotRequired[MicroBatchState]
    overflows: NotRequired[tuple[int, int]]


@dataclass
class TrainingState:
    """A run after some of its steps. It is restored on top of the start model, from which everything else follows again.

    Attributes:
        step: steps that are done.
        trained: names of all that changes: the weights that train, and what the similarity learns. Nothing else is kept.
        average: of these, where there is one.
        overflows: steps that were skipped since fp16 overflowed; in_a_row: how many of them were the last ones.
    """

    clip: Clip
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: "WeightAverage | None"
    best: BestEpoch
    micro_batches: MicroBatches
    plan: Plan
    trained: frozenset[str]
    step: int = 0
    overflows: int = 0
    in_a_row: int = 0

    @property
    def weights(self) -> Weights:
        """Those that would be kept if training ended here."""
        return self.average.weights if self.average else self.clip.state(self.trained)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All that trains."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def state(self, *, over: bool = False) -> RunState:
        """What a checkpoint holds.

        Args:
            over: no step follows, and nobody needs the optimizer's moments again: two thirds of the bytes.
        """
        optimizer = self.optimizer.state_dict()
        return {
            "model": self.clip.state(self.trained),
            "optimizer": {**optimizer, "state": {}} if over else optimizer,
            "scaler": self.scaler.state_dict(),
            "objective": self.objective.state_dict(),
            "average": self.average.state() if self.average else None,
            "best": self.best.state(),
            "plan": self.plan.to_json(),
            "micro_batches": self.micro_batches.state(),
            "overflows": (self.overflows, self.in_a_row),
        }

    def load(self, step: int, state: RunState) -> None:
        """Go on from a checkpoint that was written after `step` steps, maybe by the release before."""
        self.step = step
        self.clip.load_state({name: value for name, value in state["model"].items() if name in self.trained}, some=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.objective.load_state_dict(state["objective"])
        if self.average and state["average"]:
            self.average.load(state["average"])
        self.best.load(state["best"])
        self.overflows, self.in_a_row = state.get("overflows", (0, 0))
        if state["plan"] == self.plan.to_json() and "micro_batches" in state:  # another machine has other memory
            self.micro_batches.load(state["micro_batches"])


def trained_names(clip: Clip, groups: list[ParamGroup]) -> frozenset[str]:
    """Names, as in `Clip.state`, of all that a training changes.

    Args:
        groups: of the optimizer; only the model's own weights.
    """
    ids = {id(parameter) for group in groups for parameter in group["params"]}
    own = (name for name, parameter in clip.model.named_parameters(remove_duplicate=False) if id(parameter) in ids)
    return frozenset({"logit_scale", *own, *clip.similarity.state_dict(prefix=SIMILARITY)})  # the scale is held in its limits


class WeightAverage:
    """A running average of the weights that train (EMA), in fp32 beside them.

    Args:
        trained: their names.
    """

    def __init__(self, clip: Clip, decay: float, trained: frozenset[str]) -> None:
        self.decay, self.steps = decay, 0
        self.weights = {name: value.detach().clone() for name, value in clip.state(trained).items()}

    @torch.no_grad()
    def update(self, clip: Clip) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))  # or the start would weigh too much in short runs
        for name, value in clip.state(self.weights).items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    def state(self) -> AverageState:
        return {"steps": self.steps, "weights": self.weights}

    def load(self, state: AverageState) -> None:
        self.steps = state["steps"]
        for name, value in self.weights.items():
            value.copy_(state["weights"][name])


class PullToStart:
    """Weights drawn back to where they began, beside the gradient as in AdamW's weight decay (L2-SP, Li et al. 2018,
    https://arxiv.org/abs/1802.01483). A resumed run begins with the start model again, so nothing of it is kept.

    Args:
        groups: of the optimizer; only the start model's own weights.
        strength: share of the way back that a step goes, over the learning rate.
    """

    def __init__(self, groups: list[ParamGroup], strength: float) -> None:
        self.strength = strength
        self.members = [
            (list[torch.Tensor](g["params"]), [p.detach().clone() for p in g["params"]], g["factor"]) for g in groups
        ]

    @torch.no_grad()
    def __call__(self, rate: float) -> None:
        for parameters, start, factor in self.members:
            torch._foreach_lerp_(parameters, start, min(1.0, rate * factor * self.strength))

"""Runs whose numbers are none any more: which step, which rows, which layer, and the way out."""

import math
from dataclasses import dataclass

from ..core.errors import ClipftError
from .state import TrainingState
from .step import Towers, first_bad_module
from .step_log import Step

MAX_OVERFLOWS = 25  # in a row: then it is no longer the scale that is too high


@dataclass
class StepJudge:
    """Looks at the metrics of each step, in order, and counts those that overflowed.

    Args:
        scaled: the loss is scaled, so that a gradient which is not finite only says that the scale was too high.
    """

    towers: Towers
    state: TrainingState
    scaled: bool

    def __call__(self, step: Step, metrics: dict[str, float]) -> bool:
        """Whether the step overflowed, and was skipped. Raises ClipftError where it went wrong otherwise, or once too often."""
        state = self.state
        overflow = self.scaled and math.isfinite(metrics["loss"]) and not math.isfinite(metrics["gradient_norm"])
        state.in_a_row = state.in_a_row + 1 if overflow else 0
        state.overflows += overflow
        if self.scaled:
            step.known["overflows"] = state.overflows
        if state.in_a_row > MAX_OVERFLOWS:
            raise always_overflows(step.number, state.in_a_row)
        if not overflow and not all(map(math.isfinite, metrics.values())):
            raise not_finite(self.towers, step, metrics)
        return overflow


def always_overflows(number: int, in_a_row: int) -> ClipftError:
    """What to say where no loss scale is low enough."""
    why = f"the gradient overflowed fp16 in {in_a_row} steps in a row"
    fix = "Set memory.precision to bf16 or fp32, or lower train.learning_rate."
    return ClipftError(
        f"training step {number}", why, f"{fix} The last good checkpoint is kept.", code="train.always_overflows"
    )


def not_finite(towers: Towers, step: Step, metrics: dict[str, float]) -> ClipftError:
    """What to say of a loss or gradient that is not finite: where, on which rows, and what to do."""
    bad = next(name for name, value in metrics.items() if not math.isfinite(value))
    for parameter in towers.clip.model.parameters():
        parameter.grad = None
    module = first_bad_module(towers, step.batch, slice(0, min(8, len(step.batch.images))), 0)
    where = f" first in {module}" if module else " outside the towers"
    why = f"{bad} is {metrics[bad]},{where} (learning rate {step.rate:.2g}, temperature {metrics['temperature']:.3g})"
    fix = f"Lower train.learning_rate, or look at this batch (rows {', '.join(k[:12] for k in step.batch.keys[:4])}, …)."
    return ClipftError(f"training step {step.number}", why, f"{fix} The last good checkpoint is kept.", code="train.not_finite")

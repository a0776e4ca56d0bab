"""What a trial of a study was, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ..contracts.stages import TrialSummary
from ..spec.ranges import Value

TEMPLATE = 0  # number of the trial that has the template's own values


class State(StrEnum):
    """Where a trial stands."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (State.COMPLETE, State.PRUNED, State.FAILED)


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        values: by dotted field; what the template's trial (number 0) has there is the template's own.
        score: on the validation split, 0..1; None unless complete.
        seconds: that it took, over all its attempts.
        reason: why it failed or was pruned.
        right: what it got right of the validation rows, packed.
        epochs: score after each epoch.
    """

    number: int
    state: State
    values: dict[str, Value] = field(default_factory=dict)
    score: float | None = None
    seconds: float = 0.0
    reason: str = ""
    right: str = ""
    epochs: dict[int, float] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.state.ended

    def summary(self) -> TrialSummary:
        """What a person or a stage wants to know."""
        return TrialSummary(
            number=self.number,
            state=self.state.value,
            values=self.values,
            score=self.score,
            seconds=self.seconds,
            reason=self.reason,
        )


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The complete trial with the highest score; of equals the first."""
    complete = [t for t in trials if t.state == State.COMPLETE and t.score is not None]
    return max(complete, key=lambda t: (t.score or 0.0, -t.number), default=None)


def template_of(trials: Sequence[Trial]) -> Trial | None:
    return next((t for t in trials if t.number == TEMPLATE), None)

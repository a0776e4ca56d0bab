"""What the gate answers."""

from typing import Any, ClassVar

from .base import Record, StageResult, VersionedRecord
from .evaluation import FORMER_ROLES, Interval, Role


class RuleResult(Record):
    """A gate rule and what was measured.

    Attributes:
        measured: None where the rule does not apply or the metric cannot be computed.
        where: size and slice that were measured, or why nothing was.
    """

    rule: str
    measured: float | None
    where: str
    sign: str
    limit: float
    passed: bool

    def __str__(self) -> str:
        """What was measured and where, for a person."""
        if self.measured is None:
            return self.where
        exact = abs(self.measured) >= 1000 or 0 < abs(self.measured) < 0.001
        return f"{self.measured:{'.4g' if exact else '.3f'}} at {self.where}"


class GateVerdict(StageResult, VersionedRecord):
    """Whether a candidate may be registered.

    Attributes:
        opponent: version number of the champion; "" for the start model.
        table: Markdown: the rules, then the metrics.
        scores: the deciding metric of each model, by image size.
        advice: what the numbers say and what would help, a sentence or two each.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "the gate's verdict"

    passed: bool
    metric: str
    opponent: str
    rules: list[RuleResult]
    table: str
    scores: dict[int, dict[Role, Interval]]
    advice: list[str] = []

    @classmethod
    def upgraded(cls, data: dict[str, Any], written: int) -> dict[str, Any]:
        """In format 0 the models had other names; the verdict that was kept in a run was without their scores."""
        if written == 0:
            scores = data.get("scores", {})
            data["scores"] = {size: {FORMER_ROLES[who]: v for who, v in models.items()} for size, models in scores.items()}
        return data

    @property
    def failed(self) -> list[RuleResult]:
        """The rules that do not hold."""
        return [rule for rule in self.rules if not rule.passed]

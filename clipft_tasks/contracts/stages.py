"""What each stage answers: small JSON that goes through XCom, files of DVC and the command line."""

from typing import Literal

from .base import StageResult
from .drift import Breaker, LiveAccuracy

Action = Literal["nothing", "camera", "label", "rollback", "recalibrate", "readapt"]


class TriageResult(StageResult):
    """Whether an alert is acted on.

    Attributes:
        incident: its id; "" where the alert was not admitted.
        rollback: whether the incident's version turned out worse, so that it is about going back.
        approval: whether going back waits for a person.
    """

    admitted: bool
    reason: str
    incident: str
    signals: list[str]
    rollback: bool
    approval: bool


class SuggestResult(StageResult):
    """What drifted and what should be done about it.

    Attributes:
        kind: see `Diagnosis`. action: see `Advice`.
        version: to go back to, or "". champion: the version that sees the drift.
        expected_gain: of accuracy on today's traffic; None where nothing is known.
        minutes: that training would take, likewise.
        labels: labeled captures by class. live: accuracy of the champion so far.
        table: for the approval form, Markdown.
    """

    kind: str
    action: Action
    version: str
    why: str
    expected_gain: float | None
    minutes: float | None
    labels: dict[str, int]
    live: LiveAccuracy
    champion: str
    table: str


class CloseResult(StageResult):
    """What came of an incident: `probation` begins when a new version is live. failed: the tasks that did."""

    outcome: Literal["probation", "recovered", "declined", "failed"]
    failed: list[str]
    breaker: Breaker
    failures: int

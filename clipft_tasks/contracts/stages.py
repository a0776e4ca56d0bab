"""What each stage answers: small JSON that goes through XCom, files of DVC and the command line."""

from typing import Literal

from .base import StageResult
from .drift import Breaker, LiveAccuracy
from .evaluation import EvaluationResult
from .serving import TrialReport

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


# From evaluation to a served model; the gate's is in `gate`, that of one evaluation in `evaluation` ---------------------


class EvaluateResult(StageResult):
    """The evaluations of one candidate, one an image size."""

    evaluations: list[EvaluationResult]


class RegisterResult(StageResult):
    """The version that a candidate became. new: whether it was registered just now."""

    model: str
    version: str
    new: bool


class RolloutResult(StageResult):
    """How a version did on live traffic. tried: whether there was a trial; its reports are None where there was none."""

    version: str
    tried: bool
    shadow: TrialReport | None = None
    canary: TrialReport | None = None


class PromoteResult(StageResult):
    """The new champion; previous: the one before, "" for none."""

    version: str
    previous: str


class DeployResult(StageResult):
    """The version that is live. replaced: the one before, "" for none. replicas: how many answer with it."""

    version: str
    replaced: str
    load_seconds: float
    replicas: int


class VerifyResult(StageResult):
    """How far the server's answers are from those recorded at training: the largest difference of a cosine, over `pairs`."""

    version: str
    disagreement: float
    pairs: int


class RollbackResult(StageResult):
    """The version that is to be champion again."""

    version: str


class CompareResult(StageResult):
    """Where a comparison is kept, and what to read first.

    Attributes:
        tests: how many paired tests were made. problems: what could not be had.
    """

    run_id: str
    names: list[str]
    summary: list[str]
    tests: int
    problems: list[str]


class BackupResult(StageResult):
    """A backup that was made and looked at byte by byte. not_copied: what it refers to, and where that is."""

    folder: str
    bytes: int
    warnings: list[str]
    not_copied: dict[str, str]


class GarbageResult(StageResult):
    """What garbage collection did: bytes that came back and things removed, by kind; what failed, what was skipped and why."""

    freed: dict[str, int]
    removed: dict[str, int]
    failed: list[str]
    skipped: list[str]

"""What each stage answers: small JSON that goes through XCom, files of DVC and the command line."""

from typing import Literal

from .base import Record, StageResult
from .drift import Breaker, LiveAccuracy
from .evaluation import EvaluationResult
from .plan import Plan
from .serving import TrialReport

Value = float | str  # of a field that tuning may vary
Action = Literal["nothing", "camera", "label", "rollback", "recalibrate", "readapt"]


class IngestResult(StageResult):
    """Rows that were read into a staging folder.

    Attributes:
        staging: the folder, or its address in the store by which tasks hand it over. content: digest of rows and splits, the same for the same data set.
        counts: rows by split. license: of the source; "" where it states none.
    """

    staging: str
    rows: int
    rejected: int
    counts: dict[str, int]
    content: str
    license: str


class IngestPartResult(StageResult):
    """What a part of an ingest found out about its images. described: where that is handed over; images: how many."""

    described: str
    images: int


class ValidatePartResult(StageResult):
    """What a part of the checks found out of staged rows. found: where that is handed over."""

    found: str
    part: int
    of: int


class ValidateResult(StageResult):
    """Staged rows that met every expectation.

    Attributes:
        passed: checks. report: path of the page that a person reads.
        suspects: images that look like one of another class.
    """

    passed: int
    rows: int
    report: str
    suspects: int = 0


class VersionResult(StageResult):
    """A dataset version.

    Attributes:
        dataset: its tag, `<domain>/v<N>`. revision: its git commit. new: whether this run made it.
        counts: rows by split. pushed_bytes: that the remote took.
    """

    dataset: str
    domain: str
    revision: str
    new: bool
    rows: int
    counts: dict[str, int]
    pushed_bytes: int


class ReviewResult(StageResult):
    """A page of rows whose labels look wrong.

    Attributes:
        dataset: whose rows. rows: with a label. wrong: about how many of these are wrong. shown: on the page.
        page: its file.
    """

    dataset: str
    rows: int
    wrong: int
    shown: int
    page: str


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
        suspects: captures whose label contradicts a confident answer.
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
    suspects: int = 0


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


class ReconcileResult(StageResult):
    """What was brought into line: champion: the version's number now, "" for nobody. done: in a sentence; "" for nothing."""

    domain: str
    champion: str
    done: str


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
    """A backup that was made and looked at byte by byte. not_copied: what it refers to, and where that is. removed: older ones."""

    folder: str
    bytes: int
    warnings: list[str]
    not_copied: dict[str, str]
    removed: list[str] = []


class GarbageResult(StageResult):
    """What garbage collection did: bytes that came back and things removed, by kind; what failed, what was skipped and why."""

    freed: dict[str, int]
    removed: dict[str, int]
    failed: list[str]
    skipped: list[str]


class PlanResult(StageResult):
    """What a run works on, pinned, so that a retry works on the same, and how this machine trains.

    Attributes:
        dataset: tag of the dataset version.
        start: the start model; a version, never `champion`. digest: of its weights. temperature: that it has.
        settled: what follows from the start model where the spec leaves it open, by dotted name.
    """

    dataset: str
    start: str
    digest: str
    temperature: float
    plan: Plan
    settled: dict[str, int | float | list[int]] = {}


class FinetuneResult(StageResult):
    """A candidate.

    Attributes:
        run_id: its MLflow run. key: identity of the work.
        done_before: whether the finished run of the same work was found, so that nothing was trained.
        pairs_per_second: of one process; 0 where nothing was trained.
        cost: energy and price of the training, an estimate; "" where it is not known or nothing was trained.
    """

    run_id: str
    key: str
    dataset: str
    done_before: bool
    steps: int
    pairs_per_second: float
    cost: str = ""


class StudyResult(StageResult):
    """A tuning study that trials may be run for.

    Attributes:
        study: its name; "" where there is nothing to tune.
        key: identity of the search. run_id: its MLflow run.
        points: sets of values that there are; None for endless.
        trials: their numbers.
        reason: why there is nothing to tune, or whether the study is new.
    """

    study: str = ""
    key: str = ""
    points: int | None = 0
    trials: tuple[int, ...] = ()
    reason: str
    run_id: str = ""


class TrialSummary(Record):
    """One set of values that was tried.

    Attributes:
        state: complete, pruned, failed, running (where the budget ended), waiting, skipped.
        values: by dotted field of the spec.
        score: on the validation split, 0..1; None unless complete.
        seconds: that it took, over all its attempts.
        reason: why it failed, was pruned or was not run.
    """

    number: int
    state: str
    values: dict[str, Value] = {}
    score: float | None = None
    seconds: float = 0.0
    reason: str = ""


class TrialResult(StageResult):
    """What came of a trial."""

    trial: TrialSummary


class TuneResult(StageResult):
    """The values to train with.

    Attributes:
        values: by dotted field of the spec; {} for the template's.
        measured: metrics behind the decision.
        stopped: why there were no more trials.
        importance: share of the score's variation that each field explains.
        tried: every trial that began.
        run_id: the study's MLflow run; "" where there was nothing to tune.
    """

    study: str = ""
    values: dict[str, Value] = {}
    reason: str = ""
    measured: dict[str, float] = {}
    stopped: str = ""
    metric: str = ""
    importance: dict[str, float] = {}
    tried: tuple[TrialSummary, ...] = ()
    run_id: str = ""

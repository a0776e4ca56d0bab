"""Drift: what the server measures, what an alert says, and what is being done about it."""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator

from .base import Record, VersionedRecord

ERRORS = "errors"  # the signal of failing requests: no drift, and of no version
AlertSource = Literal["prometheus", "server"]
Breaker = Literal["closed", "open", "half-open"]
Outcome = Literal["recovered", "declined", "failed", "lost"]


# What the server answers ----------------------------------------------------------------------------------------------


class BaselineAccuracy(Record):
    """Accuracy on held-out rows when a version was trained, with its 95% interval; `rows` 0: nothing was held out."""

    value: float
    low: float
    high: float
    rows: int


class WorstSignal(Record):
    """The signal that drifts most; "" and 0 while nothing is measured."""

    signal: str
    ratio: float


class DriftSnapshot(VersionedRecord):
    """What `GET /v1/drift/{domain}` answers: how far what the live version sees is from its reference, now."""

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "the drift snapshot"

    domain: str
    version: str
    images: int = Field(description="images in the window, of all replicas that answer with this version")
    texts: int
    feedback: int = Field(description="answers whose true label is known")
    pairs: int = Field(description="images that came with their own text")
    rows: dict[str, int] = Field(description="signal -> rows that it was measured on")
    drift: dict[str, float] = Field(description="signal -> metric over its limit; above 1 is drift")
    values: dict[str, float] = Field(description="metrics in their own units")
    baseline: BaselineAccuracy = Field(description="accuracy on held-out rows when the version was trained")
    worst: WorstSignal

    @property
    def live_accuracy(self) -> "LiveAccuracy":
        """How often the version is right so far."""
        return LiveAccuracy(accuracy=self.values.get("accuracy"), judged=self.feedback)

    @property
    def accuracy_dropped(self) -> bool:
        """Whether answers are right less often than at training, beyond chance."""
        return self.drift.get("performance", 0.0) > 1

    @classmethod
    def upgraded(cls, data: dict[str, Any], written: int) -> dict[str, Any]:
        if written == 0:
            data = _renamed(data, {"behind": "rows", "promised": "baseline"})
        return data


class WindowRows(Record):
    """What `GET /v1/windows/{domain}` answers: the images of every replica's window, in one order.

    Attributes:
        appearance: image statistics, (n, 5); similarity: with the version's classes, (n, c).
    """

    appearance: list[list[float]]
    similarity: list[list[float]]


def answer_hash(answer_id: str) -> str:
    """What captures of a request are called: it says nothing about the answer and can be no path."""
    return hashlib.sha256(answer_id.encode()).hexdigest()[:24]


class Capture(Record):
    """An image of the traffic that is kept for labeling, as `GET /v1/captures/{domain}` lists it."""

    id: str
    request: str
    domain: str
    version: str
    time: float
    predicted: str
    confidence: float
    novelty: float
    why: str
    sha256: str
    label: str = Field(description='the true class; "" while nobody said')


# Alerts ---------------------------------------------------------------------------------------------------------------


class DriftAlert(Record):
    """What is over its limit in one version of a domain, whoever saw it: from sensor and trigger to triage.

    Attributes:
        version: that sees it; "" for failing requests, which belong to none.
        signals: worst first. ratio: of the worst, to its limit.
        since: when the first of them began; None where that is not known.
    """

    domain: str
    version: str
    signals: list[str] = Field(min_length=1)
    ratio: float
    since: datetime | None = None
    source: AlertSource = "server"

    @field_validator("since", mode="before")
    @classmethod
    def _readable(cls, value: object) -> object:
        """Text that is no time, Prometheus' empty one among them, is an unknown time."""
        if isinstance(value, str):
            try:
                return datetime.fromisoformat(value)
            except ValueError:
                return None
        return value


class DriftWatchRequest(Record):
    """The form of `clipft_drift_watch`: what Alertmanager's callback and a person fill in."""

    domains: list[str] | None = None  # whom to look at; None: all
    wait_minutes: float = 0
    cool_down_minutes: float = 60
    approval: bool = True

    @classmethod
    def of_form(cls, form: Mapping[str, object]) -> Self:
        """A run's form as Airflow has it."""
        return cls.model_validate({name: form[name] for name in cls.model_fields if name in form})


class ReadaptRequest(Record):
    """What `clipft_readapt` is started with, beside the fields of a spec.

    Attributes:
        incident: which one the run answers; "" where a person started it. signals: of its alert.
        approval: whether a person decides.
    """

    model_config = ConfigDict(populate_by_name=True)

    domain: str
    incident: str = ""
    signals: list[str] = []
    approval: bool = Field(True, alias="approval.required")

    def to_conf(self) -> dict[str, Any]:  # plain JSON has no narrower type
        """The DAG run's configuration."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def split(cls, form: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:  # JSON of any kind
        """A run's form as this request and the fields of its spec, without those that nobody filled in."""
        given = _renamed({k: v for k, v in form.items() if v is not None}, {"causes": "signals"})  # of the release before
        own = {name: given.pop(name) for name in ("incident", "signals") if name in given}
        return cls.model_validate(own | {k: given[k] for k in ("domain", "approval.required") if k in given}), given


# Incidents ------------------------------------------------------------------------------------------------------------


class LiveAccuracy(Record):
    """How often a version is right on the traffic of today, and over how many answers with feedback; None without any."""

    accuracy: float | None = None
    judged: int = 0


class Probation(Record):
    """A new champion, compared for a day with the one before it.

    Attributes:
        version, previous: the new champion, and the one to go back to.
        since: seconds since 1970.
        accuracy, judged: of the one before on the traffic that drifted, see `LiveAccuracy`.
        regression: why it is gone back from; "" while nothing speaks for that.
        needs_approval: whether a person is asked, because the one automatic rollback is spent.
    """

    version: str
    previous: str
    since: float
    accuracy: float | None = None
    judged: int = 0
    regression: str = ""
    needs_approval: bool = False


class Incident(Record):
    """Drift that somebody is doing something about.

    Attributes:
        signals: worst first.
        version: that saw it.
        opened: seconds since 1970.
        run: of `clipft_drift_watch`, that opened it.
        probation: of the version that came of it, once there is one.
    """

    domain: str
    version: str
    signals: list[str]
    opened: float
    run: str = ""
    probation: Probation | None = None

    @property
    def id(self) -> str:
        return f"{self.domain}-{self.opened:.3f}"

    @property
    def on_probation(self) -> bool:
        """Whether nothing is being done any more: a new version is live, and no worse so far."""
        return self.probation is not None and not self.probation.regression


class ClosedIncident(Record):
    """What came of an incident."""

    domain: str = ""
    version: str = ""
    signals: list[str] = []
    opened: float = 0.0
    run: str = ""
    closed: float
    outcome: Outcome
    note: str = ""


class IncidentState(VersionedRecord):
    """What is known of a domain's incidents; one tag of its registered model holds it.

    Attributes:
        rolled_back: an automatic rollback happened, and nothing recovered since.
        breaker_opened: when the circuit breaker opened; 0 while it is closed. last_closed: of the last incident.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "the incidents"

    incident: Incident | None = None
    failures: int = 0
    rolled_back: bool = False
    breaker_opened: float = 0.0
    last_closed: float = 0.0
    history: list[ClosedIncident] = []

    @classmethod
    def upgraded(cls, data: dict[str, Any], written: int) -> dict[str, Any]:
        if written == 0:
            data = _renamed(data, {"undone": "rolled_back"})
            data["history"] = [_renamed(past, {"causes": "signals"}) for past in data.get("history", [])]
            if incident := data.get("incident"):
                incident = _renamed(incident, {"causes": "signals", "watch": "probation"})
                if incident.get("probation"):
                    names = {"before": "previous", "worse": "regression", "asks": "needs_approval"}
                    incident["probation"] = _renamed(incident["probation"], names)
                data["incident"] = incident
        return {k: v for k, v in data.items() if k in cls.model_fields}  # a newer release may add fields


def _renamed(data: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in data.items()}

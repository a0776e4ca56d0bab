"""What an evaluation measures: of each model, of their differences, at one image size; and what fills its page."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, PlainSerializer

from .base import Record, StageResult, VersionedRecord

Role = Literal["start", "champion", "candidate"]  # the start model, what serves now, what was trained
Opponent = Literal["start", "champion"]
# Metrics of earlier releases that have another name now.
RENAMED_METRICS: Mapping[str, str] = {
    "retention": "general_score",
    "milliseconds_per_picture": "milliseconds_per_image",
    "nearest_neighbours_accuracy": "nearest_neighbors_accuracy",
    "nearest_neighbours_balanced_accuracy": "nearest_neighbors_balanced_accuracy",
}
FORMER_ROLES: Mapping[str, Role] = {"before": "start", "champion": "champion", "after": "candidate"}  # likewise
ROLES: tuple[Role, ...] = ("start", "champion", "candidate")  # in the order of a table

# A number; NaN where it cannot be computed, which is null in JSON.
Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: None if math.isnan(value) else value, when_used="json"),
]


class MetricInfo(Record):
    """What there is to know of a metric besides how it is computed.

    Attributes:
        higher_is_better: None where neither is.
        low, high: its range; None where it has no end.
        needs_labels: whether it takes rows whose class is known.
        headline: whether it may decide (`gate.metric`) and is compared in pairs.
        interval: whether it has a 95% interval.
    """

    description: str
    higher_is_better: bool | None = True
    low: float | None = 0.0
    high: float | None = 1.0
    needs_labels: bool = False
    headline: bool = False
    interval: bool = False


class Interval(Record):
    """A value with its 95% interval, and how many groups of rows stand behind it (0: a release before did not say)."""

    value: Number
    low: Number
    high: Number
    groups: int = 0

    def ends(self, form: str = ".3f") -> str:
        """The interval for a person: `[0.546, 0.941] of 5 groups`."""
        return f"[{self.low:{form}}, {self.high:{form}}] {of_groups(self.groups)}".rstrip()


def of_groups(count: int) -> str:
    """How many groups stand behind an interval, in words; "" where that is not known."""
    return f"of {count:,} group{'s' if count != 1 else ''}" if count else ""


class PairedGain(Interval):
    """The candidate's metric minus another model's, on the same rows and the same resamples; p is two-sided, by group."""

    p: Number


class Comparison(PairedGain):
    """A paired gain among many: `p_holm` is corrected for how many there are."""

    metric: str
    against: Opponent
    p_holm: Number


class GeneralScore(Interval):
    """How much a model knows of the general set, and how near its features of it are to the start model's.

    Attributes:
        rows: things in the set. set, license: of the set.
        cosine_to_start: mean cosine of its embeddings (`image`, `text`) with the start model's; {} where the widths differ.
    """

    rows: int
    set: str
    license: str
    cosine_to_start: dict[Literal["image", "text"], float] = {}


class Robustness(Record):
    """The deciding metric on a sample of the test rows, as they are (`clean`) and corrupted.

    Attributes:
        corruptions: by corruption, the value at each severity from the mildest.
        mean_corruption_score: over all corruptions and severities. kept: that over `clean`; None where `clean` is 0.
    """

    rows: int
    clean: Number
    corruptions: dict[str, list[Number]]
    mean_corruption_score: Number
    kept: float | None


class AnswerShares(Record):
    """How a model's answers to the rows with a label fall: onto one class, or as the classes do.

    Attributes:
        commonest: the class that it names most often; "" where it has no answer. share: of the rows that it calls so.
        expected: share of the rows that are of that class. chance: balanced accuracy of naming one class for all.
    """

    commonest: str
    share: float
    expected: float
    chance: float


class DoubtedLabels(Record):
    """What speaks against the labels of test rows.

    Attributes:
        errors: rows that the candidate calls otherwise than their label.
        doubted: rows whose label candidate and opponent contradict, both with the same class, as surely as either is about images of
            that class.
    """

    errors: int
    doubted: int


class ModelScores(Record):
    """What was measured of one model.

    Attributes:
        intervals: of the headline metrics.
        answers: None without labels, and in results of before.
        metrics: the value of every metric.
        absent: why a metric is missing; `classification` stands for all that need labels.
        general_score, robustness: at the size nearest to the training size, where the spec and the installation allow.
    """

    intervals: dict[str, Interval]
    metrics: dict[str, Number] = {}
    absent: dict[str, str] = {}
    general_score: GeneralScore | None = None
    robustness: Robustness | None = None
    answers: AnswerShares | None = None


class SliceScores(Record):
    """The deciding metric on a part of the test rows: of each model, and what the candidate gained over its opponent."""

    rows: int
    models: dict[Role, Interval]
    gain: PairedGain


class EvaluationResult(StageResult, VersionedRecord):
    """The candidate, the start model and the champion on the same test rows at one image size.

    Attributes:
        key: hash of what was evaluated how.
        size: of the images, pixels.
        metric: the deciding one (`gate.metric`, or the first that these rows allow).
        opponent: version number of the champion; "" where there is none and the start model is the opponent.
        gains: in the deciding metric. comparisons: in every headline metric.
        described: metrics that are not in the catalog.
        labels: None without labels, and in results of before.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "the evaluation"

    key: str = ""
    size: int
    rows: int
    metric: str
    opponent: str
    models: dict[Role, ModelScores]
    gains: dict[Opponent, PairedGain]
    comparisons: list[Comparison] = []
    slices: dict[str, SliceScores] = {}
    described: dict[str, MetricInfo] = {}
    labels: DoubtedLabels | None = None

    @property
    def opponent_role(self) -> Opponent:
        """Which of the models the candidate is measured against."""
        return "champion" if self.opponent else "start"

    @property
    def gain(self) -> PairedGain:
        """Of the candidate over its opponent, in the deciding metric."""
        return self.gains[self.opponent_role]

    @property
    def roles(self) -> list[Role]:
        """Of the models that there are, in the order of a table."""
        return [role for role in ROLES if role in self.models]

    @property
    def candidate(self) -> ModelScores:
        """What was measured of the candidate."""
        return self.models["candidate"]

    def values(self, role: Role) -> dict[str, float]:
        """Every metric of a model."""
        of = self.models[role]
        found = {name: each.value for name, each in of.intervals.items()} | of.metrics
        start = self.models["start"].general_score
        if of.general_score and start:
            found |= {"general_score": of.general_score.value, "forgetting": start.value - of.general_score.value}
        if of.robustness:
            found["robustness"] = math.nan if of.robustness.kept is None else of.robustness.kept
        return found

    @classmethod
    def upgraded(cls, data: dict[str, Any], written: int) -> dict[str, Any]:
        """An evaluation of format 0 has its roles and gains as keys."""
        return data if written else _from_format_0(data)


# What fills a page ----------------------------------------------------------------------------------------------------


class ClassErrors(Record):
    """Recall and precision of a class; None where no row is of it, or none was called it."""

    name: str
    rows: int
    recall: float | None
    precision: float | None


class Confusion(Record):
    """How many rows of a class were called another; `answer` is "" where the model had none."""

    truth: str
    answer: str
    rows: int


class ReliabilityBin(Record):
    """Rows of about the same confidence, and how often the model is right about them."""

    rows: int
    confidence: float
    accuracy: float


class Mistake(Record):
    """A row that the candidate is surest about and wrong.

    Attributes:
        image: a small copy as a data URI; looked: the same, colored where it speaks for the wrong answer, "" for none.
    """

    key: str
    name: str
    truth: str
    answer: str
    image: str
    looked: str = ""


class ModelErrors(Record):
    """What a model gets wrong; empty where no class is known."""

    classes: list[ClassErrors] = []
    confusion: list[Confusion] = []
    reliability: list[ReliabilityBin] = []


class ErrorAnalysis(VersionedRecord):
    """What fills a page rather than a line: `classes` are all classes, `train_rows` how often training saw each."""

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "the error analysis"

    dataset: str
    license: str
    classes: list[str]
    train_rows: dict[str, int]
    models: dict[Role, ModelErrors]
    mistakes: list[Mistake]


# What releases before format numbers wrote ----------------------------------------------------------------------------

_GAIN_0 = "gain_over_"


def _from_format_0(data: Mapping[str, Any]) -> dict[str, Any]:
    """Roles were keys beside `resolution`, `rows` …, gains were `gain_over_before`, and words were others."""
    metric = data["metric"]

    def model(old: str) -> dict[str, Any]:
        general = dict(data.get("retention", {}).get(old) or {})
        values, absent = data.get("figures", {}).get(old, {}), data.get("absent", {}).get(old, {})
        return {
            "intervals": data[old],
            "metrics": {RENAMED_METRICS.get(name, name): value for name, value in values.items()},
            "absent": absent,
            "general_score": {**general.pop("retention"), "license": general.pop("licence"), **general} if general else None,
            "robustness": data.get("robustness", {}).get(old),
        }

    def part(old: Mapping[str, Any]) -> dict[str, Any]:
        models = {new: old[name][metric] for name, new in FORMER_ROLES.items() if name in old}
        return {"rows": old["rows"], "models": models, "gain": old["gain"]}

    return {
        "key": data.get("key", ""),
        "size": data["resolution"],
        "rows": data["rows"],
        "metric": metric,
        "opponent": data["opponent"],
        "models": {new: model(old) for old, new in FORMER_ROLES.items() if old in data},
        "gains": {new: data[_GAIN_0 + old] for old, new in FORMER_ROLES.items() if _GAIN_0 + old in data},
        "comparisons": [c | {"against": FORMER_ROLES[c["against"]]} for c in data.get("comparisons", [])],
        "slices": {name: part(old) for name, old in data.get("slices", {}).items()},
    }

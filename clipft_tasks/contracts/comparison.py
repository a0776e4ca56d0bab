"""A comparison of models: what is kept of it as JSON, and what its page shows."""

from typing import ClassVar

from .base import Record, VersionedRecord
from .evaluation import Confusion, Number, PairedGain


class Measurement(Record):
    """A metric of a model; with its 95% interval where it has one."""

    value: Number
    low: Number | None = None
    high: Number | None = None
    groups: int = 0


class CorrectedGain(PairedGain):
    """A paired gain whose `p_holm` is corrected for all tests of the report."""

    p_holm: Number


class PairedTest(Record):
    """`new` minus `old` in the deciding metric; `gain` is None where they answered different rows, and `refused` says so."""

    old: str
    new: str
    metric: str
    size: int
    gain: CorrectedGain | None = None
    refused: str = ""


class ConfusionTable(Record):
    """Counts by truth (rows) and answer (columns), of rows whose class is known; of many classes only the largest confusions.

    Attributes:
        unanswered: rows without an answer.
    """

    classes: list[str]
    unanswered: int
    counts: list[list[int]] | None = None
    largest: list[Confusion] = []


class ChangedRow(Record):
    """What two models said of a row."""

    truth: str
    old: str
    new: str


class Changes(Record):
    """Rows of the shared test rows that `new` names right and `old` did not (fixed), and the other way round (broken).

    Attributes:
        fixed, broken: row numbers, the surest of `new` first. rows: each such row.
    """

    old: str
    new: str
    fixed: list[int]
    broken: list[int]
    rows: dict[int, ChangedRow]


class DomainComparison(Record):
    """The models of one domain; the first is the baseline.

    Attributes:
        size: at which they are tested in pairs. sizes: at which all were scored.
        rows, datasets, recorded, confusion: by model. recorded: metrics that only the run's own evaluation has.
        metrics: by model and size.
    """

    domain: str
    metric: str
    size: int
    sizes: list[int]
    rows: dict[str, int]
    datasets: dict[str, str]
    metrics: dict[str, dict[int, dict[str, Measurement]]]
    recorded: dict[str, dict[str, Number]]
    pairs: list[PairedTest]
    confusion: dict[str, ConfusionTable]
    changes: list[Changes]


class StartGain(Record):
    """Gain of a model over the one that it started from, as its own run states it; None where the run has no evaluation."""

    name: str
    domain: str
    start: str
    gain: PairedGain | None = None
    metric: str = ""
    size: int = 0
    dataset: str = ""


class TrainingCost(Record):
    """What training took, as far as its run says.

    Attributes:
        memory_gb: the peak. assumed: how the energy was come by. price: of the energy, with its currency; "" where none is set.
    """

    name: str
    device: str | None = None
    pairs: float | None = None
    seconds: float | None = None
    memory_gb: float | None = None
    energy_wh: float | None = None
    assumed: str = ""
    price: str = ""

    @property
    def sentence(self) -> str:
        """Energy and price in a few words; "" where the energy is not known."""
        if self.energy_wh is None:
            return ""
        used = f"{self.energy_wh:.2g} Wh" if self.energy_wh < 10 else f"{self.energy_wh:,.0f} Wh"
        return f"about {', '.join(filter(None, [used, self.price]))} ({self.assumed}; an estimate)"


class ModelLineage(Record):
    """Where a model comes from."""

    name: str
    domain: str
    trained_on: str
    revision: str
    start: str
    objective: str
    run_id: str
    dag_run: str
    gate: str
    license: str
    link: str


class ModelComparison(VersionedRecord):
    """Models alongside one another, `comparison.json` in the experiment clipft-compare.

    Attributes:
        summary: the sentences to read first. problems: what could not be had.
        tests: how many paired tests were made.
        parameters: those that differ, by name, one value a model; None where its run has none.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "the comparison"

    models: list[ModelLineage]
    groups: list[DomainComparison]
    tests: int
    gains: list[StartGain]
    parameters: dict[str, list[str | None]]
    costs: list[TrainingCost]
    summary: list[str]
    problems: list[str]
    when: str
    resamples: int

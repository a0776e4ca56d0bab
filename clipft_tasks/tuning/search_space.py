"""What tuning may vary: fields of the spec by dotted name, each with its range and the template's own value in it."""

import inspect
import math
from dataclasses import asdict, dataclass

from pydantic import JsonValue

from .. import objectives
from ..core.errors import ClipftError
from ..spec import RunSpec
from ..spec.auxiliary import AuxiliaryLoss, Options
from ..spec.ranges import Range, Value

AROUND = 8.0  # factor below and above the template's value, where nobody declared a range
SMOOTHING = 0.3  # most label smoothing that is tried
COOLEST, WARMEST = 0.01, 1.0  # temperatures; training keeps it above 0.01
RANKS = (4, 8, 16, 32, 64)  # of low-rank updates


@dataclass(frozen=True)
class Dimension:
    """One thing that varies.

    Attributes:
        template: the value that it has without tuning; None where that is no number (an option left to the objective).
    """

    range: Range
    template: Value | None = None

    def __str__(self) -> str:
        return f"{self.range} (template: {'its own' if self.template is None else shown(self.template)})"

    @property
    def whole(self) -> bool:
        """Whether only whole numbers make sense."""
        return all(type(x) is int for x in (self.range.low, self.range.high, self.template))

    @property
    def points(self) -> float:
        """How many values there are."""
        if self.range.choices:
            return len(set(self.range.choices))
        if self.range.low == self.range.high:
            return 1
        return self.range.high - self.range.low + 1 if self.whole else math.inf


def shown(value: object) -> str:
    """A value of a field for a person."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class SearchSpace(dict[str, Dimension]):
    """Dimensions by field. Those with a single point are left out: there is nothing to choose."""

    @property
    def points(self) -> float:
        return math.prod(d.points for d in self.values())

    def to_dict(self) -> dict[str, JsonValue]:
        return {field: asdict(dimension) for field, dimension in sorted(self.items())}


def search_space_of(spec: RunSpec, temperature: float | None) -> SearchSpace:
    """The search space of a spec.

    Args:
        temperature: that the start model has.
    Raises: ClipftError when an objective declares a range for an option that it does not have.
    """
    found: dict[str, Dimension] = {}
    if spec.tune.objective:
        found |= _declared(spec.objective.name, "", spec.objective.main_options, spec.objective.label_smoothing)
        for loss in spec.objective.auxiliary_losses:
            found |= _declared(loss.name, f"{loss.name}.", loss.options) | _weight(loss)
        found |= _temperature(spec, temperature)
    if spec.tune.learning_rate:
        rate = spec.train.peak_rate
        found["train.learning_rate"] = Dimension(Range(rate / AROUND, min(1.0, rate * AROUND), log=True), rate)
    if spec.tune.lora_rank:
        rank = spec.train.lora_rank
        found["train.lora_rank"] = Dimension(Range.of(*sorted({rank, *RANKS})), rank)
    return SearchSpace({field: d for field, d in sorted(found.items()) if d.points > 1})


def _declared(name: str, prefix: str, options: Options, smoothing: float | None = None) -> dict[str, Dimension]:
    """What an objective declares.

    Args:
        prefix: of its options in `objective.options`.
        options: that it has in the spec.
        smoothing: of the labels, which varies too where the objective takes it; None for auxiliary ones.
    """
    kind = objectives.objective_class(name)
    parameters = inspect.signature(kind).parameters
    out = {}
    for option, declared in kind.space.items():
        if option not in parameters:
            raise ClipftError(
                f"objective {name!r}",
                f"its space names {option!r}, which is no option of it",
                "Rename one of them.",
                code="tune.unknown_option",
            )
        default = parameters[option].default
        own = options.get(option, None if default is inspect.Parameter.empty else default)
        out[f"objective.options.{prefix}{option}"] = _with(declared, own)
    if smoothing is not None and "smoothing" in parameters and "smoothing" not in kind.space:
        out["objective.label_smoothing"] = _with(Range(0.0, SMOOTHING), smoothing)
    return out


def _weight(loss: AuxiliaryLoss) -> dict[str, Dimension]:
    """The weight of an auxiliary loss, unless it moves over the run."""
    if loss.scheduled or loss.weight <= 0:
        return {}
    around = Range(loss.weight / AROUND, loss.weight * AROUND, log=True)
    return {f"objective.options.{loss.name}.weight": Dimension(around, loss.weight)}


def _temperature(spec: RunSpec, temperature: float | None) -> dict[str, Dimension]:
    own = spec.objective.temperature or temperature
    if not own:
        return {}
    around = Range(max(COOLEST, own / AROUND), min(WARMEST, own * AROUND), log=True)
    return {"objective.temperature": _with(around, own)}


def _with(declared: Range, own: object) -> Dimension:
    """A declared range, widened so that the template's own value lies in it."""
    if not isinstance(own, int | float | str):  # left to the objective, or something that cannot vary
        return Dimension(declared)
    if declared.choices:
        choices = declared.choices if own in declared.choices else (own, *declared.choices)
        return Dimension(Range.of(*choices), own)
    if isinstance(own, str | bool) or (declared.log and own <= 0):
        return Dimension(declared)
    return Dimension(Range(min(declared.low, own), max(declared.high, own), declared.log), own)

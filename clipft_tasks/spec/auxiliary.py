"""Auxiliary losses: objectives that are added to the main one, as a person writes them and as everything else reads them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# What an option of an objective may be.
Option = float | int | str | bool | dict[str, str]
Options = Mapping[str, Option]

FORM = "write name, name=0.5, or name=0>0.5 for a weight that moves over the run"


@dataclass(frozen=True)
class AuxiliaryLoss:
    """One entry of `objective.auxiliary`, with its part of `objective.options`.

    Attributes:
        name: in the catalog, or `module:Class`.
        weight: when the run begins.
        weight_end: when it ends; in between, the weight moves in a straight line.
        options: its own, by keyword.
    """

    name: str
    weight: float = 1.0
    weight_end: float = 1.0
    options: Options = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "AuxiliaryLoss":
        """Read `name`, `name=weight` or `name=from>to`; spaces mean nothing. Raises ValueError that says what is wrong."""
        name, equals, weight = _squeezed(text).partition("=")
        if not name or ">" in name:
            raise ValueError(f"`{text}` names no objective: {FORM}")
        first, arrow, last = weight.partition(">")
        if not equals:
            return cls(name)
        return cls(name, _number(text, first), _number(text, last if arrow else first))

    def __str__(self) -> str:
        """As a person writes it, without the options."""
        if self.scheduled:
            return f"{self.name}={_shown(self.weight)}>{_shown(self.weight_end)}"
        return f"{self.name}={_shown(self.weight)}"

    @property
    def scheduled(self) -> bool:
        """Whether the weight moves."""
        return self.weight != self.weight_end

    def weight_at(self, progress: float) -> float:
        """The weight when a share of the run is done."""
        return self.weight + (self.weight_end - self.weight) * progress


def canonical(texts: list[str]) -> list[str]:
    """The entries of `objective.auxiliary` without spaces. Raises ValueError for one that cannot be read or stands twice."""
    names: set[str] = set()
    for text in texts:
        name = AuxiliaryLoss.parse(text).name
        if name in names:
            raise ValueError(f"`{name}` stands there twice")
        names.add(name)
    return [_squeezed(text) for text in texts]


def resolve(texts: list[str], options: Options) -> tuple[dict[str, Option], tuple[AuxiliaryLoss, ...]]:
    """The options of the main objective, and every auxiliary loss with its own.

    `NAME.option` is an option of the auxiliary loss NAME; `NAME.weight` takes the place of its weight, and may be `from>to`.

    Raises: ValueError for an option of an objective that is not there, and for a weight that is none.
    """
    losses = {loss.name: loss for loss in map(AuxiliaryLoss.parse, texts)}
    main: dict[str, Option] = {}
    others: dict[str, dict[str, Option]] = {name: {} for name in losses}
    for option, value in options.items():
        name, dot, leaf = option.rpartition(".")
        if not dot:
            main[leaf] = value
        elif name not in losses:
            raise ValueError(
                f"options `{option}`: `{name}` is not in objective.auxiliary; add it there, or leave the option out"
            )
        elif leaf == "weight":
            losses[name] = AuxiliaryLoss.parse(f"{name}={value}")
        else:
            others[name][leaf] = value
    return main, tuple(AuxiliaryLoss(name, loss.weight, loss.weight_end, others[name]) for name, loss in losses.items())


def applicable(options: object, name_stays: bool, texts: object) -> object:
    """What of a domain's options is for objectives that the run has.

    Args:
        name_stays: whether the main objective is the domain's.
        texts: `objective.auxiliary` of the run. Neither is validated yet, and what is wrong comes back as it is.
    """
    if not isinstance(options, Mapping):
        return options
    entries = [text for text in texts if isinstance(text, str)] if isinstance(texts, list) else []
    names = {_squeezed(text).partition("=")[0] for text in entries}
    return {o: v for o, v in options.items() if (o.rpartition(".")[0] in names if "." in str(o) else name_stays)}


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _number(text: str, written: str) -> float:
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"`{text}`: `{written}` is no weight; {FORM}")
    return number


def _shown(number: float) -> str:
    return repr(number).removesuffix(".0")

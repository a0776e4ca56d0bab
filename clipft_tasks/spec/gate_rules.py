"""Gate rules: how a person writes one. What a rule says of an evaluation is in `clipft_tasks.evaluate.gate`.

    gain(score) >= 0                       over the opponent (the champion, else the start model), on the same rows
    gain_lower_bound(score) > 0            lower end of its 95% interval: a paired test by group
    gain(score) at every size >= -0.05     the worst of the evaluated image sizes counts
    gain(score) on every slice >= -0.1     the worst of the slices counts; or one slice, by its name
    balanced_accuracy at 96 >= 0.5         the candidate's own metric (metric_catalog.METRICS has all of them)
    my_metrics:TopTwo >= 0.8               a metric of your own
    forgetting <= 0.05                     general score of the start model minus the candidate's

`score` is the metric that `gate.metric` names. Without `at`, the evaluated size nearest to the training size counts.
"""

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ..contracts.evaluation import RENAMED_METRICS
from .metric_catalog import METRICS, is_custom

SCORE = "score"  # stands for the deciding metric
Statistic = Literal["value", "gain", "gain_lower_bound"]
GAINS: tuple[Statistic, ...] = ("gain", "gain_lower_bound")
DEFAULT = ("gain(score) >= 0", "gain(score) at every size >= -0.05", "gain(score) on new >= 0", "gain(score) on old >= -0.03")
EVERY_SIZE, EVERY_SLICE = "every size", "every slice"
SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
RENAMED = {**RENAMED_METRICS, "sure_gain": "gain_lower_bound"}  # words of earlier releases, which rules may go on using


@dataclass(frozen=True)
class GateRule:
    """One line of `gate.rules`. In a pydantic model it is read from its text and written as it.

    Attributes:
        text: as written, with today's words and single spaces.
        metric: a name of the catalog, one of your own, or `score`.
        statistic: the candidate's own value, or what it adds to the opponent's.
        size: image size in pixels; None for the one nearest to the training size, `every size` for the worst.
        slice: name of one; "" for all rows, `every slice` for the worst.
    """

    text: str
    metric: str
    statistic: Statistic
    size: int | str | None
    slice: str
    sign: str
    limit: float

    def __str__(self) -> str:
        """As a person writes it."""
        return self.text

    @classmethod
    def parse(cls, text: str) -> "GateRule":
        """Read a rule. Raises ValueError that names what is wrong and what would be right."""
        text = " ".join(text.split())
        pieces = re.split(r"\s*(>=|<=|>|<)\s*", text)
        if len(pieces) != 3 or not pieces[0] or not pieces[2]:
            raise _wrong(text, "a rule is a metric, one of >= <= > <, and a number, like `gain(score) >= 0`")
        left, sign, right = pieces
        try:
            limit = float(right)
        except ValueError:
            raise _wrong(text, f"`{right}` is not a number") from None
        if not math.isfinite(limit):
            raise _wrong(text, f"`{right}` is not a finite number")
        head, *rest = re.split(r" (at|on) ", left)
        given = dict(zip(rest[::2], rest[1::2], strict=True))
        if len(given) * 2 != len(rest):
            raise _wrong(text, "`at` and `on` may stand once each")
        today = re.sub(r"[\w.:]+", lambda word: RENAMED.get(word[0], word[0]), head)
        statistic, metric = _metric(text, today)
        size = _size(text, given.get("at", ""))
        return cls(text.replace(head, today, 1), metric, statistic, size, given.get("on", ""), sign, limit)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # pydantic's signature
        return core_schema.no_info_plain_validator_function(
            lambda given: given if isinstance(given, cls) else cls.parse(str(given)),
            serialization=core_schema.to_string_ser_schema(),
            json_schema_input_schema=core_schema.str_schema(),
        )


def _metric(text: str, head: str) -> tuple[Statistic, str]:
    match = re.fullmatch(r"(?:(\w+) ?\( ?)?([\w.:]+)(\)?)", head.replace(" )", ")"))
    if not match or bool(match[1]) != bool(match[3]):
        raise _wrong(text, f"`{head}` is not a metric: write its name, or gain(name)")
    function, metric = match[1], match[2]
    statistic = next((gain for gain in GAINS if gain == function), None)
    if function and not statistic:
        raise _wrong(text, f"there is no `{function}(…)`, only {' and '.join(f'{g}(…)' for g in GAINS)}")
    if metric in GAINS and not function:
        raise _wrong(text, f"`{metric}` of what? Write {metric}(score) or {metric}(balanced_accuracy)")
    if metric != SCORE and metric not in METRICS and not is_custom(metric):
        near = difflib.get_close_matches(metric, METRICS, 1)
        hint = f"did you mean `{near[0]}`? " if near else ""
        raise _wrong(text, f"there is no metric `{metric}`; {hint}There are score, {', '.join(METRICS)}")
    return statistic or "value", metric


def _size(text: str, at: str) -> int | str | None:
    if at in ("", EVERY_SIZE):
        return at or None
    if match := re.fullmatch(r"(\d+)(?: ?px)?", at):
        return int(match[1])
    raise _wrong(text, f"`at {at}`: write an image size in pixels, like `at 128`, or `at {EVERY_SIZE}`")


def _wrong(text: str, why: str) -> ValueError:
    return ValueError(f"`{text}`: {why}")

"""Gate rules: how a person writes one, and what it says of an evaluation's metrics.

    gain(score) >= 0                       over the opponent (the champion, else the start model), on the same rows
    sure_gain(score) > 0                   lower end of its 95% interval, by a paired bootstrap: a paired test
    gain(score) at every size >= -0.05     the worst of the evaluated image sizes counts
    gain(score) on every slice >= -0.1     the worst of the slices counts; or one slice, by its name
    balanced_accuracy at 96 >= 0.5         the candidate's own metric (METRICS has all of them)
    forgetting <= 0.05                     general score before minus after

`score` is the metric that `gate.metric` names. Without `at`, the evaluated size nearest to the training size counts.
"""

import difflib
import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import ClipftError
from .metric_catalog import NAMES

# What an evaluation measures of a model, and which way is better (1, -1; 0 neither).
METRICS: dict[str, tuple[str, int]] = NAMES | {
    "general_score": ("what is still known of everyday images, 0 to 1", 1),
    "forgetting": ("general score before training minus after", -1),
    "robustness": ("share of the score that is left under corruptions", 1),
}
LABELED = (  # what cannot be computed without labels of two classes
    *("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "macro_average_precision", "top3_accuracy", "top5_accuracy"),
    *("calibration_error", "fitted_calibration_error"),
)
RENAMED = {"retention": "general_score"}  # names of earlier releases, which rules may go on using
GAINS = ("gain", "sure_gain")
GROWTH = ("new", "old")  # slices of a data set that grew by captures; rules about them apply only there
EVERY_SIZE, EVERY_SLICE = "every size", "every slice"
SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Rule:
    """One line of `gate.rules`.

    Attributes:
        metric: of the candidate, or `score`.
        gain: "" for the candidate's own metric, `gain` or `sure_gain` for what it adds to the opponent's.
        size: image side; None for the training size, `every size` for the worst.
        part: slice; "" for all rows, `every slice` for the worst.
    """

    text: str
    metric: str
    gain: str
    size: int | str | None
    part: str
    sign: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Read a rule. Raises ValueError that names what is wrong and what would be right."""
        text = " ".join(text.split())
        pieces = re.split(r"\s*(>=|<=|>|<)\s*", text)
        if len(pieces) != 3 or not pieces[0] or not pieces[2]:
            raise _wrong(text, "a rule is a metric, one of >= <= > <, and a number, like `gain(score) >= 0`")
        left, sign, right = pieces
        try:
            limit = float(right)
        except ValueError:
            raise _wrong(text, f"`{right}` is no number") from None
        if not math.isfinite(limit):
            raise _wrong(text, f"`{right}` is no limit")
        head, *rest = re.split(r" (at|on) ", left)
        given = dict(zip(rest[::2], rest[1::2], strict=True))
        if len(given) * 2 != len(rest):
            raise _wrong(text, "`at` and `on` may stand once each")
        gain, metric = cls._metric(text, head)
        part = given.get("on", "")
        return cls(text, metric, gain, cls._size(text, given.get("at", "")), part, sign, limit)

    @staticmethod
    def _metric(text: str, head: str) -> tuple[str, str]:
        match = re.fullmatch(r"(?:(\w+) ?\( ?)?(\w+)(\)?)", head.replace(" )", ")"))
        if not match or bool(match[1]) != bool(match[3]):
            raise _wrong(text, f"`{head}` is no metric: write its name, or gain(name)")
        gain, metric = match[1] or "", RENAMED.get(match[2], match[2])
        if gain and gain not in GAINS:
            raise _wrong(text, f"there is no `{gain}(…)`, only {' and '.join(f'{g}(…)' for g in GAINS)}")
        if metric in GAINS and not gain:
            raise _wrong(text, f"`{metric}` of what? Write {metric}(score) or {metric}(balanced_accuracy)")
        if metric != "score" and metric not in METRICS:
            near = difflib.get_close_matches(metric, METRICS, 1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise _wrong(text, f"there is no metric `{metric}`; {hint}There are score, {', '.join(METRICS)}")
        return gain, metric

    @staticmethod
    def _size(text: str, at: str) -> int | str | None:
        if at in ("", EVERY_SIZE):
            return at or None
        if match := re.fullmatch(r"(\d+)(?: ?px)?", at):
            return int(match[1])
        raise _wrong(text, f"`at {at}`: write an image side, like `at 128`, or `at {EVERY_SIZE}`")


def _wrong(text: str, why: str) -> ValueError:
    return ValueError(f"`{text}`: {why}")


@dataclass(frozen=True)
class Verdict:
    """A rule and what was measured: None where the rule does not apply or the metric cannot be computed."""

    rule: Rule
    measured: float | None
    where: str  # size and slice that were measured, or why nothing was
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "rule": self.rule.text,
            "measured": self.measured,
            "where": self.where,
            "sign": self.rule.sign,
            "limit": self.rule.limit,
            "passed": self.passed,
        }


def judge(texts: Sequence[str], results: Sequence[Mapping[str, Any]], size: int) -> list[Verdict]:
    """Apply rules to the evaluations of one candidate.

    Args:
        texts: `gate.rules`.
        results: of the stage evaluate, one an image size.
        size: that the model was trained for.
    Raises:
        ClipftError: a rule about a size, slice or metric that was not evaluated, with those that were.
    """
    by_size = {int(r["resolution"]): r for r in results}
    main = min(by_size, key=lambda side: abs(side - size))
    return [_judge(Rule.parse(text), by_size, main) for text in texts]


def _judge(rule: Rule, by_size: Mapping[int, Mapping[str, Any]], main: int) -> Verdict:
    if isinstance(rule.size, int) and rule.size not in by_size:
        sizes = ", ".join(f"{side} px" for side in sorted(by_size))
        raise ClipftError(f"gate rule `{rule.text}`", f"{rule.size} px was not evaluated", f"There are {sizes}.")
    sides = sorted(by_size) if rule.size == EVERY_SIZE else [rule.size if isinstance(rule.size, int) else main]
    found: list[tuple[float, str]] = []
    for side in sides:
        result = by_size[side]
        slices = result.get("slices") or {}
        if rule.part and rule.part not in (EVERY_SLICE, *slices):
            if rule.part in GROWTH:
                return Verdict(rule, None, "does not apply: the data set did not grow by captures", True)
            raise ClipftError(
                f"gate rule `{rule.text}`", f"there is no slice `{rule.part}`", f"There are {', '.join(slices) or 'none'}."
            )
        for part in slices if rule.part == EVERY_SLICE else [rule.part]:
            where = f"{side} px" + (f", {part} ({slices[part]['rows']} rows)" if part else "")
            try:
                found.append((_measure(rule, result, part), where))
            except _Absent as reason:
                found.append((math.nan, f"{where}: {reason}"))
    if not found:
        return Verdict(rule, None, "does not apply: the data set has no slices", True)
    # The worst counts, and what cannot be computed (NaN) is the worst of all and no pass.
    better_is_more = rule.sign.startswith(">")
    value, where = min(found, key=lambda f: -math.inf if math.isnan(f[0]) else f[0] if better_is_more else -f[0])
    if math.isnan(value):
        return Verdict(rule, None, where if ": " in where else f"{where}: it cannot be computed", False)
    return Verdict(rule, value, where, bool(SIGNS[rule.sign](value, rule.limit)))


def _measure(rule: Rule, result: Mapping[str, Any], part: str) -> float:
    """The rule's metric at one size, on all rows or on a slice."""
    metric = result["metric"] if rule.metric == "score" else rule.metric
    opponent = "champion" if result["opponent"] else "before"
    if not rule.gain:
        return _value(rule, result, part, "after", metric)
    if part:
        paired = [result["slices"][part]["gain"]] if metric == result["metric"] else []
    elif metric == result["metric"]:
        paired = [result[f"gain_over_{opponent}"]]
    else:
        paired = [c for c in result.get("comparisons", ()) if (c["metric"], c["against"]) == (metric, opponent)]
    if paired:
        return _number(paired[0]["value" if rule.gain == "gain" else "low"])
    if rule.gain == "sure_gain":
        tested = dict.fromkeys([result["metric"], *([] if part else [c["metric"] for c in result.get("comparisons", ())])])
        where = f" on {part}" if part else ""
        raise ClipftError(
            f"gate rule `{rule.text}`", f"`{metric}` has no paired test{where}", f"Those that have: {', '.join(tested)}."
        )
    return _value(rule, result, part, "after", metric) - _value(rule, result, part, opponent, metric)


class _Absent(Exception):
    """A metric that there is in general, and why not on these rows."""


def _value(rule: Rule, result: Mapping[str, Any], part: str, who: str, metric: str) -> float:
    """A model's own metric. Raises _Absent where the evaluation says why it has none, ClipftError where it does not know it."""
    found = metrics(result, who, part)
    if metric in found:
        return found[metric]
    absent = {} if part else result.get("absent", {}).get(who, {})
    if metric in absent or (metric in LABELED and "classification" in absent):
        raise _Absent(absent.get(metric) or absent["classification"])
    if metric in ("general_score", "forgetting") and not part and "general_score" in result:
        raise _Absent("the general score was not measured at this size, or its general set is not installed")
    where = f"{result['resolution']} px" + (f" on {part}" if part else "")
    raise ClipftError(f"gate rule `{rule.text}`", f"`{metric}` was not evaluated at {where}", f"There are {', '.join(found)}.")


def metrics(result: Mapping[str, Any], who: str, part: str = "") -> dict[str, float]:
    """Every metric of a model (`before`, `after`, `champion`) in one evaluation, or in one slice of it."""
    rows = result["slices"][part] if part else result
    out = {name: _number(f["value"]) for name, f in rows[who].items()}
    if part:
        return out
    out |= {name: _number(value) for name, value in result.get("metrics", {}).get(who, {}).items()}
    kept = result.get("general_score") or {}
    if kept:
        out["general_score"] = _number(kept[who]["general_score"]["value"])
        out["forgetting"] = _number(kept["before"]["general_score"]["value"]) - out["general_score"]
    if result.get("robustness"):
        out["robustness"] = _number(result["robustness"][who]["kept"])
    return out


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def table(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: rule, measured, limit, pass. Takes verdicts as `Verdict.to_dict` makes them."""
    lines = ["| rule | measured | limit | pass |", "|---|---|---|---|"]
    for v in verdicts:
        limit = f"{v['sign']} {v['limit']:g}"
        lines.append(f"| {v['rule']} | {measured(v)} | {limit} | {'yes' if v['passed'] else '**NO**'} |")
    return "\n".join(lines)


def measured(verdict: Mapping[str, Any]) -> str:
    """What was measured and where, for a person."""
    value = verdict["measured"]
    return verdict["where"] if value is None else f"{value:.4g} at {verdict['where']}"

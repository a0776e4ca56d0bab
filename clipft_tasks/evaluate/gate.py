"""What gate rules say of the evaluations of one candidate, and the tables that a person reads."""

import math
from collections.abc import Sequence

from ..contracts.evaluation import EvaluationResult, Role
from ..contracts.gate import RuleResult
from ..core.errors import ClipftError
from ..spec.gate_rules import EVERY_SIZE, EVERY_SLICE, SCORE, SIGNS, GateRule
from ..spec.metric_catalog import METRICS

GROWTH = ("new", "old")  # slices of a data set that grew by captures; rules about them apply only there


def judge(rules: Sequence[GateRule], results: Sequence[EvaluationResult], size: int) -> list[RuleResult]:
    """Apply rules to the evaluations of one candidate.

    Args:
        results: one an image size.
        size: that the model was trained for.
    Raises:
        ClipftError: a rule about a size, slice or metric that was not evaluated, with those that were.
    """
    by_size = {result.size: result for result in results}
    main = min(by_size, key=lambda each: abs(each - size))
    return [_judge(rule, by_size, main) for rule in rules]


def _judge(rule: GateRule, by_size: dict[int, EvaluationResult], main: int) -> RuleResult:
    if isinstance(rule.size, int) and rule.size not in by_size:
        there = ", ".join(f"{size} px" for size in sorted(by_size))
        raise ClipftError(
            f"gate rule `{rule}`", f"{rule.size} px was not evaluated", f"There are {there}.", code="gate.unknown_size"
        )
    sizes = sorted(by_size) if rule.size == EVERY_SIZE else [rule.size if isinstance(rule.size, int) else main]
    found: list[tuple[float, str]] = []
    for result in (by_size[size] for size in sizes):
        if rule.slice and rule.slice not in (EVERY_SLICE, *result.slices):
            if rule.slice in GROWTH:
                return _answer(rule, None, "does not apply: the data set did not grow by captures", True)
            names = ", ".join(result.slices) or "none"
            raise ClipftError(
                f"gate rule `{rule}`", f"there is no slice `{rule.slice}`", f"There are {names}.", code="gate.unknown_slice"
            )
        for name in result.slices if rule.slice == EVERY_SLICE else [rule.slice]:
            where = f"{result.size} px" + (f", {name} ({result.slices[name].rows} rows)" if name else "")
            try:
                found.append((_measure(rule, result, name), where))
            except _AbsentError as reason:
                found.append((math.nan, f"{where}: {reason}"))
    if not found:
        return _answer(rule, None, "does not apply: the data set has no slices", True)
    # The worst counts, and what cannot be computed (NaN) is the worst of all and no pass.
    more_is_better = rule.sign.startswith(">")
    value, where = min(found, key=lambda f: -math.inf if math.isnan(f[0]) else f[0] if more_is_better else -f[0])
    if math.isnan(value):
        return _answer(rule, None, where if ": " in where else f"{where}: it cannot be computed", False)
    return _answer(rule, value, where, SIGNS[rule.sign](value, rule.limit))


def _answer(rule: GateRule, measured: float | None, where: str, passed: bool) -> RuleResult:
    return RuleResult(rule=str(rule), measured=measured, where=where, sign=rule.sign, limit=rule.limit, passed=passed)


def _measure(rule: GateRule, result: EvaluationResult, part: str) -> float:
    """What a rule asks for at one size, on all rows or on a slice."""
    metric = result.metric if rule.metric == SCORE else rule.metric
    opponent = result.opponent_role
    if rule.statistic == "value":
        return _value(rule, result, part, "candidate", metric)
    if part:
        tested = {result.metric: result.slices[part].gain}
    else:
        tested = {c.metric: c for c in result.comparisons if c.against == opponent} | {result.metric: result.gain}
    if metric in tested:
        return tested[metric].value if rule.statistic == "gain" else tested[metric].low
    if rule.statistic == "gain_lower_bound":
        where = f" on {part}" if part else ""
        have = dict.fromkeys([result.metric, *tested])
        raise ClipftError(
            f"gate rule `{rule}`",
            f"`{metric}` has no paired test{where}",
            f"Those that have: {', '.join(have)}.",
            code="gate.no_paired_test",
        )
    return _value(rule, result, part, "candidate", metric) - _value(rule, result, part, opponent, metric)


class _AbsentError(Exception):
    """A metric that there is in general, and why not on these rows."""


def _value(rule: GateRule, result: EvaluationResult, part: str, role: Role, metric: str) -> float:
    """A model's own metric.

    Raises: _AbsentError where the evaluation says why there is none, ClipftError where it does not know the metric.
    """
    found = {result.metric: result.slices[part].models[role].value} if part else result.values(role)
    if metric in found:
        return found[metric]
    info = METRICS.get(metric) or result.described.get(metric)
    absent = {} if part else result.models[role].absent
    if metric in absent or (info and info.needs_labels and "classification" in absent):
        raise _AbsentError(absent.get(metric) or absent["classification"])
    if metric in ("general_score", "forgetting") and not part:
        raise _AbsentError("the general score was not measured at this size, or its general set is not installed")
    where = f"{result.size} px" + (f" on {part}" if part else "")
    raise ClipftError(
        f"gate rule `{rule}`",
        f"`{metric}` was not evaluated at {where}",
        f"There are {', '.join(found)}.",
        code="gate.not_evaluated",
    )


def rules_table(results: Sequence[RuleResult]) -> str:
    """Markdown: rule, measured, limit, pass."""
    lines = ["| rule | measured | limit | pass |", "|---|---|---|---|"]
    lines += [f"| {r.rule} | {r} | {r.sign} {r.limit:g} | {'yes' if r.passed else '**NO**'} |" for r in results]
    return "\n".join(lines)


def scores_table(results: Sequence[EvaluationResult]) -> str:
    """Markdown: one row an image size, one column a model, the deciding metric with 95% intervals."""
    roles = results[0].roles
    lines = [
        f"| {results[0].metric} on {results[0].rows} test rows, at | " + " | ".join(roles) + " | gain |",
        "|---|" + "---|" * (len(roles) + 1),
    ]
    for result in results:
        scores = [result.models[role].intervals[result.metric] for role in roles]
        cells = [f"{s.value:.3f} {s.ends()}" for s in scores]
        gain = f"{result.gain.value:+.3f} {result.gain.ends('+.3f')}"
        lines.append(f"| {result.size} px | {' | '.join(cells)} | {gain} |")
    return "\n".join(lines)

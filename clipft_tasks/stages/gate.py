"""gate: is the candidate good enough to be registered? The spec's rules, each with what was measured and its verdict."""

from collections.abc import Sequence

from ..contracts.evaluation import EvaluationResult
from ..contracts.gate import GateVerdict
from ..core.console import say
from ..core.errors import ClipftError
from ..spec import RunSpec
from ..spec.metric_catalog import METRICS

REPORT = "evaluation/report.html"


def run(spec: RunSpec, run_id: str, evaluations: Sequence[EvaluationResult]) -> GateVerdict:
    """Hold the candidate against `gate.rules`, alongside its opponent (the champion, or the start model where there is none).

    The verdict and the report are kept in the run, whichever way it goes.

    Raises: ClipftError when a rule fails, or names what was not evaluated.
    """
    from .. import tracking
    from ..evaluate import gate, report
    from ..evaluate.advice import advice

    results = _of_one_opponent(spec, run_id, sorted(evaluations, key=lambda r: r.size))
    metric, opponent = results[0].metric, results[0].opponent
    rules = gate.judge(spec.gate.rules, results, spec.resolution.side)
    gains = f"`score` is {metric}; gains are over {f'version {opponent}' if opponent else 'the start model'}."
    client = tracking.client()
    if doubt := _doubt(spec.domain, client.get_run(run_id).data.tags.get("clipft.dataset", ""), opponent):
        gains += f" **Not comparable**: {doubt}."
    main = min(results, key=lambda r: abs(r.size - spec.resolution.side))
    said = advice(main, rules, spec)
    table = "\n\n".join([gate.rules_table(rules), gains, gate.scores_table(results), *said])
    say(table)
    link = tracking.run_link(client.get_run(run_id), f"artifacts/{REPORT}")
    verdict = GateVerdict(
        passed=all(rule.passed for rule in rules),
        metric=metric,
        opponent=opponent,
        rules=rules,
        table=table,
        scores={r.size: {role: m.intervals[metric] for role, m in r.models.items()} for r in results},
        advice=said,
        links={"Evaluation": link},
    )
    with tracking.retryable():
        client.log_text(run_id, report.of_run(run_id, results, verdict, spec.resolution.side), REPORT)
        client.log_text(run_id, table, "evaluation/table.md")
        client.log_dict(run_id, verdict.to_json(), "gate.json")
        for role, interval in verdict.scores[main.size].items():  # the headline of the run: at the size that it was trained for
            client.log_metric(run_id, "score" if role == "candidate" else f"score_{role}", interval.value)
        client.set_tag(run_id, "clipft.gate", "passed" if verdict.passed else "failed")
    if not verdict.passed:
        reasons = "; ".join(f"`{rule.rule}` measured {rule}" for rule in verdict.failed)
        raise ClipftError(
            f"the candidate of run {run_id}",
            f"it did not pass the gate: {reasons}",
            " ".join([*said, f"Nothing was registered. See {link}"]),
            code="gate.not_passed",
        )
    return verdict


def _of_one_opponent(spec: RunSpec, run_id: str, results: list[EvaluationResult]) -> list[EvaluationResult]:
    """The evaluations, all beside one opponent: where the champion changed between two of them, those of before are made again, here."""
    from . import evaluate

    while (
        len({result.opponent for result in results}) > 1
    ):  # what was evaluated beside the champion of now is found, not made again
        say("The champion changed while the candidate was evaluated: it is evaluated beside the new one.")
        results = [evaluate.run(spec, run_id, result.size) for result in results]
    return results


def deciding_metric(spec: RunSpec, allowed: Sequence[str], dataset: str) -> str:
    """The metric that the gate looks at: `gate.metric`, or, where that is only what the domain's profile says, the first that the test
    rows allow.

    Args:
        allowed: headline metrics that the test rows allow.
    Raises: ClipftError when somebody chose one that cannot be computed: another one would be another question.
    """
    metric = spec.gate.metric
    if metric in allowed:
        return metric
    if metric != RunSpec.from_flat({"domain": spec.domain}).gate.metric:
        raise ClipftError(
            f"gate.metric {metric}",
            f"the test rows of {dataset} do not allow it: "
            + ("they have no labels" if METRICS[metric].needs_labels else "they have one caption"),
            f"They allow {', '.join(allowed)}.",
            code="gate.metric_not_computable",
        )
    say(f"The test rows of {dataset} do not allow {metric}, the usual metric of {spec.domain}: the gate looks at {allowed[0]}.")
    return allowed[0]


def _doubt(domain: str, dataset: str, opponent: str) -> str:
    """Why the champion cannot be judged on the candidate's test rows; "" where it can."""
    from .. import tracking
    from ..data import versioning

    if not opponent or not dataset:
        return ""
    try:
        champion = tracking.resolve_version(f"models:/{tracking.model_name(domain)}/{opponent}")
        return versioning.not_comparable(dataset, tracking.lineage(champion).get("dataset", ""))
    except ClipftError:  # the champion, or what it was trained on, is not here any more
        return ""

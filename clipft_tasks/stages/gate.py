"""gate: is the candidate good enough to be registered? The spec's rules, each with what was measured and its verdict."""

from typing import Any

from ..core.console import say
from ..core.errors import ClipftError
from ..spec import RunSpec, gate_rules

REPORT = "evaluation/report.html"


def run(spec: RunSpec, run_id: str, evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """Hold the candidate against `gate.rules`, beside its opponent (the champion, or the start model where there is none).

    Returns: passed, metric, opponent, rules (rule, measured, where, sign, limit, passed), table (Markdown: the rules, then the
        metrics), scores by resolution, links.
    Raises: ClipftError when a rule fails, or names what was not evaluated.
    """
    from .. import tracking
    from ..spec import metric_catalog

    results = sorted(evaluations, key=lambda r: r["resolution"])
    opponent = results[0]["opponent"]
    if any(r["opponent"] != opponent for r in results):
        raise ClipftError("the gate", "the champion changed while the candidate was evaluated", "Evaluate again.")
    metric = results[0]["metric"]
    verdicts = [v.to_dict() for v in gate_rules.judge(spec.gate.rules, results, spec.resolution.train)]
    failed = [v for v in verdicts if not v["passed"]]
    against = f"version {opponent}" if opponent else "the start model"
    table = f"{gate_rules.table(verdicts)}\n\n`score` is {metric}; gains are over {against}.\n\n{metric_catalog.table(results)}"
    say(table)
    verdict = {"passed": not failed, "metric": metric, "opponent": opponent, "rules": verdicts, "table": table}
    client = tracking.client()
    link = tracking.run_link(client.get_run(run_id), f"artifacts/{REPORT}")
    with tracking.retryable():
        client.log_text(run_id, _page(spec, run_id, results, verdict), REPORT)
        client.log_text(run_id, table, "evaluation/table.md")
        client.log_dict(run_id, verdict, "gate.json")
        client.set_tag(run_id, "clipft.gate", "passed" if verdict["passed"] else "failed")
    if failed:
        reasons = "; ".join(f"`{v['rule']}` measured {gate_rules.measured(v)}" for v in failed)
        raise ClipftError(
            f"the candidate of run {run_id}", f"it did not pass the gate: {reasons}", f"Nothing was registered. See {link}"
        )
    scores = {
        str(r["resolution"]): {who: r[who][metric] for who in ("before", "after", "champion") if who in r} for r in results
    }
    return verdict | {"scores": scores, "links": {"Evaluation": link}}


def _page(spec: RunSpec, run_id: str, results: list[dict[str, Any]], verdict: dict[str, Any]) -> str:
    """The report, from what the evaluations left in the run."""
    from .. import tracking
    from ..evaluate import report

    details = {
        r["resolution"]: tracking.load_json_artifact(run_id, f"evaluation/{r['resolution']}-details.json") for r in results
    }
    main = min(details, key=lambda size: abs(size - spec.resolution.train))
    tags = tracking.client().get_run(run_id).data.tags
    facts = {
        "dataset": tags.get("clipft.dataset", ""),
        "from": tags.get("clipft.start", ""),
        "license": details[main].get("license", ""),
        "run": run_id,
    }
    return report.page(f"Evaluation: {spec.domain}", results, details, verdict, main, facts)

"""gate: is the candidate good enough to be registered? A table of rule, measured, limit, verdict."""

from typing import Any

from ..errors import ClipftError
from ..progress import say
from ..spec import RunSpec

REPORT = "evaluation/report.html"


def run(spec: RunSpec, run_id: str, evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the candidate with its opponent (the champion, or the start model where there is none) on the same rows.

    Returns: passed, metric, opponent, rules (rule, measured, limit, passed), table (Markdown), scores by resolution.
    Raises: ClipftError when a rule fails, with the table.
    """
    from .. import tracking
    from ..evaluate import figures

    results = sorted(evaluations, key=lambda r: r["resolution"])
    opponent = results[0]["opponent"]
    if any(r["opponent"] != opponent for r in results):
        raise ClipftError("the gate", "the champion changed while the candidate was evaluated", "Evaluate again.")
    gains = {r["resolution"]: (r["gain_over_champion"] if opponent else r["gain_over_before"])["value"] for r in results}
    metric = results[0]["metric"]
    main = min(gains, key=lambda size: abs(size - spec.resolution.train))
    worst = min(gains, key=lambda size: gains[size])
    against = f"version {opponent}" if opponent else "the start model"
    rules = [
        _rule(f"{metric} at {main} px against {against}", gains[main], spec.gate.min_gain),
        _rule(f"{metric} at its weakest size, {worst} px", gains[worst], -spec.gate.max_drop),
    ]
    slices = next(r for r in results if r["resolution"] == main).get("slices") or {}
    if "new" in slices:
        rules.append(
            _rule(
                f"{metric} on the {slices['new']['rows']} new rows against {against}",
                slices["new"]["gain"]["value"],
                spec.gate.min_gain,
            )
        )
    if "old" in slices:
        rules.append(
            _rule(
                f"{metric} on the {slices['old']['rows']} old rows against {against}",
                slices["old"]["gain"]["value"],
                -spec.gate.max_forgotten,
            )
        )
    passed = all(r["passed"] for r in rules)
    table = figures.table(results)
    say(table)
    for r in rules:
        say(f"  {'pass' if r['passed'] else 'FAIL'}  {r['rule']}: {r['measured']:+.4f} (at least {r['limit']:+.4f})")
    verdict = {"passed": passed, "metric": metric, "opponent": opponent, "rules": rules, "table": table}
    client = tracking.client()
    link = tracking.run_link(client.get_run(run_id), f"artifacts/{REPORT}")
    with tracking.neighbour():
        client.log_text(run_id, _page(spec, run_id, results, verdict, main), REPORT)
        client.log_text(run_id, table, "evaluation/table.md")
        client.log_dict(run_id, verdict, "gate.json")
        client.set_tag(run_id, "clipft.gate", "passed" if passed else "failed")
    if not passed:
        reasons = "; ".join(
            f"{r['rule']} is {r['measured']:+.4f}, at least {r['limit']:+.4f} is asked" for r in rules if not r["passed"]
        )
        raise ClipftError(
            f"the candidate of run {run_id}", f"it did not pass the gate: {reasons}", f"Nothing was registered. See {link}"
        )
    scores = {
        str(r["resolution"]): {who: r[who][metric] for who in ("before", "after", "champion") if who in r} for r in results
    }
    return verdict | {"scores": scores, "slices": slices, "links": {"Evaluation": link}}


def _page(spec: RunSpec, run_id: str, results: list[dict[str, Any]], verdict: dict[str, Any], main: int) -> str:
    """The report, from what the evaluations left in the run."""
    from .. import tracking
    from ..evaluate import report

    details = {r["resolution"]: tracking.card_of(run_id, f"evaluation/{r['resolution']}-details.json") for r in results}
    tags = tracking.client().get_run(run_id).data.tags
    facts = {
        "dataset": tags.get("clipft.dataset", ""),
        "from": tags.get("clipft.start", ""),
        "licence": details[main].get("licence", ""),
        "run": run_id,
    }
    return report.page(f"Evaluation: {spec.domain}", results, details, verdict, main, facts)


def _rule(rule: str, measured: float, limit: float) -> dict[str, Any]:
    # A figure that cannot be computed (NaN) is no pass.
    return {"rule": rule, "measured": measured, "limit": limit, "passed": bool(measured >= limit)}

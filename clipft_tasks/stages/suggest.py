"""suggest: what drifted, what it most likely is, and what should be done about it. Nothing is changed by it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..contracts.drift import Probation
from ..contracts.stages import SuggestResult
from ..core.console import say
from ..drift.case import Advice, Comparison, DriftCase
from ..spec import RunSpec

LOOKED = 4  # images in the report with a heatmap
REVIEW = "Some may be wrong: `clipft review` ranks the labels of the version that takes them in."


def run(spec: RunSpec, signals: Sequence[str] | None = None, incident: str = "") -> SuggestResult:
    """Compare the server's window with the champion's reference, and other models and prompts with it on what was captured.

    Args:
        signals: of the alert, for the record.
        incident: which one is answered. When its version on probation is worse, the answer is to go back.
    Raises: TransientError when the server or MLflow is away; ClipftError when nothing of the domain is live, its version is no longer
        registered, or its reference belongs to other weights.
    """
    import numpy as np

    from .. import tracking
    from ..drift import model_search, report
    from ..drift.diagnosis import advise, diagnose
    from ..drift.evidence import gather
    from ..drift.image_statistics import STATISTICS

    evidence = gather(spec.domain)
    snapshot, images = evidence.snapshot, evidence.images
    shares = report.class_shares(evidence.reference, evidence.window)
    diagnosis = diagnose(snapshot.drift, max((abs(now - before) for before, now in shares.values()), default=0.0))
    if probation := _failed_probation(spec.domain, incident):
        comparison, advice = Comparison(), Advice("rollback", probation.regression, probation.previous)
    else:
        statistics = np.array(evidence.window.appearance, dtype=float).reshape(-1, len(STATISTICS))
        labels = [found.capture.label for found in images]
        comparison = model_search.compare(
            spec.domain,
            evidence.champion,
            [found.image for found in images],
            labels,
            statistics,
            closely=evidence.newest[:LOOKED],
        )
        advice = advise(diagnosis, snapshot, evidence.labels, comparison)
    examples = evidence.examples(comparison.nearest or [""] * len(images), comparison.looked)
    with tracking.retryable():
        metrics = tracking.client().get_run(str(evidence.champion.run_id)).data.metrics
    minutes = _minutes(metrics, spec, evidence.labels.total())
    case = DriftCase(snapshot, diagnosis, advice, comparison, evidence.labels, shares, minutes, _recipe(spec))

    link = _log(case, signals or (), report.page(case, evidence.reference, evidence.window, examples, evidence.gray_bits))
    doubt = [f"* {evidence.suspects} labels of captures contradict a confident answer. {REVIEW}"] if evidence.suspects else []
    table = "\n".join([*report.approval_text(case), *doubt, "", f"[Drift report]({link})"])
    say(table)
    return SuggestResult(
        kind=diagnosis.kind,
        action=advice.action,
        version=advice.version,
        why=advice.why,
        expected_gain=advice.expected_gain,
        minutes=minutes,
        labels=dict(evidence.labels),
        live=snapshot.live_accuracy,
        champion=snapshot.version,
        table=table,
        suspects=evidence.suspects,
        links={"Drift report": link},
    )


def _failed_probation(domain: str, incident: str) -> Probation | None:
    """The probation of this incident, if the version that came of it turned out worse."""
    from ..drift import incident_store

    found = incident_store.load(domain).incident
    return found.probation if found and found.id == incident and not found.on_probation else None


def _minutes(metrics: dict[str, float], spec: RunSpec, more: int) -> float | None:
    """What training would take, from the pace of the champion's own run."""
    pace, pairs = metrics.get("pairs_per_second"), metrics.get("pairs")
    if not pace or not pairs:
        return None
    return round((pairs + more * spec.train.epochs) / pace / 60, 1)


def _recipe(spec: RunSpec) -> str:
    """How the training that follows would go about it."""
    auxiliary = "".join(f" and {loss}" for loss in spec.objective.auxiliary)
    side = f"{spec.resolution.train} px" if spec.resolution.train else "the champion's own size"
    return f"{spec.objective.name}{auxiliary}, {spec.train.epochs} epochs at {side}, from the champion, gate " + "; ".join(
        map(str, spec.gate.rules)
    )


def _log(case: DriftCase, signals: Sequence[str], page: str) -> str:
    """A run of its own in the domain's drift experiment: page, snapshot and ratios; returns the page's address."""
    from .. import tracking

    domain, version = case.snapshot.domain, case.snapshot.version
    with tempfile.TemporaryDirectory() as folder, tracking.retryable():
        path = Path(folder, "drift.html")
        path.write_text(page, "utf-8")
        run_ = tracking.client().create_run(
            tracking.get_or_create_experiment(f"clipft-{domain}-drift"),
            run_name=f"version {version}: {case.diagnosis.kind}",
            tags={"clipft.domain": domain, "clipft.version": version, "clipft.signals": ", ".join(signals)},
        )
        run_id = run_.info.run_id
        tracking.client().log_artifact(run_id, str(path))
        tracking.client().log_dict(run_id, case.snapshot.to_json(), "metrics.json")
        for name, ratio in case.snapshot.drift.items():
            tracking.client().log_metric(run_id, f"drift.{name}", ratio)
        tracking.finish_run(run_id)
    return tracking.run_link(run_, "artifacts/drift.html")

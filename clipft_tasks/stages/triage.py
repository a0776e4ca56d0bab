"""triage: whether an alert is acted on. The one place where alerts of all ways meet."""

import time
from collections.abc import Sequence

from ..contracts.drift import ERRORS, DriftAlert, Incident, IncidentState, Probation
from ..contracts.notice import Notice
from ..contracts.stages import TriageResult
from ..core.console import say
from ..drift import incidents
from ..drift.thresholds import COOL_DOWN, MIN_JUDGED
from ..ops import notify
from ..server.client import ServerClient, ServerRefusalError
from ..spec import RunSpec

AGAIN = "this run took it up before"


def run(spec: RunSpec, alerts: Sequence[DriftAlert], cool_down: float = COOL_DOWN, dag_run: str = "") -> TriageResult:
    """Open an incident where nothing speaks against it, or reopen the one on probation when its version is worse.

    Args:
        alerts: of the spec's domain. The first says what the incident is about.
        cool_down: seconds after an incident before the next.
        dag_run: who asks, for the record; the same again is admitted again, so that its retry finds what it had begun.
    Raises: TransientError when MLflow is away, or the server where it must be asked.
    """
    from ..drift import incident_store

    signals = list(dict.fromkeys(signal for alert in alerts for signal in alert.signals))
    drifting = [a for a in alerts if set(a.signals) != {ERRORS}]
    now, found = time.time(), incident_store.load(spec.domain).incident
    regression = _regression(spec.domain, found.probation, alerts) if found and found.probation and found.on_probation else ""
    admitted, reason = False, ""

    def decide(state: IncidentState) -> IncidentState:
        nonlocal admitted, reason
        if dag_run and state.incident and state.incident.run == dag_run and not state.incident.on_probation:
            admitted, reason = True, AGAIN
        elif regression and state.incident == found:
            admitted, reason, state = True, regression, incidents.reopen(state, regression, dag_run)
        elif drifting:
            first = drifting[0]
            incident = Incident(domain=spec.domain, version=first.version, signals=list(first.signals), opened=now, run=dag_run)
            state, admitted, reason = incidents.triage(state, incident, now, cool_down)
        else:
            admitted, reason = False, "failing requests alone are no drift, and no new version is on probation"
        return state

    state = incident_store.update(spec.domain, decide)
    say(f"{spec.domain} ({', '.join(signals)}): {'admitted' if admitted else 'not admitted'}, {reason}.")
    taken = state.incident if admitted else None
    if taken and reason != AGAIN:
        notify.tell(
            Notice(event="drift", title=f"{spec.domain} drifts", text=f"{', '.join(signals)}: {reason}.", domain=spec.domain)
        )
    probation = taken.probation if taken else None
    return TriageResult(
        admitted=admitted,
        reason=reason,
        incident=taken.id if taken else "",
        signals=signals if probation else taken.signals if taken else [],
        rollback=probation is not None,
        approval=spec.approval.required or bool(probation and probation.needs_approval),
    )


def _regression(domain: str, probation: Probation, alerts: Sequence[DriftAlert]) -> str:
    """What shows that the version on probation is worse than the one before it; "" for nothing.

    Requests that fail count when that began after it went live. Answers with feedback count when they are right less often than
    those of the version before (the whole 95% interval of the difference), or, where too few of those had any, than at training.
    """
    from ..drift.statistics import difference

    for alert in alerts:
        if ERRORS in alert.signals and alert.since and alert.since.timestamp() > probation.since:
            return f"requests fail since version {probation.version} is live"
    if not any("performance" in a.signals and a.version == probation.version for a in alerts):
        return ""
    try:
        snapshot = ServerClient().drift(domain)
    except ServerRefusalError as error:
        if error.status == 404:  # nothing of the domain is live
            return ""
        raise
    live, judged = snapshot.live_accuracy.accuracy, snapshot.feedback
    if snapshot.version != probation.version or live is None:
        return ""
    now = f"version {probation.version} is right in {live:.0%} of {judged} answers with feedback"
    if probation.accuracy is not None and probation.judged >= MIN_JUDGED:
        right, before = round(live * judged), round(probation.accuracy * probation.judged)
        _, high = difference(right, judged, before, probation.judged)
        return f"{now}, version {probation.previous} was in {probation.accuracy:.0%} of {probation.judged}" if high < 0 else ""
    return f"{now}, and {snapshot.baseline.value:.0%} at training" if snapshot.accuracy_dropped else ""

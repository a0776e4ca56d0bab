"""triage: whether an alarm is acted on. The one place where alarms of all ways meet."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ..core.console import say
from ..drift import incidents
from ..server.client import ServerClient, ServerRefusalError
from ..spec import RunSpec

JUDGED = 20  # answers of the version before, below which the promise is what a new version is held to


def run(
    spec: RunSpec, breaches: Sequence[dict[str, Any]], cool_down: float = incidents.COOL_DOWN, dag_run: str = ""
) -> dict[str, Any]:
    """Open an incident where nothing speaks against it, or take the one on watch up again when its version is worse.

    Args:
        breaches: of the spec's domain: version, causes (worst first), since. The first says what the incident is about.
        cool_down: seconds after an incident before the next.
        dag_run: who asks, for the record; the same again is let in again, so that its retry finds what it had begun.
    Returns: admitted, reason, incident (its id), causes, rollback (whether it is about going back), approval (whether going
        back waits for a person).
    Raises: Transient when MLflow is away, or the server where it must be asked.
    """
    from ..drift import incident_store

    causes = list(dict.fromkeys(cause for breach in breaches for cause in breach["causes"]))
    drifting = [b for b in breaches if set(b["causes"]) != {"errors"}]
    now, found = time.time(), incident_store.load(spec.domain).incident
    why = _worse(spec, found.watch, breaches) if found and found.watch and found.quiet else ""
    let_in, reason = False, ""

    def decide(state: incidents.State) -> incidents.State:
        nonlocal let_in, reason
        if dag_run and state.incident and state.incident.run == dag_run and not state.incident.quiet:
            let_in, reason = True, "this run took it up before"
        elif why and state.incident == found:
            let_in, reason, state = True, why, incidents.undo(state, why, dag_run)
        elif drifting:
            first = drifting[0]
            alarm = incidents.Incident(spec.domain, first["version"], list(first["causes"]), now, dag_run)
            state, let_in, reason = incidents.admit(state, alarm, now, cool_down)
        else:
            let_in, reason = False, "failing requests alone are no drift, and no new version is on watch"
        return state

    state = incident_store.update(spec.domain, decide)
    say(f"{spec.domain} ({', '.join(causes)}): {'admitted' if let_in else 'not taken'}, {reason}.")
    taken = state.incident if let_in else None
    watched = taken.watch if taken else None
    return {
        "admitted": let_in,
        "reason": reason,
        "incident": taken.id if taken else "",
        "causes": causes if watched else taken.causes if taken else [],
        "rollback": watched is not None,
        "approval": spec.approval.required or bool(watched and watched.asks),
    }


def _worse(spec: RunSpec, watch: incidents.Watch, breaches: Sequence[dict[str, Any]]) -> str:
    """What shows that the version on watch is worse than the one before it; "" for nothing.

    Requests that fail count when that began after it went live. Judged answers count when they are right less often than those
    of the version before (the whole 95% interval of the difference), or, where too few of those were judged, than promised.
    """
    from ..drift.statistics import difference

    for breach in breaches:
        if "errors" in breach["causes"] and _seconds(breach["since"]) > watch.since:
            return f"requests fail since version {watch.version} is live"
    if not any("performance" in b["causes"] and b["version"] == watch.version for b in breaches):
        return ""
    try:
        seen = ServerClient().drift(spec.domain)
    except ServerRefusalError as error:
        if error.status == 404:  # nothing of the domain is live
            return ""
        raise
    if seen.version != watch.version or "accuracy" not in seen.values:
        return ""
    live, judged = seen.values["accuracy"], seen.feedback
    said = f"version {watch.version} is right in {live:.0%} of {judged} judged answers"
    if watch.accuracy is not None and watch.judged >= JUDGED:
        _, high = difference(round(live * judged), judged, round(watch.accuracy * watch.judged), watch.judged)
        return f"{said}, version {watch.before} was in {watch.accuracy:.0%} of {watch.judged}" if high < 0 else ""
    if seen.drift.get("performance", 0.0) > 1:
        return f"{said}, promised were {seen.baseline.value:.0%}"
    return ""


def _seconds(since: str) -> float:
    """Prometheus' time as seconds since 1970; 0 for none."""
    try:
        return datetime.fromisoformat(since).timestamp()
    except ValueError:
        return 0.0

"""close: what came of an incident, for the breaker and for the record."""

import time
from collections.abc import Mapping

from ..contracts.drift import Breaker, IncidentState, LiveAccuracy, Outcome, Probation
from ..contracts.notice import Notice
from ..contracts.stages import CloseResult
from ..core.console import say
from ..drift import incidents
from ..drift.thresholds import BREAKER_SECONDS
from ..ops import notify
from ..spec import RunSpec


def run(spec: RunSpec, states: Mapping[str, str | None], incident: str = "", live: LiveAccuracy | None = None) -> CloseResult:
    """End the domain's incident, or begin the probation of the version that came of it.

    Args:
        states: of the run's tasks, by name.
        incident: which one the run answered; "" for none (a person started it), or one that is closed since.
        live: of the version that saw the drift, from `suggest`.
    Raises: TransientError when MLflow is away.
    """
    from .. import tracking
    from ..drift import incident_store

    failed = sorted(name for name, state in states.items() if state in ("failed", "upstream_failed"))
    done = {name for name, state in states.items() if state == "success"}
    now, champion = time.time(), tracking.version_number(tracking.champion(spec.domain))
    outcome: Outcome = "failed" if failed else "recovered" if done & {"finetune", "rollback"} else "declined"
    begun = False

    breaker_was: Breaker = "closed"

    def ended(state: IncidentState) -> IncidentState:
        nonlocal outcome, begun, breaker_was
        breaker_was = incidents.breaker(state, now)
        found = state.incident
        if found is None or found.id != incident:
            return state
        if found.on_probation:  # a retry of what was written below
            begun = True
            return state
        if found.probation:  # the new version was worse, whatever was done about it
            outcome = "failed"
            what = f"back to version {found.probation.previous}" if "rollback" in done else "not gone back"
            return incidents.close(state, outcome, now, ", ".join([found.probation.regression, what, *failed]))
        if outcome == "recovered" and "finetune" in done and champion not in ("", found.version):
            begun = True
            before = (live or LiveAccuracy()).model_dump()
            return incidents.begin_probation(state, Probation(version=champion, previous=found.version, since=now, **before))
        return incidents.close(state, outcome, now, ", ".join(failed))

    state = incident_store.update(spec.domain, ended)
    breaker = incidents.breaker(state, now)
    if breaker == "open" and breaker_was != "open":
        hours = BREAKER_SECONDS / 3600
        text = f"{state.failures} re-adaptations failed in a row. Drift of {spec.domain} is not acted on for {hours:g} h, unless you reset it."
        notify.tell(Notice(event="breaker_open", title=f"{spec.domain}: the breaker is open", text=text, domain=spec.domain))
    result = CloseResult(outcome="probation" if begun else outcome, failed=failed, breaker=breaker, failures=state.failures)
    say(f"{spec.domain}: {result.outcome}; the breaker is {breaker} ({state.failures} failures in a row).")
    return result

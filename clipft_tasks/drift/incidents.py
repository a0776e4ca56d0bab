"""Triage of alerts: whether something is done about drift, and what came of it.

State is one small record per domain (kept with the registered model), changed by pure functions. An alert is admitted when no
incident is open for its domain, the last one is long enough ago, and the circuit breaker is not open. After repeated failures
the breaker opens; when its time is over it lets one attempt through (half-open), which closes or opens it again.

A version that came of an incident is on probation before the incident counts as recovered. When it turns out worse than what was
there before, the incident is reopened, to roll back, and counts as failed: once by itself, until something recovers; the
second time a person is asked, and the breaker opens.
"""

import math

from ..contracts.drift import Breaker, ClosedIncident, Incident, IncidentState, Outcome, Probation
from .thresholds import BREAKER_SECONDS, COOL_DOWN, LOST_AFTER, MAX_FAILURES, PROBATION

HISTORY = 20  # incidents that are remembered
NOTE = 300  # characters
AGREE = 60.0  # seconds that clocks of machines may differ by


def breaker(state: IncidentState, now: float) -> Breaker:
    """Whether the circuit breaker lets incidents through; half-open: one."""
    if not state.breaker_opened:
        return "closed"
    return "half-open" if _elapsed(state.breaker_opened, now) >= BREAKER_SECONDS else "open"


def _elapsed(then: float, now: float) -> float:
    """Seconds since then; any number where that is yet to come, since the clock was set back and nobody knows."""
    return now - then if then <= now + AGREE else math.inf


def triage(
    state: IncidentState, incident: Incident, now: float, cool_down: float = COOL_DOWN
) -> tuple[IncidentState, bool, str]:
    """Open an incident, or say why not: (new state, admitted, reason)."""
    state = expire_probation(state, now)
    current = state.incident
    if current and current.probation and current.on_probation:
        since = now - current.probation.since
        if since < cool_down:
            why = f"version {current.probation.version} went live {since / 60:.0f} minutes ago and is on probation"
            return state, False, why
        state, current = close(state, "recovered", current.probation.since), None  # the new alert is about something else
    if current and now - (current.probation.since if current.probation else current.opened) < LOST_AFTER:
        return state, False, f"an incident of version {current.version} ({', '.join(current.signals)}) is being handled"
    if current:
        state = close(state, "lost", now)
    allowed = breaker(state, now)
    if allowed == "open":
        hours = (BREAKER_SECONDS - (now - state.breaker_opened)) / 3600
        why = f"the breaker is open after {state.failures} failures; it tries again in {hours:.1f} h, or reset it"
        return state, False, why
    waited = _elapsed(state.last_closed, now)
    if waited < cool_down:
        why = f"the last incident ended {waited / 60:.0f} minutes ago; the next is taken after {cool_down / 60:.0f}"
        return state, False, why
    why = "half-open: one attempt" if allowed == "half-open" else "nothing else is going on"
    return state.model_copy(update={"incident": incident}), True, why


def begin_probation(state: IncidentState, probation: Probation) -> IncidentState:
    """A new champion came of the open incident, which stays open until its probation is over."""
    return _with_incident(state, probation=probation) if state.incident else state


def expire_probation(state: IncidentState, now: float) -> IncidentState:
    """The state as time left it: a version that came through its probation is what recovery means."""
    found = state.incident
    if found and found.probation and found.on_probation and now - found.probation.since >= PROBATION:
        return close(state, "recovered", found.probation.since)
    return state


def reopen(state: IncidentState, regression: str, run: str = "") -> IncidentState:
    """Reopen the incident on probation, because its version is worse: by itself once, then a person is asked."""
    found = state.incident
    if found is None or found.probation is None or not found.on_probation:
        return state
    worse = {"regression": regression[:NOTE], "needs_approval": state.rolled_back}
    reopened = _with_incident(state, run=run, probation=found.probation.model_copy(update=worse))
    return reopened.model_copy(update={"rolled_back": True})


def close(state: IncidentState, outcome: Outcome, now: float, note: str = "") -> IncidentState:
    """End the open incident.

    Args:
        outcome: recovered (a new champion, or an old one back), declined (a person or the suggestion said no), failed, lost.
    """
    found = state.incident
    if found is None:
        return state
    about = found.model_dump(exclude={"probation"})
    entry = ClosedIncident(**about, closed=now, outcome=outcome, note=note[:NOTE])
    if outcome == "recovered":
        failures, opened = 0, 0.0
    else:
        bad = outcome in ("failed", "lost")
        failures, opened = state.failures + bad, state.breaker_opened
        if bad and (failures >= MAX_FAILURES or opened or (found.probation and found.probation.needs_approval)):
            opened = now
    return IncidentState(
        failures=failures,
        rolled_back=state.rolled_back and outcome != "recovered",
        breaker_opened=opened,
        last_closed=now,
        history=[*state.history, entry][-HISTORY:],
    )


def reset(state: IncidentState) -> IncidentState:
    """Close the breaker by hand, forget the cool-down and end a probation; an incident that is being handled stays."""
    found = state.incident
    if found and found.probation and found.on_probation:
        state = close(state, "recovered", found.probation.since)
    return state.model_copy(update={"failures": 0, "rolled_back": False, "breaker_opened": 0.0, "last_closed": 0.0})


def _with_incident(state: IncidentState, **changes: object) -> IncidentState:
    assert state.incident
    return state.model_copy(update={"incident": state.incident.model_copy(update=changes)})

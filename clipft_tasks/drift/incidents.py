"""The one gate behind every alarm: whether something is done about drift, and what came of it.

State is one small JSON per domain (kept with the registered model), changed by pure functions. An alarm is admitted when no
incident is open for its domain, the last one is long enough ago, and the circuit breaker is not open. After repeated failures
the breaker opens; when its time is over it lets one attempt through (half-open), which closes or opens it again.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

COOL_DOWN = 3600.0  # seconds after an incident before the next
STALE = 48 * 3600.0  # an incident that nobody closed in this time is taken for lost
FAILURES = 3  # in a row that open the breaker
OPEN_FOR = 24 * 3600.0
HISTORY = 20


@dataclass(frozen=True)
class Incident:
    """Drift that somebody is doing something about.

    Attributes:
        causes: signals, worst first.
        version: that saw it.
    """

    domain: str
    version: str
    causes: list[str]
    opened: float
    run: str = ""

    @property
    def id(self) -> str:
        return f"{self.domain}-{self.opened:.3f}"


@dataclass(frozen=True)
class State:
    """What is known of a domain's incidents."""

    incident: Incident | None = None
    failures: int = 0
    breaker_opened: float = 0.0  # 0 while it is closed
    last_closed: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "State":
        known = {k: v for k, v in content.items() if k in cls.__dataclass_fields__}
        if incident := known.get("incident"):
            known["incident"] = Incident(**incident)
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def breaker(self, now: float) -> str:
        """closed, open or half-open."""
        if not self.breaker_opened:
            return "closed"
        return "half-open" if now - self.breaker_opened >= OPEN_FOR else "open"


def admit(state: State, alarm: Incident, now: float, cool_down: float = COOL_DOWN) -> tuple[State, bool, str]:
    """Let an alarm in, or say why not: (new state, admitted, reason)."""
    current = state.incident
    if current and now - current.opened < STALE:
        return state, False, f"an incident of version {current.version} ({', '.join(current.causes)}) is being handled"
    if current:
        state = close(state, "lost", now)
    breaker = state.breaker(now)
    if breaker == "open":
        hours = (OPEN_FOR - (now - state.breaker_opened)) / 3600
        return (
            state,
            False,
            f"the breaker is open after {state.failures} failures; it tries again in {hours:.1f} h, or reset it",
        )
    waited = now - state.last_closed
    if waited < cool_down:
        return (
            state,
            False,
            f"the last incident ended {waited / 60:.0f} minutes ago; the next is taken after {cool_down / 60:.0f}",
        )
    return (
        replace(state, incident=alarm),
        True,
        "half-open: one attempt" if breaker == "half-open" else "nothing else is going on",
    )


def close(state: State, outcome: str, now: float, note: str = "") -> State:
    """End the open incident.

    Args:
        outcome: recovered (a new champion, or an old one back), declined (a person or the suggestion said no), failed, lost.
    """
    if state.incident is None:
        return state
    entry = {**asdict(state.incident), "closed": now, "outcome": outcome, "note": note[:300]}
    bad = outcome in ("failed", "lost")
    failures = state.failures + 1 if bad else 0 if outcome == "recovered" else state.failures
    opened = (
        now
        if bad and (failures >= FAILURES or state.breaker_opened)
        else 0.0
        if outcome == "recovered"
        else state.breaker_opened
    )
    return State(None, failures, opened, now, [*state.history, entry][-HISTORY:])


def reset(state: State) -> State:
    """Close the breaker by hand and forget the cool-down; an open incident stays."""
    return replace(state, failures=0, breaker_opened=0.0, last_closed=0.0)

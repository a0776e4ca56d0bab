"""The one gate behind every alarm: whether something is done about drift, and what came of it.

State is one small JSON per domain (kept with the registered model), changed by pure functions. An alarm is admitted when no
incident is open for its domain, the last one is long enough ago, and the circuit breaker is not open. After repeated failures
the breaker opens; when its time is over it lets one attempt through (half-open), which closes or opens it again.

A version that came of an incident is on watch before the incident counts as recovered. When it turns out worse than what was
there before, the incident is taken up again, to go back, and counts as failed: once by itself, until something recovers; the
second time a person is asked, and the breaker opens.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

COOL_DOWN = 3600.0  # seconds after an incident before the next
STALE = 48 * 3600.0  # an incident that nobody closed in this time is taken for lost
FAILURES = 3  # in a row that open the breaker
OPEN_FOR = 24 * 3600.0
HISTORY = 20
WATCH = 24 * 3600.0  # seconds in which a new champion may turn out worse


@dataclass(frozen=True)
class Watch:
    """A new champion, watched beside the one before it.

    Attributes:
        version, before: the new champion, and the one to go back to.
        since: seconds since 1970.
        accuracy, judged: of the one before on the traffic that drifted, and over how many judged answers; None without any.
        worse: why it is gone back from; "" while nothing speaks for that.
        asks: whether a person is asked, because the one automatic rollback is spent.
    """

    version: str
    before: str
    since: float
    accuracy: float | None = None
    judged: int = 0
    worse: str = ""
    asks: bool = False


@dataclass(frozen=True)
class Incident:
    """Drift that somebody is doing something about.

    Attributes:
        causes: signals, worst first.
        version: that saw it.
        watch: the version that came of it, once there is one.
    """

    domain: str
    version: str
    causes: list[str]
    opened: float
    run: str = ""
    watch: Watch | None = None

    @property
    def id(self) -> str:
        return f"{self.domain}-{self.opened:.3f}"

    @property
    def quiet(self) -> bool:
        """Whether nothing is being done any more: a new version is live, and watched."""
        return self.watch is not None and not self.watch.worse


@dataclass(frozen=True)
class State:
    """What is known of a domain's incidents. `undone`: an automatic rollback happened, and nothing recovered since."""

    incident: Incident | None = None
    failures: int = 0
    undone: bool = False
    breaker_opened: float = 0.0  # 0 while it is closed
    last_closed: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "State":
        known = {k: v for k, v in content.items() if k in cls.__dataclass_fields__}
        if incident := known.get("incident"):
            watch = incident.get("watch")
            known["incident"] = Incident(**{**incident, "watch": Watch(**watch) if watch else None})
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
    state = settle(state, now)
    current = state.incident
    if current and current.watch and current.quiet:
        if now - current.watch.since < cool_down:
            minutes = (now - current.watch.since) / 60
            return state, False, f"version {current.watch.version} went live {minutes:.0f} minutes ago and is on watch"
        state, current = close(state, "recovered", current.watch.since), None  # a new alarm, about something else
    if current and now - (current.watch.since if current.watch else current.opened) < STALE:
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


def watch(state: State, watched: Watch) -> State:
    """A new champion came of the open incident, which stays open until the watch is over."""
    return replace(state, incident=replace(state.incident, watch=watched)) if state.incident else state


def settle(state: State, now: float) -> State:
    """The state as time left it: a version that was on watch for WATCH seconds is what recovery means."""
    found = state.incident
    if found and found.watch and found.quiet and now - found.watch.since >= WATCH:
        return close(state, "recovered", found.watch.since)
    return state


def undo(state: State, why: str, run: str = "") -> State:
    """Take the incident on watch up again, because its version is worse: by itself once, then a person is asked."""
    found = state.incident
    if found is None or found.watch is None or not found.quiet:
        return state
    watched = replace(found.watch, worse=why[:300], asks=state.undone)
    return replace(state, incident=replace(found, run=run, watch=watched), undone=True)


def close(state: State, outcome: str, now: float, note: str = "") -> State:
    """End the open incident.

    Args:
        outcome: recovered (a new champion, or an old one back), declined (a person or the suggestion said no), failed, lost.
    """
    found = state.incident
    if found is None:
        return state
    entry = {name: getattr(found, name) for name in ("domain", "version", "causes", "opened", "run")}
    entry |= {"closed": now, "outcome": outcome, "note": note[:300]}
    if outcome == "recovered":
        failures, opened = 0, 0.0
    else:
        bad = outcome in ("failed", "lost")
        failures, opened = state.failures + bad, state.breaker_opened
        if bad and (failures >= FAILURES or opened or (found.watch and found.watch.asks)):
            opened = now
    undone = state.undone and outcome != "recovered"
    return State(None, failures, undone, opened, now, [*state.history, entry][-HISTORY:])


def reset(state: State) -> State:
    """Close the breaker by hand, forget the cool-down and end a watch; an incident that is being handled stays."""
    if state.incident and state.incident.watch and state.incident.quiet:
        state = close(state, "recovered", state.incident.watch.since)
    return replace(state, failures=0, undone=False, breaker_opened=0.0, last_closed=0.0)

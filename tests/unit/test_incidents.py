"""The rules of incidents: one at a time per domain, a cool-down, a circuit breaker, probation of what came of it."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from fixtures.incidents import HOUR, MINUTE, NOW, TAG, incident, on_probation

from clipft_tasks.contracts.drift import IncidentState, Outcome
from clipft_tasks.drift import incidents
from clipft_tasks.drift.incidents import HISTORY
from clipft_tasks.drift.thresholds import BREAKER_SECONDS, COOL_DOWN, LOST_AFTER, MAX_FAILURES, PROBATION

# Scenarios ------------------------------------------------------------------------------------------------------------

Step = Callable[[IncidentState], IncidentState]


def alert(at: float, admitted: bool, *said: str, cool_down: float = COOL_DOWN, version: str = "1") -> Step:
    """An alert comes `at` seconds after NOW; `said` stands in the reason. One that is not admitted leaves the open incident."""

    def step(state: IncidentState) -> IncidentState:
        new, found, reason = incidents.triage(state, incident(NOW + at, version=version), NOW + at, cool_down)
        assert found is admitted and reason and all(word in reason for word in said), (at, reason)
        if admitted:
            assert new.incident == incident(NOW + at, version=version)
        return new

    return step


def refused(at: float, *said: str) -> Step:
    """An alert that changes nothing at all."""

    def step(state: IncidentState) -> IncidentState:
        new = alert(at, False, *said)(state)
        assert new == state
        return new

    return step


def ends(outcome: Outcome, at: float) -> Step:
    return lambda state: incidents.close(state, outcome, NOW + at)


def handled(outcome: Outcome, *times: float) -> Step:
    """An alert at each of these times is admitted, and ends ten minutes later."""

    def step(state: IncidentState) -> IncidentState:
        for at in times:
            state = ends(outcome, at + 10 * MINUTE)(alert(at, True)(state))
        return state

    return step


def shows(at: float = 0.0, breaker: str = "", open_version: str | None = None, outcomes: str = "", **fields: object) -> Step:
    """What is known at a time: the breaker, the open incident's version ("" for none), outcomes of the past, and fields."""

    def step(state: IncidentState) -> IncidentState:
        assert not breaker or incidents.breaker(state, NOW + at) == breaker
        assert open_version is None or (state.incident.version if state.incident else "") == open_version
        assert not outcomes or [past.outcome for past in state.history] == outcomes.split()
        assert {name: getattr(state, name) for name in fields} == fields
        return state

    return step


def at_time(at: float) -> Step:
    return lambda state: incidents.expire_probation(state, NOW + at)


FAILED = [2 * HOUR * n for n in range(MAX_FAILURES)]  # when the attempts began that opened the breaker
OPENED = FAILED[-1] + 10 * MINUTE
HALF_OPEN = OPENED + BREAKER_SECONDS
FAILED_OFTEN = [handled("failed", *FAILED), shows(OPENED, breaker="open", failures=MAX_FAILURES)]
AGAIN = HALF_OPEN + 10 * MINUTE  # when a half-open attempt ended

SCENARIOS: dict[str, list[Step]] = {
    "the first alert becomes the open incident": [alert(0, True), shows(open_version="1")],
    "while one is open nothing else is let in, and the reason names it": [
        alert(0, True, version="7"), refused(HOUR, "version 7", "image"),
    ],
    **{
        f"the next waits for the cool-down after one that was {outcome}": [
            handled(outcome, 0), refused(10 * MINUTE), refused(15 * MINUTE, "5 minutes ago", "60"),
            refused(10 * MINUTE + COOL_DOWN - 1), alert(10 * MINUTE + COOL_DOWN, True),
        ]
        for outcome in ("recovered", "declined", "failed")
    },
    "another cool-down can be asked for": [
        handled("declined", 0), alert(11 * MINUTE, False, cool_down=2 * MINUTE), alert(11 * MINUTE, True, cool_down=0),
    ],
    "an incident that nobody closed counts as lost": [
        alert(0, True, version="1"), refused(LOST_AFTER - 1), alert(LOST_AFTER, True, cool_down=0, version="2"),
        shows(open_version="2", failures=1, outcomes="lost"),
    ],
    "one that was lost is followed by a cool-down too": [
        alert(0, True), alert(LOST_AFTER, False), shows(open_version="", failures=1, outcomes="lost"),
        alert(LOST_AFTER + COOL_DOWN, True),
    ],
    "incidents lost in a row open the breaker too": [
        *(alert(n * LOST_AFTER, True, cool_down=0) for n in range(MAX_FAILURES)),
        alert(MAX_FAILURES * LOST_AFTER, False, "breaker", cool_down=0),
        shows(MAX_FAILURES * LOST_AFTER, breaker="open", open_version=""),
    ],
    "failures in a row open the breaker, which says when it tries again": [
        *FAILED_OFTEN, refused(OPENED + HOUR, f"{BREAKER_SECONDS / HOUR - 1:.1f} h", f"{MAX_FAILURES} failures"),
        refused(OPENED + COOL_DOWN + HOUR, "breaker"), refused(HALF_OPEN - 1, "breaker"),
    ],
    "a recovery between failures begins the count anew": [
        handled("failed", *FAILED[:-1]), handled("recovered", FAILED[-1]),
        handled("failed", *(8 * HOUR + at for at in FAILED[:-1])),
        shows(20 * HOUR, breaker="closed", failures=MAX_FAILURES - 1),
    ],
    "what a person declined is no failure": [
        handled("declined", *(2 * HOUR * n for n in range(2 * MAX_FAILURES))), shows(20 * HOUR, breaker="closed", failures=0),
    ],
    "when its time is over one attempt is let through, and no second with it": [
        *FAILED_OFTEN, shows(HALF_OPEN, breaker="half-open"), alert(HALF_OPEN, True, "half-open"), refused(HALF_OPEN + MINUTE),
    ],
    "an attempt that recovers closes the breaker": [
        *FAILED_OFTEN, handled("recovered", HALF_OPEN), shows(AGAIN, breaker="closed", failures=0),
        refused(AGAIN + MINUTE), alert(AGAIN + COOL_DOWN, True),
    ],
    "an attempt that fails opens the breaker for as long again": [
        *FAILED_OFTEN, handled("failed", HALF_OPEN), shows(AGAIN + BREAKER_SECONDS - 1, breaker="open", failures=MAX_FAILURES + 1),
        refused(AGAIN + BREAKER_SECONDS - 1), alert(AGAIN + BREAKER_SECONDS, True),
    ],
    "an attempt that was lost opens the breaker again": [
        *FAILED_OFTEN, alert(HALF_OPEN, True), alert(HALF_OPEN + LOST_AFTER, False, cool_down=0),
        shows(HALF_OPEN + LOST_AFTER, breaker="open"),
    ],
    "after an attempt that was declined nobody is asked again before the cool-down": [
        *FAILED_OFTEN, handled("declined", HALF_OPEN), refused(AGAIN + MINUTE), alert(AGAIN + COOL_DOWN, True),
    ],
    "a reset closes the breaker and forgets the cool-down": [
        *FAILED_OFTEN, incidents.reset, shows(OPENED, breaker="closed", failures=0, outcomes="failed " * MAX_FAILURES),
        alert(OPENED, True),
    ],
    "a reset leaves an open incident open": [
        handled("failed", 0), alert(2 * HOUR, True), incidents.reset, shows(open_version="1", failures=0), refused(2 * HOUR + MINUTE),
    ],
    **{
        f"closing as {outcome} without an open incident changes nothing": [
            *before, ends(outcome, 9 * BREAKER_SECONDS), shows(failures=failures, last_closed=last),
        ]
        for outcome in ("recovered", "declined", "failed", "lost")
        for before, failures, last in (([], 0, 0.0), (FAILED_OFTEN, MAX_FAILURES, NOW + OPENED))
    },
}  # fmt: skip


@pytest.mark.parametrize("what", SCENARIOS)
def test_an_alert_is_admitted_or_not(what):
    state = IncidentState()
    for step in SCENARIOS[what]:
        state = step(state)
        assert IncidentState.from_json(json.loads(json.dumps(state.to_json()))) == state


def live(state: IncidentState) -> IncidentState:
    """Version 2 came of an incident of version 1, and is live since NOW."""
    return on_probation(rolled_back=state.rolled_back)


def worse(state: IncidentState) -> IncidentState:
    """Version 2 turns out worse, in so many words."""
    new = incidents.reopen(state, "it is worse " * 200, "a run")
    assert len(json.dumps(new.to_json())) < TAG
    return new


def once_more(state: IncidentState) -> IncidentState:
    """What is not on probation cannot be reopened."""
    assert incidents.reopen(state, "once more", "another run") == state
    return state


def reopened(needs_approval: bool) -> Step:
    def step(state: IncidentState) -> IncidentState:
        found = state.incident
        assert found and not found.on_probation and found.run == "a run"
        assert found.probation.regression.startswith("it is worse") and found.probation.needs_approval is needs_approval
        return state

    return step


ON_PROBATION: dict[str, list[Step]] = {
    "a version that comes through its probation is what recovery means": [
        live, at_time(PROBATION - 1), shows(open_version="1"), at_time(PROBATION),
        shows(open_version="", failures=0, rolled_back=False, last_closed=NOW, outcomes="recovered"),
    ],
    "meanwhile the cool-down counts from when the version went live": [
        live, refused(COOL_DOWN - 1, "version 2", "60 minutes"), alert(COOL_DOWN, True, version="2"), shows(outcomes="recovered"),
    ],
    "what is reopened is being handled until it is closed or lost": [
        live, worse, reopened(False), at_time(2 * PROBATION), reopened(False), alert(MINUTE, False, cool_down=0),
        alert(LOST_AFTER - 1, False, cool_down=0), alert(LOST_AFTER, True, cool_down=0), shows(failures=2, outcomes="lost"),
    ],
    "one rollback goes by itself": [
        live, worse, ends("failed", HOUR), shows(HOUR, breaker="closed", failures=2, rolled_back=True),
    ],
    "until something recovers: the second asks, and opens the breaker": [
        live, worse, ends("failed", HOUR), live, worse, reopened(True), ends("failed", 2 * HOUR), shows(2 * HOUR, breaker="open"),
    ],
    "a recovery allows another rollback": [live, worse, ends("failed", HOUR), live, at_time(PROBATION), shows(rolled_back=False)],
    "a reset allows another rollback": [live, worse, ends("failed", HOUR), incidents.reset, shows(rolled_back=False)],
    "only what is on probation can be reopened": [once_more, alert(0, True), once_more, live, worse, once_more],
    "a reset ends a probation too": [live, incidents.reset, shows(open_version="", outcomes="recovered"), alert(MINUTE, True)],
    "a reset leaves what is being handled": [live, worse, incidents.reset, reopened(False)],
}  # fmt: skip


@pytest.mark.parametrize("what", ON_PROBATION)
def test_a_new_version_is_on_probation(what):
    state = IncidentState()
    for step in ON_PROBATION[what]:
        state = step(state)
        assert IncidentState.from_json(json.loads(json.dumps(state.to_json()))) == state


# The record -----------------------------------------------------------------------------------------------------------


def test_the_history_says_what_came_of_each_incident():
    state, _, _ = incidents.triage(IncidentState(), incident(NOW, "image", "text", version="4"), NOW)
    state = incidents.close(state, "failed", NOW + HOUR, "finetune")
    assert state.incident is None and state.last_closed == NOW + HOUR
    [past] = state.history
    assert (past.version, past.signals, past.opened, past.closed) == ("4", ["image", "text"], NOW, NOW + HOUR)
    assert (past.outcome, past.note) == ("failed", "finetune")


def test_the_history_keeps_the_newest():
    times = [2 * HOUR * n for n in range(HISTORY + 5)]
    state = handled("recovered", *times)(IncidentState())
    assert [past.opened for past in state.history] == [NOW + at for at in times[5:]]


def test_each_incident_has_a_name_of_its_own():
    one = incident(NOW, "image")
    assert len({one.id, incident(NOW + 1, "image").id, one.model_copy(update={"domain": "other"}).id}) == 3


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_the_rules_hold_and_the_state_survives_being_written_down(seed):
    rng = np.random.default_rng(seed)
    state, now, row = IncidentState(), NOW, 0
    for _ in range(300):
        now += float(rng.choice([MINUTE, HOUR, 5 * HOUR, BREAKER_SECONDS, LOST_AFTER]))
        before = state
        if state.incident is None or rng.random() < 0.4:
            state, admitted, reason = incidents.triage(state, incident(now, *rng.choice(["image", "text"], 1)), now)
            assert reason
            if admitted:
                assert before.incident is None or now - before.incident.opened >= LOST_AFTER
                assert incidents.breaker(before, now) != "open"
                assert state.incident == incident(now, *state.incident.signals)
        else:
            outcome = str(rng.choice(["failed", "failed", "recovered", "declined"]))
            state = incidents.close(state, outcome, now)
            row = row + 1 if outcome == "failed" else 0 if outcome == "recovered" else row
            assert state.incident is None and state.history[-1].outcome == outcome
            assert outcome != "recovered" or incidents.breaker(state, now) == "closed"
            assert row < MAX_FAILURES or outcome != "failed" or incidents.breaker(state, now) == "open"
        assert len(state.history) <= HISTORY
        assert IncidentState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_a_state_with_fields_that_a_newer_release_added_is_still_read():
    assert IncidentState.from_json(IncidentState(failures=2).to_json() | {"something": "new"}) == IncidentState(failures=2)


@pytest.mark.parametrize(
    "state", [IncidentState(last_closed=NOW + 24 * HOUR), IncidentState(breaker_opened=NOW + 24 * HOUR, failures=3)]
)
def test_a_clock_that_was_set_back_makes_nobody_wait_for_it(state):
    alert(0, True)(state)


def test_a_clock_that_differs_by_seconds_changes_nothing():
    _, admitted, reason = incidents.triage(IncidentState(last_closed=NOW + 5), incident(NOW), NOW)
    assert not admitted and "next is taken after" in reason

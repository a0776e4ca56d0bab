"""The rules of incidents: one at a time per domain, a cool-down, a circuit breaker, a watch on what came of it."""

import json

import numpy as np
import pytest
from fixtures.incidents import HOUR, MINUTE, NOW, TAG, incident, on_probation

from clipft_tasks.contracts.drift import Incident, IncidentState
from clipft_tasks.drift import incidents
from clipft_tasks.drift.incidents import HISTORY
from clipft_tasks.drift.thresholds import BREAKER_SECONDS, COOL_DOWN, LOST_AFTER, MAX_FAILURES, PROBATION


def handled(state: IncidentState, outcome: str, at: float) -> IncidentState:
    """An alarm at `at` is let in and ends ten minutes later."""
    state, admitted, reason = incidents.triage(state, incident(at), at)
    assert admitted, reason
    return incidents.close(state, outcome, at + 10 * MINUTE)


def failed_often() -> tuple[IncidentState, float]:
    """MAX_FAILURES failures in a row, two hours apart, and when the last one ended."""
    state, at = IncidentState(), NOW
    for _ in range(MAX_FAILURES):
        assert incidents.breaker(state, at) == "closed"
        state = handled(state, "failed", at)
        at += 2 * HOUR
    return state, at - 2 * HOUR + 10 * MINUTE


# One at a time ------------------------------------------------------------------------------------------------------


def test_the_first_alarm_is_let_in_and_becomes_the_open_incident():
    state, admitted, reason = incidents.triage(IncidentState(), incident(NOW, "image", "margin"), NOW)
    assert admitted and reason
    assert state.incident == Incident(domain="general", version="1", signals=["image", "margin"], opened=NOW)


def test_while_an_incident_is_open_nothing_else_is_let_in_and_the_reason_names_it():
    state, _, _ = incidents.triage(IncidentState(), incident(NOW, "image", "margin", version="7"), NOW)
    later, admitted, reason = incidents.triage(state, incident(NOW + HOUR, "text", version="8"), NOW + HOUR)
    assert not admitted and later == state
    assert "version 7" in reason and "image, margin" in reason


@pytest.mark.parametrize("outcome", ["recovered", "declined", "failed"])
def test_the_next_alarm_waits_for_the_cool_down_whatever_came_of_the_last(outcome):
    state = handled(IncidentState(), outcome, NOW)
    ended = state.last_closed
    for wait, expected in ((0, False), (COOL_DOWN - 1, False), (COOL_DOWN, True)):
        _, admitted, reason = incidents.triage(state, incident(ended + wait), ended + wait)
        assert admitted is expected, (wait, reason)
    _, admitted, reason = incidents.triage(state, incident(ended + 5 * MINUTE), ended + 5 * MINUTE)
    assert "5 minutes ago" in reason and "60" in reason


def test_another_cool_down_can_be_asked_for():
    state = handled(IncidentState(), "declined", NOW)
    soon = state.last_closed + MINUTE
    assert incidents.triage(state, incident(soon), soon, cool_down=0)[1]
    assert not incidents.triage(state, incident(soon), soon, cool_down=2 * MINUTE)[1]


def test_an_incident_that_nobody_closed_counts_as_lost():
    state, _, _ = incidents.triage(IncidentState(), incident(NOW, version="1"), NOW)
    assert not incidents.triage(state, incident(NOW + LOST_AFTER - 1), NOW + LOST_AFTER - 1)[1]
    late = NOW + LOST_AFTER
    state, admitted, _ = incidents.triage(state, incident(late, version="2"), late, cool_down=0)
    assert admitted and state.incident and state.incident.version == "2"
    assert state.failures == 1
    assert [(past.version, past.outcome) for past in state.history] == [("1", "lost")]


def test_incidents_lost_in_a_row_open_the_breaker_too():
    state, at = IncidentState(), NOW
    for _ in range(MAX_FAILURES):
        state, _, _ = incidents.triage(state, incident(at), at, cool_down=0)
        at += LOST_AFTER
    state, admitted, reason = incidents.triage(state, incident(at), at, cool_down=0)
    assert not admitted and "breaker" in reason
    assert incidents.breaker(state, at) == "open" and state.incident is None


# The breaker --------------------------------------------------------------------------------------------------------


def test_the_breaker_opens_after_failures_in_a_row_and_says_when_it_tries_again():
    state, ended = failed_often()
    assert (incidents.breaker(state, ended), state.failures) == ("open", MAX_FAILURES)
    for at in (ended + HOUR, ended + COOL_DOWN + HOUR, ended + BREAKER_SECONDS - 1):
        same, admitted, reason = incidents.triage(state, incident(at), at)
        assert not admitted and same == state and "breaker" in reason
    _, _, reason = incidents.triage(state, incident(ended + HOUR), ended + HOUR)
    assert f"{BREAKER_SECONDS / HOUR - 1:.1f} h" in reason and f"{MAX_FAILURES} failures" in reason


def test_a_recovery_between_failures_begins_the_count_anew():
    state, at = IncidentState(), NOW
    for outcome in ["failed"] * (MAX_FAILURES - 1) + ["recovered"] + ["failed"] * (MAX_FAILURES - 1):
        state = handled(state, outcome, at)
        at += 2 * HOUR
    assert (incidents.breaker(state, at), state.failures) == ("closed", MAX_FAILURES - 1)


def test_what_a_person_declined_is_no_failure():
    state, at = IncidentState(), NOW
    for _ in range(2 * MAX_FAILURES):
        state = handled(state, "declined", at)
        at += 2 * HOUR
    assert (incidents.breaker(state, at), state.failures) == ("closed", 0)


def test_when_its_time_is_over_one_attempt_is_let_through_and_no_second_beside_it():
    state, ended = failed_often()
    at = ended + BREAKER_SECONDS
    assert incidents.breaker(state, at) == "half-open"
    state, admitted, reason = incidents.triage(state, incident(at), at)
    assert admitted and "half-open" in reason
    assert not incidents.triage(state, incident(at + MINUTE), at + MINUTE)[1]


def test_an_attempt_that_recovers_closes_the_breaker():
    state, ended = failed_often()
    state = handled(state, "recovered", ended + BREAKER_SECONDS)
    at = state.last_closed
    assert (incidents.breaker(state, at), state.failures) == ("closed", 0)
    assert not incidents.triage(state, incident(at + MINUTE), at + MINUTE)[1]
    assert incidents.triage(state, incident(at + COOL_DOWN), at + COOL_DOWN)[1]


def test_an_attempt_that_fails_opens_the_breaker_for_as_long_again():
    state, ended = failed_often()
    state = handled(state, "failed", ended + BREAKER_SECONDS)
    at = state.last_closed
    assert (incidents.breaker(state, at), state.failures) == ("open", MAX_FAILURES + 1)
    assert incidents.breaker(state, at + BREAKER_SECONDS - 1) == "open"
    assert not incidents.triage(state, incident(at + BREAKER_SECONDS - 1), at + BREAKER_SECONDS - 1)[1]
    assert incidents.triage(state, incident(at + BREAKER_SECONDS), at + BREAKER_SECONDS)[1]


def test_an_attempt_that_was_lost_opens_the_breaker_again():
    state, ended = failed_often()
    at = ended + BREAKER_SECONDS
    state, _, _ = incidents.triage(state, incident(at), at)
    state, admitted, _ = incidents.triage(state, incident(at + LOST_AFTER), at + LOST_AFTER, cool_down=0)
    assert not admitted and incidents.breaker(state, at + LOST_AFTER) == "open"


def test_after_an_attempt_that_was_declined_nobody_is_asked_again_before_the_cool_down():
    state, ended = failed_often()
    state = handled(state, "declined", ended + BREAKER_SECONDS)
    at = state.last_closed
    _, admitted, _ = incidents.triage(state, incident(at + MINUTE), at + MINUTE)
    assert not admitted
    assert incidents.triage(state, incident(at + COOL_DOWN), at + COOL_DOWN)[1]


def test_a_reset_closes_the_breaker_and_forgets_the_cool_down():
    state, ended = failed_often()
    state = incidents.reset(state)
    assert (incidents.breaker(state, ended), state.failures, len(state.history)) == ("closed", 0, MAX_FAILURES)
    assert incidents.triage(state, incident(ended), ended)[1]


def test_a_reset_leaves_an_open_incident_open():
    state, _, _ = incidents.triage(IncidentState(failures=2), incident(), NOW)
    state = incidents.reset(state)
    assert state.incident == incident() and state.failures == 0
    assert not incidents.triage(state, incident(), NOW + MINUTE)[1]


# The record ---------------------------------------------------------------------------------------------------------


def test_the_history_says_what_came_of_each_incident():
    state, _, _ = incidents.triage(IncidentState(), incident(NOW, "image", "text", version="4"), NOW)
    state = incidents.close(state, "failed", NOW + HOUR, "finetune")
    assert state.incident is None and state.last_closed == NOW + HOUR
    [past] = state.history
    expected = {"version": "4", "signals": ["image", "text"], "opened": NOW, "closed": NOW + HOUR}
    assert {name: getattr(past, name) for name in expected} == expected
    assert (past.outcome, past.note) == ("failed", "finetune")


@pytest.mark.parametrize("outcome", ["recovered", "declined", "failed", "lost"])
def test_closing_without_an_open_incident_changes_nothing(outcome):
    for state in (IncidentState(), failed_often()[0]):
        assert incidents.close(state, outcome, NOW + 9 * BREAKER_SECONDS, "a note") == state


def test_the_history_keeps_the_newest():
    state, at = IncidentState(), NOW
    for _ in range(HISTORY + 5):
        state = handled(state, "recovered", at)
        at += 2 * HOUR
    assert len(state.history) == HISTORY
    assert state.history[-1].opened == at - 2 * HOUR and state.history[0].opened == NOW + 5 * 2 * HOUR


def test_each_incident_has_a_name_of_its_own():
    assert incident(NOW, "image").id != incident(NOW + 1, "image").id
    assert incident(NOW, "image").model_copy(update={"domain": "other"}).id != incident(NOW, "image").id


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


def test_a_state_with_fields_of_a_newer_release_is_still_read():
    content = IncidentState(failures=2).to_json() | {"something": "new"}
    assert IncidentState.from_json(content) == IncidentState(failures=2)
    assert IncidentState.from_json({}) == IncidentState()


# Probation -----------------------------------------------------------------------------------------------------------


def test_a_version_that_survives_its_watch_is_what_recovery_means():
    state = on_probation()
    assert incidents.expire_probation(state, NOW + PROBATION - 1) == state and state.incident and state.incident.on_probation
    done = incidents.expire_probation(state, NOW + PROBATION)
    assert done.incident is None and (done.failures, done.rolled_back) == (0, False)
    assert (done.last_closed, done.history[-1].outcome) == (NOW, "recovered")


def test_during_the_watch_the_cool_down_counts_from_when_the_version_went_live():
    state = on_probation()
    soon, admitted, reason = incidents.triage(state, incident(NOW + COOL_DOWN - 1), NOW + COOL_DOWN - 1)
    assert not admitted and soon == state and "version 2" in reason and "60 minutes" in reason
    later, admitted, _ = incidents.triage(state, incident(NOW + COOL_DOWN, version="2"), NOW + COOL_DOWN)
    assert admitted and later.incident.version == "2" and later.history[-1].outcome == "recovered"


def test_what_is_taken_up_again_is_being_handled_until_it_is_closed_or_lost():
    state = incidents.reopen(on_probation(), "it is worse", "a run")
    found = state.incident
    assert (
        found
        and not found.on_probation
        and (found.probation.regression, found.probation.needs_approval, found.run) == ("it is worse", False, "a run")
    )
    assert incidents.expire_probation(state, NOW + 2 * PROBATION) == state
    for at in (NOW + MINUTE, NOW + LOST_AFTER - 1):
        assert not incidents.triage(state, incident(at), at, cool_down=0)[1]
    gone, admitted, _ = incidents.triage(state, incident(NOW + LOST_AFTER), NOW + LOST_AFTER, cool_down=0)
    assert admitted and (gone.history[-1].outcome, gone.failures) == ("lost", 2)


def test_one_rollback_goes_by_itself_until_something_recovers():
    first = incidents.close(incidents.reopen(on_probation(), "worse"), "failed", NOW + HOUR)
    assert first.rolled_back and (first.failures, incidents.breaker(first, NOW + HOUR)) == (2, "closed")
    second = incidents.reopen(on_probation(rolled_back=True), "worse")
    assert second.incident.probation.needs_approval
    assert incidents.breaker(incidents.close(second, "failed", NOW + HOUR), NOW + HOUR) == "open"
    assert not incidents.expire_probation(on_probation(rolled_back=True), NOW + PROBATION).rolled_back
    assert not incidents.reset(first).rolled_back


def test_only_what_is_on_watch_can_be_taken_up_again():
    opened, _, _ = incidents.triage(IncidentState(), incident(), NOW)
    for state in (IncidentState(), opened, incidents.reopen(on_probation(), "worse")):
        assert incidents.reopen(state, "once more", "another run") == state


def test_a_reset_ends_a_watch_too():
    state = incidents.reset(on_probation())
    assert state.incident is None and state.history[-1].outcome == "recovered"
    assert incidents.triage(state, incident(NOW + MINUTE), NOW + MINUTE)[1]
    handled_now = incidents.reopen(on_probation(), "worse")
    assert incidents.reset(handled_now).incident == handled_now.incident


def test_a_watch_survives_being_written_down():
    for state in (on_probation(), incidents.reopen(on_probation(), "worse " * 200, "run")):
        assert IncidentState.from_json(json.loads(json.dumps(state.to_json()))) == state
        assert len(json.dumps(state.to_json())) < TAG

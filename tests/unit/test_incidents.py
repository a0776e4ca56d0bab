"""The rules of incidents: one at a time per domain, a cool-down, a circuit breaker, a watch on what came of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures.incidents import HOUR, MINUTE, NOW, TAG, alarm, watched

from clipft_tasks.drift import incidents
from clipft_tasks.drift.incidents import COOL_DOWN, FAILURES, HISTORY, OPEN_FOR, STALE, WATCH, Incident, State


def handled(state: State, outcome: str, at: float) -> State:
    """An alarm at `at` is let in and ends ten minutes later."""
    state, admitted, reason = incidents.admit(state, alarm(at), at)
    assert admitted, reason
    return incidents.close(state, outcome, at + 10 * MINUTE)


def failed_often() -> tuple[State, float]:
    """FAILURES failures in a row, two hours apart, and when the last one ended."""
    state, at = State(), NOW
    for _ in range(FAILURES):
        assert state.breaker(at) == "closed"
        state = handled(state, "failed", at)
        at += 2 * HOUR
    return state, at - 2 * HOUR + 10 * MINUTE


# One at a time ------------------------------------------------------------------------------------------------------


def test_the_first_alarm_is_let_in_and_becomes_the_open_incident():
    state, admitted, reason = incidents.admit(State(), alarm(NOW, "image", "margin"), NOW)
    assert admitted and reason
    assert state.incident == Incident("general", "1", ["image", "margin"], NOW)


def test_while_an_incident_is_open_nothing_else_is_let_in_and_the_reason_names_it():
    state, _, _ = incidents.admit(State(), alarm(NOW, "image", "margin", version="7"), NOW)
    later, admitted, reason = incidents.admit(state, alarm(NOW + HOUR, "text", version="8"), NOW + HOUR)
    assert not admitted and later == state
    assert "version 7" in reason and "image, margin" in reason


@pytest.mark.parametrize("outcome", ["recovered", "declined", "failed"])
def test_the_next_alarm_waits_for_the_cool_down_whatever_came_of_the_last(outcome):
    state = handled(State(), outcome, NOW)
    ended = state.last_closed
    for wait, expected in ((0, False), (COOL_DOWN - 1, False), (COOL_DOWN, True)):
        _, admitted, reason = incidents.admit(state, alarm(ended + wait), ended + wait)
        assert admitted is expected, (wait, reason)
    _, admitted, reason = incidents.admit(state, alarm(ended + 5 * MINUTE), ended + 5 * MINUTE)
    assert "5 minutes ago" in reason and "60" in reason


def test_another_cool_down_can_be_asked_for():
    state = handled(State(), "declined", NOW)
    soon = state.last_closed + MINUTE
    assert incidents.admit(state, alarm(soon), soon, cool_down=0)[1]
    assert not incidents.admit(state, alarm(soon), soon, cool_down=2 * MINUTE)[1]


def test_an_incident_that_nobody_closed_counts_as_lost():
    state, _, _ = incidents.admit(State(), alarm(NOW, version="1"), NOW)
    assert not incidents.admit(state, alarm(NOW + STALE - 1), NOW + STALE - 1)[1]
    late = NOW + STALE
    state, admitted, _ = incidents.admit(state, alarm(late, version="2"), late, cool_down=0)
    assert admitted and state.incident and state.incident.version == "2"
    assert state.failures == 1
    assert [(past["version"], past["outcome"]) for past in state.history] == [("1", "lost")]


def test_incidents_lost_in_a_row_open_the_breaker_too():
    state, at = State(), NOW
    for _ in range(FAILURES):
        state, _, _ = incidents.admit(state, alarm(at), at, cool_down=0)
        at += STALE
    state, admitted, reason = incidents.admit(state, alarm(at), at, cool_down=0)
    assert not admitted and "breaker" in reason
    assert state.breaker(at) == "open" and state.incident is None


# The breaker --------------------------------------------------------------------------------------------------------


def test_the_breaker_opens_after_failures_in_a_row_and_says_when_it_tries_again():
    state, ended = failed_often()
    assert (state.breaker(ended), state.failures) == ("open", FAILURES)
    for at in (ended + HOUR, ended + COOL_DOWN + HOUR, ended + OPEN_FOR - 1):
        same, admitted, reason = incidents.admit(state, alarm(at), at)
        assert not admitted and same == state and "breaker" in reason
    _, _, reason = incidents.admit(state, alarm(ended + HOUR), ended + HOUR)
    assert f"{OPEN_FOR / HOUR - 1:.1f} h" in reason and f"{FAILURES} failures" in reason


def test_a_recovery_between_failures_begins_the_count_anew():
    state, at = State(), NOW
    for outcome in ["failed"] * (FAILURES - 1) + ["recovered"] + ["failed"] * (FAILURES - 1):
        state = handled(state, outcome, at)
        at += 2 * HOUR
    assert (state.breaker(at), state.failures) == ("closed", FAILURES - 1)


def test_what_a_person_declined_is_no_failure():
    state, at = State(), NOW
    for _ in range(2 * FAILURES):
        state = handled(state, "declined", at)
        at += 2 * HOUR
    assert (state.breaker(at), state.failures) == ("closed", 0)


def test_when_its_time_is_over_one_attempt_is_let_through_and_no_second_beside_it():
    state, ended = failed_often()
    at = ended + OPEN_FOR
    assert state.breaker(at) == "half-open"
    state, admitted, reason = incidents.admit(state, alarm(at), at)
    assert admitted and "half-open" in reason
    assert not incidents.admit(state, alarm(at + MINUTE), at + MINUTE)[1]


def test_an_attempt_that_recovers_closes_the_breaker():
    state, ended = failed_often()
    state = handled(state, "recovered", ended + OPEN_FOR)
    at = state.last_closed
    assert (state.breaker(at), state.failures) == ("closed", 0)
    assert not incidents.admit(state, alarm(at + MINUTE), at + MINUTE)[1]
    assert incidents.admit(state, alarm(at + COOL_DOWN), at + COOL_DOWN)[1]


def test_an_attempt_that_fails_opens_the_breaker_for_as_long_again():
    state, ended = failed_often()
    state = handled(state, "failed", ended + OPEN_FOR)
    at = state.last_closed
    assert (state.breaker(at), state.failures) == ("open", FAILURES + 1)
    assert state.breaker(at + OPEN_FOR - 1) == "open"
    assert not incidents.admit(state, alarm(at + OPEN_FOR - 1), at + OPEN_FOR - 1)[1]
    assert incidents.admit(state, alarm(at + OPEN_FOR), at + OPEN_FOR)[1]


def test_an_attempt_that_was_lost_opens_the_breaker_again():
    state, ended = failed_often()
    at = ended + OPEN_FOR
    state, _, _ = incidents.admit(state, alarm(at), at)
    state, admitted, _ = incidents.admit(state, alarm(at + STALE), at + STALE, cool_down=0)
    assert not admitted and state.breaker(at + STALE) == "open"


def test_after_an_attempt_that_was_declined_nobody_is_asked_again_before_the_cool_down():
    state, ended = failed_often()
    state = handled(state, "declined", ended + OPEN_FOR)
    at = state.last_closed
    _, admitted, _ = incidents.admit(state, alarm(at + MINUTE), at + MINUTE)
    assert not admitted
    assert incidents.admit(state, alarm(at + COOL_DOWN), at + COOL_DOWN)[1]


def test_a_reset_closes_the_breaker_and_forgets_the_cool_down():
    state, ended = failed_often()
    state = incidents.reset(state)
    assert (state.breaker(ended), state.failures, len(state.history)) == ("closed", 0, FAILURES)
    assert incidents.admit(state, alarm(ended), ended)[1]


def test_a_reset_leaves_an_open_incident_open():
    state, _, _ = incidents.admit(State(failures=2), alarm(), NOW)
    state = incidents.reset(state)
    assert state.incident == alarm() and state.failures == 0
    assert not incidents.admit(state, alarm(), NOW + MINUTE)[1]


# The record ---------------------------------------------------------------------------------------------------------


def test_the_history_says_what_came_of_each_incident():
    state, _, _ = incidents.admit(State(), alarm(NOW, "image", "text", version="4"), NOW)
    state = incidents.close(state, "failed", NOW + HOUR, "finetune")
    assert state.incident is None and state.last_closed == NOW + HOUR
    [past] = state.history
    expected = {"version": "4", "causes": ["image", "text"], "opened": NOW, "closed": NOW + HOUR}
    assert {name: past[name] for name in expected} == expected
    assert (past["outcome"], past["note"]) == ("failed", "finetune")


@pytest.mark.parametrize("outcome", ["recovered", "declined", "failed", "lost"])
def test_closing_without_an_open_incident_changes_nothing(outcome):
    for state in (State(), failed_often()[0]):
        assert incidents.close(state, outcome, NOW + 9 * OPEN_FOR, "a note") == state


def test_the_history_keeps_the_newest():
    state, at = State(), NOW
    for _ in range(HISTORY + 5):
        state = handled(state, "recovered", at)
        at += 2 * HOUR
    assert len(state.history) == HISTORY
    assert state.history[-1]["opened"] == at - 2 * HOUR and state.history[0]["opened"] == NOW + 5 * 2 * HOUR


def test_each_incident_has_a_name_of_its_own():
    assert alarm(NOW, "image").id != alarm(NOW + 1, "image").id
    assert replace(alarm(NOW, "image"), domain="other").id != alarm(NOW, "image").id


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_the_rules_hold_and_the_state_survives_being_written_down(seed):
    rng = np.random.default_rng(seed)
    state, now, row = State(), NOW, 0
    for _ in range(300):
        now += float(rng.choice([MINUTE, HOUR, 5 * HOUR, OPEN_FOR, STALE]))
        before = state
        if state.incident is None or rng.random() < 0.4:
            state, admitted, reason = incidents.admit(state, alarm(now, *rng.choice(["image", "text"], 1)), now)
            assert reason
            if admitted:
                assert before.incident is None or now - before.incident.opened >= STALE
                assert before.breaker(now) != "open"
                assert state.incident == alarm(now, *state.incident.causes)
        else:
            outcome = str(rng.choice(["failed", "failed", "recovered", "declined"]))
            state = incidents.close(state, outcome, now)
            row = row + 1 if outcome == "failed" else 0 if outcome == "recovered" else row
            assert state.incident is None and state.history[-1]["outcome"] == outcome
            assert outcome != "recovered" or state.breaker(now) == "closed"
            assert row < FAILURES or outcome != "failed" or state.breaker(now) == "open"
        assert len(state.history) <= HISTORY
        assert State.of(json.loads(json.dumps(state.to_dict()))) == state


def test_a_state_with_fields_of_a_newer_release_is_still_read():
    content = State(failures=2).to_dict() | {"something": "new"}
    assert State.of(content) == State(failures=2)
    assert State.of({}) == State()


# On watch -----------------------------------------------------------------------------------------------------------


def test_a_version_that_survives_its_watch_is_what_recovery_means():
    state = watched()
    assert incidents.settle(state, NOW + WATCH - 1) == state and state.incident and state.incident.quiet
    done = incidents.settle(state, NOW + WATCH)
    assert done.incident is None and (done.failures, done.undone) == (0, False)
    assert (done.last_closed, done.history[-1]["outcome"]) == (NOW, "recovered")


def test_during_the_watch_the_cool_down_counts_from_when_the_version_went_live():
    state = watched()
    soon, admitted, reason = incidents.admit(state, alarm(NOW + COOL_DOWN - 1), NOW + COOL_DOWN - 1)
    assert not admitted and soon == state and "version 2" in reason and "60 minutes" in reason
    later, admitted, _ = incidents.admit(state, alarm(NOW + COOL_DOWN, version="2"), NOW + COOL_DOWN)
    assert admitted and later.incident.version == "2" and later.history[-1]["outcome"] == "recovered"


def test_what_is_taken_up_again_is_being_handled_until_it_is_closed_or_lost():
    state = incidents.undo(watched(), "it is worse", "a run")
    found = state.incident
    assert found and not found.quiet and (found.watch.worse, found.watch.asks, found.run) == ("it is worse", False, "a run")
    assert incidents.settle(state, NOW + 2 * WATCH) == state
    for at in (NOW + MINUTE, NOW + STALE - 1):
        assert not incidents.admit(state, alarm(at), at, cool_down=0)[1]
    gone, admitted, _ = incidents.admit(state, alarm(NOW + STALE), NOW + STALE, cool_down=0)
    assert admitted and (gone.history[-1]["outcome"], gone.failures) == ("lost", 2)


def test_one_rollback_goes_by_itself_until_something_recovers():
    first = incidents.close(incidents.undo(watched(), "worse"), "failed", NOW + HOUR)
    assert first.undone and (first.failures, first.breaker(NOW + HOUR)) == (2, "closed")
    second = incidents.undo(watched(undone=True), "worse")
    assert second.incident.watch.asks
    assert incidents.close(second, "failed", NOW + HOUR).breaker(NOW + HOUR) == "open"
    assert not incidents.settle(watched(undone=True), NOW + WATCH).undone
    assert not incidents.reset(first).undone


def test_only_what_is_on_watch_can_be_taken_up_again():
    opened, _, _ = incidents.admit(State(), alarm(), NOW)
    for state in (State(), opened, incidents.undo(watched(), "worse")):
        assert incidents.undo(state, "once more", "another run") == state


def test_a_reset_ends_a_watch_too():
    state = incidents.reset(watched())
    assert state.incident is None and state.history[-1]["outcome"] == "recovered"
    assert incidents.admit(state, alarm(NOW + MINUTE), NOW + MINUTE)[1]
    handled_now = incidents.undo(watched(), "worse")
    assert incidents.reset(handled_now).incident == handled_now.incident


def test_a_watch_survives_being_written_down():
    for state in (watched(), incidents.undo(watched(), "worse " * 200, "run")):
        assert State.of(json.loads(json.dumps(state.to_dict()))) == state
        assert len(json.dumps(state.to_dict())) < TAG

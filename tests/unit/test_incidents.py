"""Incidents: one at a time per domain, a cool-down, a circuit breaker, and a record that fits where it is kept."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipft_tasks import tracking
from clipft_tasks.drift import incidents
from clipft_tasks.drift.incidents import COOL_DOWN, FAILURES, HISTORY, OPEN_FOR, STALE, WATCH, Incident, State, Watch
from clipft_tasks.settings import settings
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import admit, close

NOW = 1_800_000_000.0
MINUTE, HOUR = 60.0, 3600.0
TAG = 5000  # characters that a tag of MLflow's registry holds


def alarm(at: float = NOW, *causes: str, version: str = "1") -> Incident:
    return Incident("general", version, list(causes or ("image",)), at)


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


# With the registry --------------------------------------------------------------------------------------------------

DOMAINS = ("general", "industrial")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry with a model for each of DOMAINS and nothing else, made once."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPFT_HOME", str(folder))
        patch.delenv("CLIPFT_MLFLOW_URI", raising=False)
        settings.cache_clear()
        for domain in DOMAINS:
            tracking.client().create_registered_model(tracking.model_name(domain))
    settings.cache_clear()
    yield folder / "mlflow" / "mlflow.db"


@pytest.fixture
def registry(home: Path, empty: Path) -> Path:
    (home / "mlflow").mkdir(parents=True)
    shutil.copy(empty, home / "mlflow")
    return home


def breach(domain: str = "general", *causes: str, version: str = "1") -> dict[str, Any]:
    return {"domain": domain, "version": version, "causes": list(causes or ("image",)), "ratio": 2.0, "since": "", "source": ""}


def spec(domain: str = "general", **more: Any) -> RunSpec:
    return RunSpec.from_flat({"domain": domain, **more})


def tell(*breaches: dict[str, Any], run: str = "", cool_down: float = COOL_DOWN) -> list[dict[str, Any]]:
    """What `admit` lets in of the breaches that a run of clipft_drift_watch sees, domain by domain."""
    domains = [d for d in DOMAINS if any(b["domain"] == d for b in breaches)]
    said = [(d, admit.run(spec(d), [b for b in breaches if b["domain"] == d], cool_down, run)) for d in domains]
    return [{"domain": d, **found} for d, found in said if found["admitted"]]


def later(domain: str, seconds: float) -> None:
    """Let time go by for a domain."""
    state = tracking.incidents(domain)
    at = {name: max(0.0, getattr(state, name) - seconds) for name in ("breaker_opened", "last_closed")}
    opened = state.incident
    if opened:
        watch = replace(opened.watch, since=opened.watch.since - seconds) if opened.watch else None
        opened = replace(opened, opened=opened.opened - seconds, watch=watch)
    tracking.keep_incidents(domain, replace(state, incident=opened, **at))


def ended(domain: str, states: dict[str, str | None], live: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `close` says when the run that answers the open incident ends."""
    state = tracking.incidents(domain)
    return close.run(spec(domain), states, state.incident.id if state.incident else "", live)


FAILED = {"suggest": "success", "finetune": "failed"}
RECOVERED = {"suggest": "success", "finetune": "success"}


def test_an_admitted_breach_is_handed_on_with_its_causes_and_remembered(registry):
    [found] = tell(breach("general", "image", "margin"), run="a")
    kept = tracking.incidents("general").incident
    assert kept and (found["causes"], found["incident"]) == (["image", "margin"], kept.id)
    assert found["reason"] and found["rollback"] is False and found["approval"] is False
    assert (kept.domain, kept.version, kept.causes, kept.run) == ("general", "1", ["image", "margin"], "a")


def test_two_domains_are_handled_beside_each_other(registry):
    both = [breach("general"), breach("industrial", "text")]
    assert [b["domain"] for b in tell(*both, run="a")] == ["general", "industrial"]
    assert tell(*both, run="b") == []
    ended("general", FAILED)
    assert tracking.incidents("industrial").incident and tracking.incidents("industrial").failures == 0
    assert tracking.incidents("general").incident is None and tracking.incidents("general").failures == 1


def test_one_domain_that_is_busy_does_not_hold_another_up(registry):
    tell(breach("general"), run="a")
    assert [b["domain"] for b in tell(breach("general"), breach("industrial"), run="b")] == ["industrial"]


def test_the_same_run_is_admitted_again_when_it_is_tried_again(registry):
    [first] = tell(breach("general", "image"), run="a")
    [again] = tell(breach("general", "image"), run="a")
    assert first | {"reason": ""} == again | {"reason": ""}
    assert tell(breach("general", "image"), run="b") == []
    assert tell(breach("general", "image")) == []


def test_nobody_in_particular_is_not_let_in_twice(registry):
    assert len(tell(breach())) == 1
    assert tell(breach()) == []


@pytest.mark.parametrize("run", ["a", ""])
def test_each_domain_is_admitted_once_although_two_of_its_versions_drift(registry, run):
    versions = [breach("general", "image", version="1"), breach("general", "text", version="2")]
    [found] = tell(*versions, run=run)
    assert found["causes"] == ["image"]
    assert len(tell(*versions, run=run)) == (1 if run else 0)


def test_why_an_alarm_is_not_taken_is_said(registry, capsys):
    tell(breach("general", "image"), run="a")
    tell(breach("general", "text"), run="b")
    said = "".join(capsys.readouterr())
    assert "general (image): admitted" in said and "general (text): not taken" in said


OUTCOMES: list[tuple[dict[str, str | None], str]] = [
    ({"suggest": "failed", "approve": "upstream_failed", "finetune": "upstream_failed", "close": "running"}, "failed"),
    ({"suggest": "success", "dataset": "failed", "finetune": "upstream_failed", "rollback": "skipped"}, "failed"),
    ({"suggest": "success", "rollback": "failed", "finetune": "skipped"}, "failed"),
    ({"suggest": "success", "finetune": "upstream_failed"}, "failed"),
    ({"suggest": "success", "dataset": "success", "finetune": "success", "rollback": "skipped"}, "recovered"),
    ({"suggest": "success", "rollback": "success", "finetune": "skipped", "close": "running"}, "recovered"),
    (
        {"suggest": "success", "approve": "success", "choose": "skipped", "finetune": "skipped", "rollback": "skipped"},
        "declined",
    ),
    ({"suggest": "success", "nothing": "success", "finetune": "skipped", "rollback": "skipped"}, "declined"),
    ({"suggest": "success", "finetune": None, "rollback": None}, "declined"),
    ({}, "declined"),
]


@pytest.mark.parametrize(("states", "outcome"), OUTCOMES)
def test_the_outcome_follows_from_what_became_of_the_tasks(registry, states, outcome):
    tell(breach())
    failed = sorted(name for name, state in states.items() if state in ("failed", "upstream_failed"))
    told = ended("general", states)
    assert (told["outcome"], told["failed"]) == (outcome, failed)
    state = tracking.incidents("general")
    assert state.incident is None and state.failures == (outcome == "failed")
    assert state.history[-1]["outcome"] == outcome
    assert [name for name in sorted(states) if name in state.history[-1]["note"]] == failed


def test_a_run_that_answers_no_incident_or_another_one_closes_none(registry):
    tell(breach())
    for other in ("", "general-1.000"):
        close.run(spec("general"), RECOVERED, other)
        assert tracking.incidents("general").incident


@pytest.mark.parametrize("states", [FAILED, RECOVERED, {}])
def test_closing_a_domain_without_an_incident_leaves_its_record_as_it_was(registry, states):
    for _ in range(2):
        tell(breach(), cool_down=0)
        ended("general", FAILED)
    before = tracking.incidents("general")
    assert ended("general", states)["failures"] == 2
    assert tracking.incidents("general") == before
    assert ended("industrial", states)["breaker"] == "closed"
    assert tracking.incidents("industrial") == State()


def test_the_breaker_opens_tries_once_and_closes_on_recovery(registry):
    for number in range(FAILURES):
        assert len(tell(breach())) == 1
        assert tell(breach()) == []  # one at a time
        told = ended("general", FAILED)
        assert (told["breaker"], told["failures"]) == ("open" if number + 1 == FAILURES else "closed", number + 1)
        assert tell(breach()) == []  # the cool-down
        later("general", COOL_DOWN + MINUTE)
    assert tell(breach()) == []
    later("general", OPEN_FOR)
    assert len(tell(breach())) == 1
    assert ended("general", FAILED)["breaker"] == "open"
    later("general", OPEN_FOR + MINUTE)
    assert len(tell(breach())) == 1 and tell(breach()) == []
    told = ended("general", RECOVERED)
    assert (told["outcome"], told["breaker"], told["failures"]) == ("recovered", "closed", 0)
    later("general", COOL_DOWN + MINUTE)
    assert len(tell(breach())) == 1


def test_a_run_that_vanished_is_counted_as_lost_and_does_not_block_its_domain_for_good(registry):
    tell(breach(), run="vanished")
    later("general", STALE + MINUTE)
    tell(breach(), run="next")
    later("general", COOL_DOWN + MINUTE)
    tell(breach(), run="next")
    state = tracking.incidents("general")
    assert state.incident and state.incident.run == "next"
    assert [past["outcome"] for past in state.history] == ["lost"] and state.failures == 1


def stored(domain: str) -> str:
    return tracking.client().get_registered_model(tracking.model_name(domain)).tags[tracking.INCIDENTS]


def test_a_long_record_fits_into_the_registry_and_gives_up_the_oldest_first(registry):
    causes = [f"a signal with a long name {n}" for n in range(12)]
    for number in range(HISTORY):
        assert tell(breach("general", *causes, version=str(number)), cool_down=0)
        ended("general", RECOVERED)
    tell(breach("general", *causes, version="now"), cool_down=0, run="r" * 100)
    assert len(stored("general")) <= TAG
    state = tracking.incidents("general")
    assert state.incident and state.incident.version == "now" and state.incident.causes == causes
    versions = [past["version"] for past in state.history]
    assert versions and versions == [str(n) for n in range(HISTORY)][-len(versions) :]


@pytest.mark.parametrize("count", [60, 100])
def test_many_long_causes_fit_into_the_registry(registry, count):
    causes = [f"{n}-" + "x" * 60 for n in range(count)]
    assert len(tell(breach("general", *causes), run="a")) == 1
    assert len(stored("general")) <= TAG
    kept = tracking.incidents("general").incident
    assert kept and kept.causes[:5] == causes[:5]  # the worst come first
    assert tell(breach("general", *causes), run="b") == []
    assert ended("general", FAILED)["failures"] == 1
    assert len(stored("general")) <= TAG and tracking.incidents("general").failures == 1


# On watch -----------------------------------------------------------------------------------------------------------


def watched(at: float = NOW, undone: bool = False) -> State:
    """An incident of version 1 that version 2 came of at `at`."""
    state, _, _ = incidents.admit(State(failures=1, undone=undone), alarm(at - 10 * MINUTE), at - 10 * MINUTE)
    return incidents.watch(state, Watch("2", "1", at, 0.75, 40))


def test_a_version_that_survives_its_watch_is_what_recovery_means():
    state = watched()
    assert incidents.settle(state, NOW + WATCH - 1) == state and state.incident and state.incident.quiet
    done = incidents.settle(state, NOW + WATCH)
    assert done.incident is None and (done.failures, done.undone) == (0, False)
    assert (done.last_closed, done.history[-1]["outcome"]) == (NOW, "recovered")


def test_whoever_reads_the_record_sees_that_a_watch_is_over(registry):
    tracking.keep_incidents("general", watched(time.time() - WATCH))
    state = tracking.incidents("general")
    assert state.incident is None and state.history[-1]["outcome"] == "recovered"


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

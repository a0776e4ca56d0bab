"""Incidents as the registry keeps them: let in, closed, lost, and a record that fits where it is kept."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.incidents import MINUTE, TAG, on_probation

from clipft_tasks import tracking
from clipft_tasks.contracts.drift import DriftAlert, IncidentState, LiveAccuracy
from clipft_tasks.contracts.stages import CloseResult
from clipft_tasks.core.settings import settings
from clipft_tasks.drift import incident_store
from clipft_tasks.drift.incidents import HISTORY
from clipft_tasks.drift.thresholds import BREAKER_SECONDS, COOL_DOWN, MAX_FAILURES, PROBATION
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import close, triage

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


def alert(domain: str = "general", *signals: str, version: str = "1") -> DriftAlert:
    return DriftAlert(domain=domain, version=version, signals=list(signals or ("image",)), ratio=2.0)


def spec(domain: str = "general", **more: Any) -> RunSpec:
    return RunSpec.from_flat({"domain": domain, **more})


def tell(*alerts: DriftAlert, run: str = "", cool_down: float = COOL_DOWN) -> list[dict[str, Any]]:
    """What `triage` lets in of the alerts that a run of clipft_drift_watch sees, domain by domain."""
    domains = [d for d in DOMAINS if any(a.domain == d for a in alerts)]
    said = [(d, triage.run(spec(d), [a for a in alerts if a.domain == d], cool_down, run)) for d in domains]
    return [{"domain": d, **found.to_json()} for d, found in said if found.admitted]


def later(domain: str, seconds: float) -> None:
    """Let time go by for a domain."""
    state = incident_store.load(domain)
    at = {name: max(0.0, getattr(state, name) - seconds) for name in ("breaker_opened", "last_closed")}
    opened = state.incident
    if opened:
        probation = opened.probation
        if probation:
            probation = probation.model_copy(update={"since": probation.since - seconds})
        opened = opened.model_copy(update={"opened": opened.opened - seconds, "probation": probation})
    incident_store.save(domain, state.model_copy(update={"incident": opened, **at}))


def ended(domain: str, states: dict[str, str | None], live: LiveAccuracy | None = None) -> CloseResult:
    """What `close` says when the run that answers the open incident ends."""
    state = incident_store.load(domain)
    return close.run(spec(domain), states, state.incident.id if state.incident else "", live)


FAILED = {"suggest": "success", "finetune": "failed"}
RECOVERED = {"suggest": "success", "finetune": "success"}


def test_an_admitted_alert_is_handed_on_with_its_signals_and_remembered(registry):
    [found] = tell(alert("general", "image", "margin"), run="a")
    kept = incident_store.load("general").incident
    assert kept and (found["signals"], found["incident"]) == (["image", "margin"], kept.id)
    assert found["reason"] and found["rollback"] is False and found["approval"] is False
    assert (kept.domain, kept.version, kept.signals, kept.run) == ("general", "1", ["image", "margin"], "a")


def test_two_domains_are_handled_beside_each_other(registry):
    both = [alert("general"), alert("industrial", "text")]
    assert [b["domain"] for b in tell(*both, run="a")] == ["general", "industrial"]
    assert tell(*both, run="b") == []
    ended("general", FAILED)
    assert incident_store.load("industrial").incident and incident_store.load("industrial").failures == 0
    assert incident_store.load("general").incident is None and incident_store.load("general").failures == 1


def test_one_domain_that_is_busy_does_not_hold_another_up(registry):
    tell(alert("general"), run="a")
    assert [b["domain"] for b in tell(alert("general"), alert("industrial"), run="b")] == ["industrial"]


def test_the_same_run_is_admitted_again_when_it_is_tried_again(registry):
    [first] = tell(alert("general", "image"), run="a")
    [again] = tell(alert("general", "image"), run="a")
    assert first | {"reason": ""} == again | {"reason": ""}
    assert tell(alert("general", "image"), run="b") == []
    assert tell(alert("general", "image")) == []


def test_nobody_in_particular_is_not_let_in_twice(registry):
    assert len(tell(alert())) == 1
    assert tell(alert()) == []


@pytest.mark.parametrize("run", ["a", ""])
def test_each_domain_is_admitted_once_although_two_of_its_versions_drift(registry, run):
    versions = [alert("general", "image", version="1"), alert("general", "text", version="2")]
    [found] = tell(*versions, run=run)
    assert found["signals"] == ["image"]
    assert len(tell(*versions, run=run)) == (1 if run else 0)


def test_why_an_alert_is_not_admitted_is_said(registry, capsys):
    tell(alert("general", "image"), run="a")
    tell(alert("general", "text"), run="b")
    said = "".join(capsys.readouterr())
    assert "general (image): admitted" in said and "general (text): not admitted" in said


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
    tell(alert())
    failed = sorted(name for name, state in states.items() if state in ("failed", "upstream_failed"))
    told = ended("general", states)
    assert (told.outcome, told.failed) == (outcome, failed)
    state = incident_store.load("general")
    assert state.incident is None and state.failures == (outcome == "failed")
    assert state.history[-1].outcome == outcome
    assert [name for name in sorted(states) if name in state.history[-1].note] == failed


def test_a_run_that_answers_no_incident_or_another_one_closes_none(registry):
    tell(alert())
    for other in ("", "general-1.000"):
        close.run(spec("general"), RECOVERED, other)
        assert incident_store.load("general").incident


@pytest.mark.parametrize("states", [FAILED, RECOVERED, {}])
def test_closing_a_domain_without_an_incident_leaves_its_record_as_it_was(registry, states):
    for _ in range(2):
        tell(alert(), cool_down=0)
        ended("general", FAILED)
    before = incident_store.load("general")
    assert ended("general", states).failures == 2
    assert incident_store.load("general") == before
    assert ended("industrial", states).breaker == "closed"
    assert incident_store.load("industrial") == IncidentState()


def test_the_breaker_opens_tries_once_and_closes_on_recovery(registry):
    for number in range(MAX_FAILURES):
        assert len(tell(alert())) == 1
        assert tell(alert()) == []  # one at a time
        told = ended("general", FAILED)
        assert (told.breaker, told.failures) == ("open" if number + 1 == MAX_FAILURES else "closed", number + 1)
        assert tell(alert()) == []  # the cool-down
        later("general", COOL_DOWN + MINUTE)
    assert tell(alert()) == []
    later("general", BREAKER_SECONDS)
    assert len(tell(alert())) == 1
    assert ended("general", FAILED).breaker == "open"
    later("general", BREAKER_SECONDS + MINUTE)
    assert len(tell(alert())) == 1 and tell(alert()) == []
    told = ended("general", RECOVERED)
    assert (told.outcome, told.breaker, told.failures) == ("recovered", "closed", 0)
    later("general", COOL_DOWN + MINUTE)
    assert len(tell(alert())) == 1


def stored(domain: str) -> str:
    return tracking.client().get_registered_model(tracking.model_name(domain)).tags[incident_store.TAG]


def test_a_long_record_fits_into_the_registry_and_gives_up_the_oldest_first(registry):
    signals = [f"a signal with a long name {n}" for n in range(12)]
    for number in range(HISTORY):
        assert tell(alert("general", *signals, version=str(number)), cool_down=0)
        ended("general", RECOVERED)
    tell(alert("general", *signals, version="now"), cool_down=0, run="r" * 100)
    assert len(stored("general")) <= TAG
    state = incident_store.load("general")
    assert state.incident and state.incident.version == "now" and state.incident.signals == signals
    versions = [past.version for past in state.history]
    assert versions and versions == [str(n) for n in range(HISTORY)][-len(versions) :]


@pytest.mark.parametrize("count", [60, 100])
def test_many_long_causes_fit_into_the_registry(registry, count):
    signals = [f"{n}-" + "x" * 60 for n in range(count)]
    assert len(tell(alert("general", *signals), run="a")) == 1
    assert len(stored("general")) <= TAG
    kept = incident_store.load("general").incident
    assert kept and kept.signals[:5] == signals[:5]  # the worst come first
    assert tell(alert("general", *signals), run="b") == []
    assert ended("general", FAILED).failures == 1
    assert len(stored("general")) <= TAG and incident_store.load("general").failures == 1


def test_whoever_reads_the_record_sees_that_a_watch_is_over(registry):
    incident_store.save("general", on_probation(time.time() - PROBATION))
    state = incident_store.load("general")
    assert state.incident is None and state.history[-1].outcome == "recovered"


def test_a_tag_of_the_release_before_is_read_and_written_anew(registry):
    """What it called causes and watch; the incident is still on probation, and closes as any other."""
    now = time.time()
    watch = {"version": "2", "before": "1", "since": now - MINUTE, "accuracy": 0.75, "judged": 40, "worse": "", "asks": False}
    old = {"domain": "general", "version": "1", "causes": ["image"], "opened": now - 10 * MINUTE, "run": "", "watch": watch}
    past = {
        "domain": "general",
        "version": "1",
        "causes": ["text"],
        "opened": 1.0,
        "run": "",
        "closed": 2.0,
        "outcome": "failed",
        "note": "",
    }
    text = json.dumps(
        {"incident": old, "failures": 1, "undone": True, "breaker_opened": 0.0, "last_closed": 2.0, "history": [past]}
    )
    tracking.client().set_registered_model_tag(tracking.model_name("general"), incident_store.TAG, text)
    state = incident_store.load("general")
    assert state.incident and state.incident.on_probation and state.rolled_back and state.history[0].signals == ["text"]
    assert tell(alert(), run="b") == []
    later("general", PROBATION)
    assert [past.outcome for past in incident_store.load("general").history] == ["failed", "recovered"]

"""Drift's records: what the release before wrote is read, and what no release wrote is refused."""

import json
from datetime import UTC, datetime

import pytest
from fixtures.errors import refuses
from pydantic import ValidationError

from clipft_tasks.contracts.drift import DriftAlert, DriftSnapshot, IncidentState, ReadaptRequest

# As the release before wrote it into the tag of a registered model.
OLD_TAG = json.dumps({
    "incident": {
        "domain": "general", "version": "1", "causes": ["image", "margin"], "opened": 1_800_000_000.5, "run": "a run",
        "watch": {"version": "2", "before": "1", "since": 1_800_000_600.0, "accuracy": 0.75, "judged": 40, "worse": "it errs", "asks": True},
    },
    "failures": 2, "undone": True, "breaker_opened": 0.0, "last_closed": 1_799_990_000.0,
    "history": [{
        "domain": "general", "version": "1", "causes": ["text"], "opened": 1_799_980_000.0, "run": "", "closed": 1_799_990_000.0,
        "outcome": "failed", "note": "finetune",
    }],
})  # fmt: skip
OLD_ANSWER = {
    "domain": "general", "version": "1", "images": 64, "texts": 0, "feedback": 0, "pairs": 0, "behind": {"image": 64},
    "drift": {"image": 0.5}, "values": {"image_mmd": 0.01}, "promised": {"value": 0.9, "low": 0.8, "high": 0.95, "rows": 100},
    "worst": {"signal": "image", "ratio": 0.5},
}  # fmt: skip


def test_incidents_of_the_release_before_are_read():
    state = IncidentState.from_json(json.loads(OLD_TAG))
    incident = state.incident
    assert incident and incident.id == "general-1800000000.500" and incident.signals == ["image", "margin"]
    found = incident.probation
    assert found and (found.version, found.previous, found.accuracy, found.judged) == ("2", "1", 0.75, 40)
    assert (found.regression, found.needs_approval, incident.on_probation) == ("it errs", True, False)
    assert (state.failures, state.rolled_back, state.last_closed) == (2, True, 1_799_990_000.0)
    [past] = state.history
    assert (past.signals, past.outcome, past.note) == (["text"], "failed", "finetune")
    assert IncidentState.from_json(state.to_json()) == state
    assert IncidentState.from_json({}) == IncidentState()


def test_incidents_of_a_newer_release_are_not_guessed_at():
    with refuses("record.newer_format", "the incidents"):
        IncidentState.from_json(IncidentState().to_json() | {"format": IncidentState.FORMAT + 1})


def test_a_server_of_the_release_before_is_understood():
    found = DriftSnapshot.from_json(OLD_ANSWER)
    assert found.rows == {"image": 64} and found.baseline.rows == 100
    assert DriftSnapshot.from_json(found.to_json()) == found


@pytest.mark.parametrize("missing", ["version", "drift", "baseline"])
def test_an_answer_that_lacks_something_is_no_snapshot(missing):
    whole = DriftSnapshot.from_json(OLD_ANSWER).to_json()
    with refuses("record.invalid", missing):
        DriftSnapshot.from_json({k: v for k, v in whole.items() if k != missing})


def test_what_readapt_is_started_with_comes_back_from_its_form():
    request = ReadaptRequest(domain="general", incident="general-1.000", signals=["image"], approval=False)
    conf = request.to_conf()
    assert conf == {"domain": "general", "incident": "general-1.000", "signals": ["image"], "approval.required": False}
    form = {**conf, "train.epochs": 3, "gate.rules": None}
    assert ReadaptRequest.split(form) == (request, {"domain": "general", "approval.required": False, "train.epochs": 3})


def test_a_run_that_the_release_before_started_goes_on():
    """It may wait for its approval while the software is upgraded."""
    form = {"domain": "general", "incident": "general-1.000", "causes": ["image"], "approval.required": True}
    request, spec = ReadaptRequest.split(form)
    assert request.signals == ["image"] and spec == {"domain": "general", "approval.required": True}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-01T09:30:00.5Z", datetime(2026, 3, 1, 9, 30, 0, 500_000, UTC)),
        ("2026-03-01T09:30:00.123456789Z", datetime(2026, 3, 1, 9, 30, 0, 123_456, UTC)),
        ("", None),
        ("yesterday", None),
    ],
)
def test_an_alert_says_since_when_where_that_can_be_read(text, expected):
    found = DriftAlert(domain="general", version="1", signals=["image"], ratio=2.0, since=text)
    assert found.since == expected and DriftAlert.model_validate(found.to_json()) == found


def test_an_alert_without_a_signal_is_none():
    with pytest.raises(ValidationError):
        DriftAlert(domain="general", version="1", signals=[], ratio=2.0)

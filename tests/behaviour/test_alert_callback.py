"""The alert callback: who may call, what is taken, and that a storm, a repetition or a wrong order start no more than they should."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clipft_alerts
import pytest
from fastapi.testclient import TestClient

from clipft_tasks.core.settings import settings
from clipft_tasks.domains import domain_names

TOKEN = "a token that only Alertmanager knows"
SHOWN = {"Authorization": f"Bearer {TOKEN}"}
MORNING, NOON = "2026-03-01T08:00:00.000Z", "2026-03-01T12:00:00.000Z"


class Airflow:
    """Runs by id, as Airflow's database keeps them: one that is there is not started again."""

    def __init__(self) -> None:
        self.runs: dict[str, str] = {}

    def start(self, run: str, domain: str) -> bool:
        new = run not in self.runs
        self.runs.setdefault(run, domain)
        return new


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    there = Airflow()
    monkeypatch.setattr(clipft_alerts, "_start", there.start)
    return there


@pytest.fixture
def alertmanager(home: Path, airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A client of the callback that shows the token."""
    monkeypatch.setenv("CLIPFT_ALERT_TOKEN", TOKEN)
    settings.cache_clear()
    with TestClient(clipft_alerts.app, headers=SHOWN) as client:
        yield client


def alert(domain: str = "general", signal: str = "image", at: str = MORNING, **more: Any) -> dict[str, Any]:
    """An alert as Alertmanager sends it."""
    labels = {"alertname": "ClipftDrift", "domain": domain, "version": "1", "signal": signal, "severity": "warning"}
    made = {"status": "firing", "labels": labels, "annotations": {"summary": "…"}, "startsAt": at, "generatorURL": "http://p"}
    return {**made, "endsAt": "0001-01-01T00:00:00Z", "fingerprint": f"{domain}-{signal}", **more}


def message(*alerts: dict[str, Any]) -> dict[str, Any]:
    around = {"version": "4", "status": "firing", "receiver": "airflow", "groupKey": "{}:{}", "truncatedAlerts": 0}
    return {**around, "groupLabels": {}, "commonLabels": {}, "externalURL": "http://a", "alerts": list(alerts)}


def send(client: TestClient, *alerts: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/alerts", json=message(*alerts))
    assert answer.status_code == 200, answer.text
    return answer.json()


# What is started ------------------------------------------------------------------------------------------------------

TEXT, LATER = alert(signal="text"), {"annotations": {"summary": "now 3.0 times"}, "endsAt": NOON}
NAMELESS = {**alert(), "labels": {k: v for k, v in alert()["labels"].items() if k != "domain"}}
UNMARKED = alert(fingerprint="")
TURNED = {**UNMARKED, "labels": dict(reversed(UNMARKED["labels"].items()))}
RESOLVED = alert(status="resolved", endsAt=NOON)
STORM = [alert("general", f"signal-{n}") for n in range(2000)]
Delivery = tuple[
    list[dict[str, Any]], tuple[int, int, int]
]  # alerts; how many runs started, how many known, alerts passed over

DELIVERIES: dict[str, tuple[list[Delivery], list[str]]] = {
    "an alert starts one run for its domain": ([([alert("industrial")], (1, 0, 0))], ["industrial"]),
    "each domain that fires gets a run of its own": (
        [([alert("medical"), alert("general"), TEXT, alert("industrial")], (3, 0, 0))], ["general", "industrial", "medical"],
    ),
    "the same delivery twice is the same run": ([([alert(), TEXT], (1, 0, 0)), ([alert(), TEXT], (0, 1, 0))], ["general"]),
    "so it is in another order and with other words": (
        [([alert(), TEXT], (1, 0, 0)), ([alert(signal="text", **LATER), alert(**LATER)], (0, 1, 0))], ["general"],
    ),
    "and where alerts carry no fingerprint": (
        [([UNMARKED], (1, 0, 0)), ([TURNED], (0, 1, 0)), ([alert(signal="text", fingerprint="")], (1, 0, 0))], ["general", "general"],
    ),
    "drift that began at another time is another run": (
        [([alert(at=MORNING)], (1, 0, 0)), ([alert(at=NOON)], (1, 0, 0))], ["general", "general"],
    ),
    "a signal that is added is another run": ([([alert()], (1, 0, 0)), ([alert(), TEXT], (1, 0, 0))], ["general", "general"]),
    "two domains with the same fingerprint are two runs": (
        [([alert("general", fingerprint="same"), alert("medical", fingerprint="same")], (2, 0, 0))], ["general", "medical"],
    ),
    "what is resolved starts nothing": ([([RESOLVED, alert("medical", status="resolved")], (0, 0, 2))], []),
    "resolved that arrives before firing does not stop the run": (
        [([RESOLVED], (0, 0, 1)), ([alert()], (1, 0, 0)), ([RESOLVED], (0, 0, 1)), ([alert()], (0, 1, 0))], ["general"],
    ),
    "what is resolved with what fires changes no run": (
        [([alert()], (1, 0, 0)), ([alert(), alert(signal="text", status="resolved")], (0, 1, 1))], ["general"],
    ),
    **{
        f"alerts of no known domain are passed over ({domain!r})": ([([alert(domain), alert("medical")], (1, 0, 1))], ["medical"])
        for domain in ("", "unknown", "GENERAL", "../general", "general; drop table", "general\n")
    },
    "alerts without a domain are passed over": ([([NAMELESS], (0, 0, 1))], []),
    "a message without alerts starts nothing": ([([], (0, 0, 0))], []),
    "a storm of one domain is one run": ([(STORM, (1, 0, 0)), (STORM[::-1], (0, 1, 0))], ["general"]),
}  # fmt: skip


@pytest.mark.parametrize("what", DELIVERIES)
def test_what_deliveries_start_late_twice_or_out_of_order(alertmanager, airflow, what):
    deliveries, domains = DELIVERIES[what]
    for alerts, expected in deliveries:
        before = set(airflow.runs)
        said = send(alertmanager, *alerts)
        assert (len(said["started"]), len(said["known"]), said["passed_over"]) == expected
        assert set(said["started"]) == airflow.runs.keys() - before and set(said["known"]) <= before
    assert sorted(airflow.runs.values()) == domains


def test_a_run_can_be_told_to_be_an_alerts_by_its_id_which_airflow_takes(alertmanager, airflow):
    for domain in domain_names():
        send(alertmanager, alert(domain))
    for run, domain in airflow.runs.items():
        assert domain in run and len(run) <= 250 and run.replace("_", "").replace("-", "").isalnum()


# Who may call, and with what ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Basic YTpi", "Bearer ä"],
)
def test_without_the_right_token_nothing_is_started(alertmanager, airflow, header):
    del alertmanager.headers["Authorization"]
    given = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = alertmanager.post("/alerts", json=message(alert()), headers=given)
    assert answer.status_code == 401 and "Bearer" in answer.headers["www-authenticate"]
    assert airflow.runs == {} and TOKEN not in answer.text


@pytest.mark.parametrize("kept", [None, ""])
def test_where_no_token_was_made_nobody_may_call(alertmanager, airflow, monkeypatch, kept):
    monkeypatch.delenv("CLIPFT_ALERT_TOKEN")
    if kept is not None:
        monkeypatch.setenv("CLIPFT_ALERT_TOKEN", kept)
    settings.cache_clear()
    for header in (SHOWN, {"Authorization": "Bearer "}, {"Authorization": ""}):
        answer = alertmanager.post("/alerts", json=message(alert()), headers=header)
        assert answer.status_code == 403 and "CLIPFT_ALERT_TOKEN" in answer.json()["detail"]
    assert airflow.runs == {}


MALFORMED: dict[str, str] = {
    "no JSON": "{",
    "nothing": "",
    "a list": "[]",
    "null": "null",
    "no alerts": '{"version": "4"}',
    "alerts that are no list": '{"alerts": {}}',
    "an alert that is none": '{"alerts": [3]}',
    "an alert without labels": '{"alerts": [{"status": "firing"}]}',
    "labels that are no text": '{"alerts": [{"status": "firing", "labels": {"domain": ["general"]}}]}',
    "an alert without status": '{"alerts": [{"labels": {"domain": "general"}}]}',
    "more alerts than anybody has": json.dumps({"alerts": [{"status": "firing", "labels": {"domain": "general"}}] * 10_001}),
    "one good and one bad": json.dumps({"alerts": [{"status": "firing", "labels": {"domain": "general"}}, {}]}),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_message_is_refused_and_starts_nothing(alertmanager, airflow, what):
    answer = alertmanager.post("/alerts", content=MALFORMED[what], headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and airflow.runs == {}


def test_fields_of_a_newer_alertmanager_are_no_reason_to_refuse(alertmanager, airflow):
    answer = alertmanager.post("/alerts", json=message(alert(more="new")) | {"version": "5", "notificationReason": "x"})
    assert answer.status_code == 200 and len(airflow.runs) == 1


def test_what_is_too_large_is_refused_and_starts_nothing(alertmanager, airflow):
    large = message(alert()) | {"padding": "x" * clipft_alerts.MOST_BYTES}
    assert alertmanager.post("/alerts", json=large).status_code == 413
    assert airflow.runs == {}


def test_what_is_too_large_is_refused_although_nobody_said_how_large(alertmanager, airflow):
    text = json.dumps(message(alert()) | {"padding": "x" * clipft_alerts.MOST_BYTES}).encode()
    answer = alertmanager.post("/alerts", content=iter([text]), headers={"Content-Type": "application/json"})
    assert "content-length" not in answer.request.headers
    assert answer.status_code == 413 and airflow.runs == {}


def test_only_posts_are_taken(alertmanager, airflow):
    for method in ("GET", "PUT", "DELETE"):
        assert alertmanager.request(method, "/alerts").status_code == 405
    assert airflow.runs == {}


async def uploaded(headers: dict[str, str]) -> tuple[int, int]:
    """Send 16 MiB of something: the status, and how many bytes were taken before it was said."""
    part, parts, taken, status = b"x" * 2**16, 256, 0, []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": part, "more_body": taken < parts}

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.start":
            status.append(event["status"])

    given = {"content-type": "application/json", "content-length": str(parts * len(part))} | headers
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/alerts",
        "raw_path": b"/alerts", "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        "headers": [(k.encode(), v.encode()) for k, v in given.items()],
    }  # fmt: skip
    await clipft_alerts.app(scope, receive, send)
    return status[0], taken * len(part)


@pytest.mark.parametrize(
    ("headers", "status"), [({}, 401), ({"authorization": f"Bearer {TOKEN}"}, 413)], ids=["stranger", "known"]
)
def test_a_flood_is_refused_before_it_fills_the_memory(alertmanager, airflow, headers, status):
    answered, taken = asyncio.run(uploaded(headers))
    assert answered == status
    assert taken <= clipft_alerts.MOST_BYTES


def test_a_stranger_is_not_told_what_is_wrong_with_the_message(alertmanager, airflow):
    answer = alertmanager.post(
        "/alerts", content="{", headers={"Content-Type": "application/json", "Authorization": "Bearer no"}
    )
    assert answer.status_code == 401

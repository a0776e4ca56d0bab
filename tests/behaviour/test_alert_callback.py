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


# What is started ----------------------------------------------------------------------------------------------------


def test_an_alert_starts_one_run_for_its_domain(alertmanager, airflow):
    said = send(alertmanager, alert("industrial"))
    [run] = said["started"]
    assert said == {"started": [run], "known": [], "passed_over": 0}
    assert airflow.runs == {run: "industrial"}


def test_each_domain_that_fires_gets_a_run_of_its_own(alertmanager, airflow):
    said = send(alertmanager, alert("medical"), alert("general"), alert("general", "text"), alert("industrial"))
    assert len(said["started"]) == 3
    assert sorted(airflow.runs.values()) == ["general", "industrial", "medical"]


def test_a_run_can_be_told_to_be_an_alerts_by_its_id_which_airflow_takes(alertmanager, airflow):
    for domain in domain_names():
        send(alertmanager, alert(domain))
    for run, domain in airflow.runs.items():
        assert domain in run and len(run) <= 250 and run.replace("_", "").replace("-", "").isalnum()


def test_the_same_delivery_twice_is_the_same_run(alertmanager, airflow):
    first = send(alertmanager, alert(), alert(signal="text"))
    again = send(alertmanager, alert(), alert(signal="text"))
    assert again == {"started": [], "known": first["started"], "passed_over": 0}
    assert len(airflow.runs) == 1


def test_the_order_of_the_alerts_and_what_is_written_about_them_does_not_matter(alertmanager, airflow):
    send(alertmanager, alert(), alert(signal="text"))
    later = {"annotations": {"summary": "now 3.0 times"}, "endsAt": NOON}
    send(alertmanager, alert(signal="text", **later), alert(**later))
    assert len(airflow.runs) == 1


def test_the_same_delivery_is_the_same_run_where_alerts_carry_no_fingerprint(alertmanager, airflow):
    turned = alert(fingerprint="")
    turned["labels"] = dict(reversed(turned["labels"].items()))
    send(alertmanager, alert(fingerprint=""))
    assert send(alertmanager, turned)["started"] == []
    assert send(alertmanager, alert(signal="text", fingerprint=""))["started"]


def test_drift_that_began_at_another_time_is_another_run(alertmanager, airflow):
    [first] = send(alertmanager, alert(at=MORNING))["started"]
    [second] = send(alertmanager, alert(at=NOON))["started"]
    assert first != second and list(airflow.runs.values()) == ["general", "general"]


def test_a_cause_that_is_added_is_another_run(alertmanager, airflow):
    send(alertmanager, alert())
    assert len(send(alertmanager, alert(), alert(signal="text"))["started"]) == 1


def test_two_domains_with_the_same_fingerprint_are_two_runs(alertmanager, airflow):
    send(alertmanager, alert("general", fingerprint="same"), alert("medical", fingerprint="same"))
    assert sorted(airflow.runs.values()) == ["general", "medical"]


def test_what_is_resolved_starts_nothing(alertmanager, airflow):
    said = send(alertmanager, alert(status="resolved"), alert("medical", status="resolved"))
    assert said == {"started": [], "known": [], "passed_over": 2} and airflow.runs == {}


def test_resolved_that_arrives_before_firing_does_not_stop_the_run(alertmanager, airflow):
    send(alertmanager, alert(status="resolved", endsAt=NOON))
    assert len(send(alertmanager, alert())["started"]) == 1
    send(alertmanager, alert(status="resolved", endsAt=NOON))
    assert send(alertmanager, alert())["started"] == []
    assert len(airflow.runs) == 1


def test_what_is_resolved_beside_what_fires_changes_no_run(alertmanager, airflow):
    [run] = send(alertmanager, alert())["started"]
    said = send(alertmanager, alert(), alert(signal="text", status="resolved"))
    assert said == {"started": [], "known": [run], "passed_over": 1}


@pytest.mark.parametrize("domain", ["", "unknown", "GENERAL", "../general", "general; drop table", "general\n"])
def test_alerts_of_no_known_domain_are_passed_over(alertmanager, airflow, domain):
    said = send(alertmanager, alert(domain), alert("medical"))
    assert said["passed_over"] == 1 and list(airflow.runs.values()) == ["medical"]


def test_alerts_without_a_domain_are_passed_over(alertmanager, airflow):
    nameless = alert()
    del nameless["labels"]["domain"]
    assert send(alertmanager, nameless) == {"started": [], "known": [], "passed_over": 1}


def test_a_message_without_alerts_starts_nothing(alertmanager, airflow):
    assert send(alertmanager) == {"started": [], "known": [], "passed_over": 0}


def test_a_storm_of_one_domain_is_one_run(alertmanager, airflow):
    storm = [alert("general", f"signal-{n}") for n in range(2000)]
    assert len(send(alertmanager, *storm)["started"]) == 1
    assert send(alertmanager, *reversed(storm))["started"] == []
    assert list(airflow.runs.values()) == ["general"]


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

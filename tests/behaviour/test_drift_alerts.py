"""Drift alerts as trigger and sensor see them: what is read where, what is an event once, late, twice or away."""

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fixtures.drift_alerts import (  # noqa: F401  (fixtures)
    ALERTS,
    CALM,
    HIGH,
    NOBODY,
    QUICK,
    ROOT,
    Ratios,
    Running,
    Source,
    alert,
    fired,
    metrics,
    plugin,
    prometheus,
    server,
)
from fixtures.ports import free_port

from clipft_tasks.contracts.drift import DriftAlert
from clipft_tasks.core.settings import settings
from serving.inference.settings import ServingSettings

# Reading --------------------------------------------------------------------------------------------------------------


def brief(found: Any) -> list[tuple[str, str, list[str]]]:
    """Domain, version and signals of alerts, as records or as the JSON of events and XCom."""
    read = [a if isinstance(a, DriftAlert) else DriftAlert.model_validate(a) for a in found]
    return [(a.domain, a.version, a.signals) for a in read]


def errors(**more: Any) -> dict[str, Any]:
    """Failing requests, which belong to no version and are no signal."""
    made = alert("medical", value=0.2, name="ClipftErrors", **more)
    return made | {"labels": {k: v for k, v in made["labels"].items() if k not in ("version", "signal")}}


NINE, TEN = "2026-03-01T09:00:00Z", "2026-03-01T10:00:00Z"
LISTED: dict[str, tuple[list[Any], list[tuple[str, str, list[str]]], float, str]] = {
    "the worst signal first, each once": (
        [
            alert(signal="image", value=2.5),
            alert(signal="brightness", value=7.0),
            alert(signal="brightness", value=7.0, name="ClipftDriftSevere"),
            alert(signal="performance", value=1.5, name="ClipftAccuracyLow"),
        ],
        [("general", "1", ["brightness", "image", "performance"])], 7.0, TEN,
    ),
    "since the first of its alerts": (
        [alert(activeAt=TEN), alert(signal="text", activeAt=NINE)], [("general", "1", ["image", "text"])], 2.0, NINE,
    ),
    "since it began, severe or not": (
        [alert(value=4.0, activeAt=NINE), alert(value=4.0, activeAt=TEN, name="ClipftDriftSevere")],
        [("general", "1", ["image"])], 4.0, NINE,
    ),
    "failing requests in units of their limit": ([errors()], [("medical", "", ["errors"])], 4.0, TEN),
    "failing requests and drift": (
        [alert("medical", value=3.0), errors()], [("medical", "", ["errors"]), ("medical", "1", ["image"])], 4.0, TEN,
    ),
    "domains and versions apart": (
        [alert("medical"), alert("general", version="2"), alert("general", version="1")],
        [("general", "1", ["image"]), ("general", "2", ["image"]), ("medical", "1", ["image"])], 2.0, TEN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LISTED)
def test_prometheus_alerts_become_one_by_domain_and_version(plugin, what):
    listed, expected, ratio, since = LISTED[what]
    found = plugin.from_prometheus(listed)
    assert brief(found) == expected and {a.source for a in found} == {"prometheus"}
    assert (found[0].ratio, found[0].since) == (ratio, datetime.fromisoformat(since).astimezone(UTC))


OTHERS: dict[str, Any] = {
    "pending": alert(state="pending"), "of the service": alert(name="ClipftServerDown"), "of another team": alert(name="SomebodyElses"),
    "no domain": alert(domain=""), "no name": {"labels": {}, "state": "firing"}, "no labels": {"state": "firing"}, "nothing": {},
    "no alert at all": "words",
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_alerts_that_are_none_of_ours_are_passed_over(plugin, what):
    assert plugin.from_prometheus([OTHERS[what]]) == []
    assert len(plugin.from_prometheus([OTHERS[what], alert("medical")])) == 1


@pytest.mark.parametrize("value", [None, "", "no number"])
def test_an_alert_without_a_readable_metric_still_counts(plugin, value):
    assert brief(plugin.from_prometheus([alert() | {"value": value}])) == [("general", "1", ["image"])]


def test_the_servers_metrics_become_alerts_of_what_is_over_its_limit(plugin):
    ratios = {("general", "1", "image"): 1.5, ("general", "1", "text"): 3.25, ("general", "1", "side"): 1.0}
    ratios |= {("industrial", "7", "image"): 0.99, ("medical", "2", "performance"): 0.0}
    [found] = plugin.from_metrics(metrics(ratios))
    assert brief([found]) == [("general", "1", ["text", "image"])]
    assert (found.ratio, found.source, found.since) == (3.25, "server", None)


@pytest.mark.parametrize("text", ["", metrics({}), metrics(CALM), "# HELP other things\n# TYPE other counter\nother_total 5\n"])
def test_metrics_below_their_limits_or_of_others_are_no_alert(plugin, text):
    assert plugin.from_metrics(text) == []


def test_prometheus_is_asked_first_and_the_server_where_there_is_none(plugin, server, prometheus):
    server.shows(HIGH)
    assert asyncio.run(plugin.fetch_alerts(prometheus.url, server.url)) == []  # Prometheus does not think that it is drift
    assert server.asked["/metrics"] == 0
    [found] = asyncio.run(plugin.fetch_alerts("", server.url))
    assert (found.source, found.ratio) == ("server", 4.0)
    assert asyncio.run(plugin.fetch_alerts("", NOBODY)) is None


AWAY: dict[str, tuple[int, str]] = {
    "an error": (503, "not ready"), "a page": (200, "<html>a login page</html>"), "another redirect": (302, ""),
    "an object of something else": (200, "{}"), "a refusal": (200, '{"status": "error", "error": "no"}'), "a list": (200, "[]"),
    "nothing inside": (200, '{"status": "success", "data": null}'),
}  # fmt: skip


@pytest.mark.parametrize("what", AWAY)
def test_a_prometheus_that_gives_no_answer_of_its_own_is_passed_over_for_the_server(plugin, server, prometheus, what):
    prometheus.says(ALERTS, AWAY[what])
    [found] = asyncio.run(plugin.fetch_alerts(prometheus.url, server.shows(HIGH).url))
    assert found.source == "server"


@pytest.mark.parametrize(
    "answer", [(503, ""), (200, "<html>"), (200, "clipft_drift_ratio 3\n")], ids=["error", "page", "others"]
)
def test_a_server_whose_metrics_cannot_be_read_says_nothing(plugin, server, answer):
    server.says("/metrics", answer)
    assert asyncio.run(plugin.fetch_alerts("", server.url)) is None


# The trigger ----------------------------------------------------------------------------------------------------------


def test_a_trigger_survives_being_stored(plugin):
    for trigger in (
        plugin.PrometheusDriftTrigger("http://p", "http://s"),
        plugin.PrometheusDriftTrigger("", "http://s", ["general"], once=True, poll=0.5),
    ):
        path, kwargs = trigger.serialize()
        module, name = path.rsplit(".", 1)
        again = getattr(import_module(module), name)(**json.loads(json.dumps(kwargs)))
        assert type(again) is type(trigger) and again.serialize() == (path, kwargs)
        for kept in ("prometheus", "server", "domains", "once", "poll"):
            assert getattr(again, kept) == getattr(trigger, kept)


TRIGGERER = """
import asyncio, importlib, json, sys
module, name = sys.argv[1].rsplit(".", 1)

async def run():
    async for event in getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2])).run():
        print(json.dumps(event.payload), flush=True)

asyncio.run(run())
"""


def triggerer(trigger: Any) -> "subprocess.Popen[str]":
    """A process that runs a stored trigger, as Airflow's triggerer would."""
    path, kwargs = trigger.serialize()
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "plugins"), str(ROOT)])}
    command = [sys.executable, "-c", TRIGGERER, path, json.dumps(kwargs)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("where", ["prometheus", "server"])
def test_a_triggerer_killed_while_the_sensor_waits_loses_nothing(plugin, server, prometheus, where):
    """What it knew lies in Airflow's database, as classpath and arguments; whoever takes over sees the alert, once."""
    source, path = (prometheus, ALERTS) if where == "prometheus" else (server, "/metrics")
    url = prometheus.url if where == "prometheus" else ""
    trigger = plugin.PrometheusDriftTrigger(url, server.url, ["general"], once=True, poll=0.1)
    first = triggerer(trigger)
    try:
        end = time.monotonic() + 60
        while source.asked.get(path, 0) < 3:
            assert first.poll() is None and time.monotonic() < end
            time.sleep(0.05)
    finally:
        first.kill()  # SIGKILL: it cannot hand anything over
        assert first.communicate(timeout=30)[0] == ""
    if where == "prometheus":
        source.says(path, fired(alert(value=4.0)))
    else:
        source.shows(HIGH)
    second = triggerer(trigger)
    try:
        said, _ = second.communicate(timeout=60)
    finally:
        second.kill()
    [event] = [json.loads(line) for line in said.splitlines()]
    assert brief(event) == [("general", "1", ["image"])] and event[0]["ratio"] == 4.0


def test_two_triggers_do_not_share_their_events(plugin, prometheus):
    alerts = plugin.from_prometheus([alert()])
    first, second = (plugin.PrometheusDriftTrigger(prometheus.url, NOBODY) for _ in range(2))
    assert [len(t._events(alerts)) for t in (first, first, second)] == [1, 0, 1]


def events_of(trigger: Any, source: Source, path: str, *steps: list[tuple[int, str]]) -> list[list[Any]]:
    """The new events while `source` gives the answers of each step, one a poll and the last of them for ever."""

    async def run() -> list[list[Any]]:
        found: list[list[Any]] = []
        async with Running(trigger) as running:
            for answers in steps:
                source.says(path, *answers)
                await running.polled(source, path, len(answers) + 5)
                found.append(running.events[sum(map(len, found)) :])
        return found

    return asyncio.run(run())


GENERAL, MEDICAL = ("general", "1", ["image"]), ("medical", "1", ["image"])
ALL = ["general", "industrial", "medical", "scientific"]
TOLD: dict[str, tuple[list[list[tuple[int, str]]], list[list[tuple[str, str, list[str]]]]]] = {
    "nothing fires": ([[fired()]], [[]]),
    "an alert that lasts, once": ([[fired()], [fired(alert(value=v)) for v in (2.0, 9.0, 3.0)]], [[], [GENERAL]]),
    "another signal, and one of them over": (
        [[fired(alert())], [fired(alert(), alert(signal="text", value=5.0))], [fired(alert(signal="text"))]],
        [[GENERAL], [("general", "1", ["text", "image"])], []],
    ),
    "another domain and another version": (
        [[fired(alert("general"), alert("medical"))], [fired(alert("general", version="2"))]],
        [[GENERAL, MEDICAL], [("general", "2", ["image"])]],
    ),
    "all domains in one poll": ([[fired(*map(alert, ALL)), fired()]], [[(d, "1", ["image"]) for d in ALL]]),
}  # fmt: skip


@pytest.mark.parametrize("what", TOLD)
def test_each_alert_of_prometheus_is_an_event_once_for_each_signal(plugin, server, prometheus, what):
    steps, expected = TOLD[what]
    trigger = plugin.PrometheusDriftTrigger(prometheus.url, server.url, poll=QUICK)
    assert [brief(events) for events in events_of(trigger, prometheus, ALERTS, *steps)] == expected
    assert server.asked["/metrics"] == 0


def test_only_the_domains_asked_for_are_events(plugin, prometheus):
    trigger = plugin.PrometheusDriftTrigger(prometheus.url, NOBODY, ["medical"], poll=QUICK)
    [events] = events_of(trigger, prometheus, ALERTS, [fired(alert("general"), alert("medical"), alert("industrial"))])
    assert brief(events) == [MEDICAL]


def test_asked_for_one_event_it_ends_with_a_list_of_all_alerts_of_that_moment(plugin, prometheus):
    trigger = plugin.PrometheusDriftTrigger(prometheus.url, NOBODY, ["general", "medical"], once=True, poll=QUICK)
    [[event]] = events_of(trigger, prometheus, ALERTS, [fired(), fired(alert("general"), alert("medical"))])
    assert brief(event) == [GENERAL, MEDICAL]


def test_an_alert_that_lasts_is_an_event_again_after_a_while(plugin, prometheus, monkeypatch):
    monkeypatch.setattr(plugin, "REPEAT", 0.2)
    prometheus.says(ALERTS, fired(alert()))

    async def run() -> list[Any]:
        async with Running(plugin.PrometheusDriftTrigger(prometheus.url, NOBODY, poll=QUICK)) as running:
            await running.until(lambda: len(running.events) >= 3)
            return running.events

    assert set(map(str, brief(asyncio.run(run())))) == {str(GENERAL)}


TEXT = {("general", "1", "text"): 3.0}
BRIGHT = CALM | {("general", "1", "brightness"): 2.0}
POLLS: dict[str, tuple[list[Ratios | None], list[list[str]]]] = {
    "nothing drifts": ([CALM], []),
    "one high metric alone, twice": ([CALM, HIGH, CALM, CALM, HIGH], []),
    "two signals that are high once each": ([CALM, HIGH, BRIGHT, CALM], []),
    "one before and one after the server was away": ([HIGH, None, None, HIGH], []),
    "a metric that stays high": ([CALM, *[HIGH] * 6], [["image"]]),
    "two that stay high, one for longer": ([HIGH | TEXT, HIGH | TEXT, HIGH], [["image", "text"]]),
}


def told_of(plugin: ModuleType, server: Source, polls: list[Ratios | None]) -> list[list[str]]:
    """Signals of each event while the server shows these, one a poll, and nothing after them; None: it is away."""
    answers = [(503, "") if ratios is None else (200, metrics(ratios)) for ratios in (*polls, CALM)]
    [events] = events_of(plugin.PrometheusDriftTrigger(NOBODY, server.url, poll=QUICK), server, "/metrics", answers)
    assert {e["source"] for e in events} <= {"server"}
    return [signals for _, _, signals in brief(events)]


@pytest.mark.parametrize("what", POLLS)
def test_without_prometheus_two_polls_in_a_row_must_agree(plugin, server, what):
    """The same hysteresis as the rules': one high metric is chance, whoever asks."""
    polls, expected = POLLS[what]
    assert told_of(plugin, server, polls) == expected


def test_without_prometheus_a_measurement_that_is_read_twice_is_still_one(plugin, server):
    """The server measures at its own pace; until it does again, whoever asks reads the same metric."""
    readings = math.ceil(ServingSettings().drift_seconds / plugin.POLL)
    assert told_of(plugin, server, [CALM, *[HIGH] * readings, CALM]) == []


def test_asked_for_one_event_without_prometheus_it_waits_until_two_polls_agree(plugin, server):
    trigger = plugin.PrometheusDriftTrigger(NOBODY, server.url, once=True, poll=QUICK)
    calm, [event] = events_of(trigger, server, "/metrics", [(200, metrics(CALM))], [(200, metrics(HIGH))])
    assert calm == [] and brief(event) == [GENERAL]


def test_while_both_are_down_the_trigger_goes_on_and_its_event_comes_once_the_server_is_back(plugin):
    port, gone = free_port(), free_port()

    async def run() -> list[Any]:
        trigger = plugin.PrometheusDriftTrigger(f"http://127.0.0.1:{gone}", f"http://127.0.0.1:{port}", poll=QUICK)
        async with Running(trigger) as running:
            for _ in range(2):
                await asyncio.sleep(10 * QUICK)  # nobody answers
                assert not running.task.done()
                with Source(port).shows(HIGH) as server:
                    await running.polled(server)
                assert len(running.events) == 1
            return running.events

    events = asyncio.run(run())
    assert brief(events) == [GENERAL] and events[0]["source"] == "server"


# The sensor -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sensor(plugin: ModuleType, home: Path, server: Source, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes sensors in an installation without Prometheus."""
    monkeypatch.setenv("CLIPFT_SERVER_URL", server.url)
    settings.cache_clear()
    return lambda **given: plugin.PrometheusDriftSensor(task_id="watch", **({"poll": QUICK} | given))


def found_by(sensor: Any) -> list[tuple[str, str, list[str]]] | None:
    """What it hands on; None where it skips what follows."""
    from airflow.sdk.exceptions import AirflowSkipException

    try:
        return brief(sensor.execute({}))
    except AirflowSkipException:
        return None


INDUSTRIAL = {("industrial", "7", "image"): 3.0}
ASKED: dict[str, tuple[list[Ratios], dict[str, Any], list[tuple[str, str, list[str]]] | None, int]] = {
    "nothing drifts": ([CALM], {"poll": 3600}, None, 1),  # and no second poll is waited for
    "nothing drifts, no wait": ([CALM], {"wait_minutes": None}, None, 1),
    "nothing drifts, wait as text": ([CALM], {"wait_minutes": "0"}, None, 1),
    "nothing drifts, wait as number": ([CALM], {"wait_minutes": 0.0}, None, 1),
    "all domains": ([HIGH | INDUSTRIAL], {}, [GENERAL, ("industrial", "7", ["image"])], 2),
    "an empty list of domains": ([HIGH | INDUSTRIAL], {"domains": []}, [GENERAL, ("industrial", "7", ["image"])], 2),
    "the domain asked for": ([HIGH | INDUSTRIAL], {"domains": ["general"]}, [GENERAL], 2),
    "one of those asked for": ([HIGH | INDUSTRIAL], {"domains": ["medical", "general"]}, [GENERAL], 2),
    "another domain": ([HIGH], {"domains": ["medical"]}, None, 2),
    "high once": ([HIGH, CALM], {}, None, 2),
    "two signals, high once each": ([HIGH, CALM | TEXT], {}, None, 2),
    "one of two lasts": ([HIGH | {("general", "1", "text"): 9.0}, HIGH], {}, [GENERAL], 2),
}


@pytest.mark.parametrize("what", ASKED)
def test_the_sensor_hands_on_what_lasts_of_the_domains_asked_for_or_skips_what_follows(sensor, server, what):
    polls, given, expected, asked = ASKED[what]
    server.shows(*polls)
    assert found_by(sensor(**given)) == expected
    assert server.asked["/metrics"] == asked


def test_where_nobody_can_be_asked_the_sensor_does_not_say_that_nothing_drifts(sensor, monkeypatch):
    from airflow.sdk.exceptions import AirflowException, AirflowSensorTimeout, TaskDeferred

    monkeypatch.setenv("CLIPFT_SERVER_URL", NOBODY)
    settings.cache_clear()
    with pytest.raises(AirflowException, match="not known"):
        found_by(sensor())
    waits = sensor(wait_minutes=2)
    with pytest.raises(TaskDeferred):  # it may come back meanwhile
        found_by(waits)

    def timed_out(*_: Any) -> None:
        raise AirflowSensorTimeout

    monkeypatch.setattr("airflow.sdk.bases.sensor.BaseSensorOperator.resume_execution", timed_out)
    with pytest.raises(AirflowException, match="not known"):
        waits.resume_execution("resume", None, {})


def test_the_sensors_two_polls_see_two_measurements(plugin):
    assert plugin.PrometheusDriftSensor(task_id="watch").poll > ServingSettings().drift_seconds


def test_what_prometheus_says_needs_no_second_poll(sensor, prometheus, monkeypatch):
    prometheus.says(ALERTS, fired(alert()))
    monkeypatch.setenv("CLIPFT_PROMETHEUS_URL", prometheus.url)
    settings.cache_clear()
    assert found_by(sensor(poll=3600)) == [GENERAL]


def test_the_sensor_waits_without_a_worker_and_returns_what_the_trigger_found(sensor, server):
    from airflow.sdk.exceptions import TaskDeferred

    made = sensor(domains=["general"], wait_minutes="2")
    with pytest.raises(TaskDeferred) as deferred:
        made.execute({})
    assert deferred.value.timeout.total_seconds() == 120
    _, kwargs = deferred.value.trigger.serialize()
    assert kwargs["domains"] == ["general"] and kwargs["once"] is True
    steps = [[(200, metrics(CALM))], [(200, metrics(HIGH | INDUSTRIAL))]]
    _, [event] = events_of(type(deferred.value.trigger)(**kwargs), server, "/metrics", *steps)
    assert brief(made.resume_execution(deferred.value.method_name, {"event": event}, {})) == [GENERAL]


def test_the_sensor_skips_what_follows_when_no_drift_came_in_time(sensor):
    """A wait that is over is no failure: what follows is skipped, as when it asks once."""
    from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason
    from airflow.sdk.exceptions import AirflowSkipException

    with pytest.raises(AirflowSkipException):
        sensor(wait_minutes=2).resume_execution(TRIGGER_FAIL_REPR, {"error": TriggerFailureReason.TRIGGER_TIMEOUT}, {})

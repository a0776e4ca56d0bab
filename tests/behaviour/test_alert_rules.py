"""Drift alarms as the watcher sees them: what is read where, what is told once, and both of those asked away."""

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
from fixtures.alerts import (  # noqa: F401  (fixtures)
    ALERTS,
    CALM,
    HIGH,
    NOBODY,
    QUICK,
    ROOT,
    Ratios,
    Source,
    Watching,
    alarms,
    alert,
    fired,
    free_port,
    metrics,
    prometheus,
    server,
)

from serving.inference.settings import ServingSettings

# Reading ------------------------------------------------------------------------------------------------------------


def test_alerts_of_a_version_become_one_breach_with_the_worst_signal_first(alarms):
    found = [alert(signal="image", value=2.5), alert(signal="brightness", value=7.0)]
    found += [
        alert(signal="brightness", value=7.0, name="ClipftDriftSevere"),
        alert(signal="performance", value=1.5, name="ClipftAccuracyLow"),
    ]
    [breach] = alarms.from_prometheus(found)
    assert (breach["domain"], breach["version"], breach["source"]) == ("general", "1", "prometheus")
    assert breach["causes"] == ["brightness", "image", "performance"] and breach["ratio"] == 7.0


def test_a_breach_lasts_since_the_first_of_its_alerts(alarms):
    [breach] = alarms.from_prometheus([
        alert(activeAt="2026-03-01T10:00:00Z"),
        alert(signal="text", activeAt="2026-03-01T09:30:00Z"),
    ])  # fmt: skip
    assert breach["since"] == "2026-03-01T09:30:00Z"


def test_a_breach_that_became_severe_later_lasts_since_it_began(alarms):
    [breach] = alarms.from_prometheus([
        alert(value=4.0, activeAt="2026-03-01T09:00:00Z"),
        alert(value=4.0, activeAt="2026-03-01T10:00:00Z", name="ClipftDriftSevere"),
    ])  # fmt: skip
    assert breach["since"] == "2026-03-01T09:00:00Z"


def test_failing_requests_are_a_breach_without_a_version_in_units_of_their_limit(alarms):
    errors = alert("medical", value=0.2, name="ClipftErrors")
    errors["labels"] = {k: v for k, v in errors["labels"].items() if k not in ("version", "signal")}
    drifting, failing = sorted(alarms.from_prometheus([errors, alert("medical")]), key=lambda b: b["causes"], reverse=True)
    assert (drifting["version"], drifting["causes"]) == ("1", ["image"])
    assert (failing["domain"], failing["version"], failing["causes"]) == ("medical", "", ["errors"])
    assert failing["ratio"] == 4.0 and failing["since"] == errors["activeAt"]


def test_domains_and_versions_are_told_apart(alarms):
    found = alarms.from_prometheus([alert("medical"), alert("general", version="2"), alert("general", version="1")])
    assert [(b["domain"], b["version"]) for b in found] == [("general", "1"), ("general", "2"), ("medical", "1")]


@pytest.mark.parametrize(
    "other",
    [
        alert(state="pending"),
        alert(name="ClipftServerDown"),
        alert(name="SomebodyElses"),
        alert(domain=""),
        {"labels": {}, "state": "firing"},
        {"state": "firing"},
        {},
    ],
    ids=["pending", "of the service", "of another team", "no domain", "no name", "no labels", "nothing"],
)
def test_alerts_that_are_none_of_ours_are_no_breach(alarms, other):
    assert alarms.from_prometheus([other]) == []
    assert len(alarms.from_prometheus([other, alert("medical")])) == 1


@pytest.mark.parametrize("value", [None, "", "no number"])
def test_an_alert_without_a_readable_metric_still_counts(alarms, value):
    [breach] = alarms.from_prometheus([alert() | {"value": value}])
    assert breach["causes"] == ["image"]


def test_the_servers_metrics_become_breaches_of_what_is_over_its_limit(alarms):
    ratios = {("general", "1", "image"): 1.5, ("general", "1", "text"): 3.25, ("general", "1", "side"): 1.0}
    ratios |= {("industrial", "7", "image"): 0.99, ("medical", "2", "performance"): 0.0}
    [breach] = alarms.from_metrics(metrics(ratios))
    assert breach["causes"] == ["text", "image"] and breach["ratio"] == 3.25
    assert (breach["domain"], breach["version"], breach["source"]) == ("general", "1", "server")


@pytest.mark.parametrize("text", ["", metrics({}), metrics(CALM), "# HELP other things\n# TYPE other counter\nother_total 5\n"])
def test_metrics_below_their_limits_or_of_others_are_no_breach(alarms, text):
    assert alarms.from_metrics(text) == []


def test_prometheus_is_asked_first_and_the_server_where_there_is_none(alarms, server, prometheus):
    server.shows(HIGH)
    assert asyncio.run(alarms.look(prometheus.url, server.url)) == []  # Prometheus does not think that it is drift
    assert server.asked["/metrics"] == 0
    [breach] = asyncio.run(alarms.look("", server.url))
    assert (breach["source"], breach["ratio"]) == ("server", 4.0)
    assert asyncio.run(alarms.look("", NOBODY)) is None


AWAY: dict[str, tuple[int, str]] = {
    "an error": (503, "not ready"),
    "a page": (200, "<html>a login page</html>"),
    "another redirect": (302, ""),
    "an object of something else": (200, "{}"),
    "a refusal": (200, '{"status": "error", "error": "no"}'),
    "a list": (200, "[]"),
    "nothing inside": (200, '{"status": "success", "data": null}'),
}


@pytest.mark.parametrize("what", AWAY)
def test_a_prometheus_that_gives_no_answer_of_its_own_is_passed_over_for_the_server(alarms, server, prometheus, what):
    prometheus.says(ALERTS, AWAY[what])
    server.shows(HIGH)
    [breach] = asyncio.run(alarms.look(prometheus.url, server.url))
    assert breach["source"] == "server"


@pytest.mark.parametrize(
    "answer", [(503, ""), (200, "<html>"), (200, "clipft_drift_ratio 3\n")], ids=["error", "page", "others"]
)
def test_a_server_whose_metrics_cannot_be_read_says_nothing(alarms, server, answer):
    server.says("/metrics", answer)
    assert asyncio.run(alarms.look("", server.url)) is None


# The trigger --------------------------------------------------------------------------------------------------------


def test_a_trigger_survives_being_stored(alarms):
    for trigger in (
        alarms.PrometheusDriftTrigger("http://p", "http://s"),
        alarms.PrometheusDriftTrigger("", "http://s", ["general"], once=True, poll=0.5),
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
def test_a_triggerer_killed_while_the_sensor_waits_loses_nothing(alarms, server, prometheus, where):
    """What it knew lies in Airflow's database, as classpath and arguments; whoever takes over sees the breach, once."""
    source, path = (prometheus, ALERTS) if where == "prometheus" else (server, "/metrics")
    url = prometheus.url if where == "prometheus" else ""
    trigger = alarms.PrometheusDriftTrigger(url, server.url, ["general"], once=True, poll=0.1)
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
    [told] = [json.loads(line) for line in said.splitlines()]
    assert [(b["domain"], b["causes"], b["ratio"]) for b in told] == [("general", ["image"], 4.0)]


def test_two_triggers_do_not_share_what_they_told(alarms, prometheus):
    breaches = alarms.from_prometheus([alert()])
    first, second = (alarms.PrometheusDriftTrigger(prometheus.url, NOBODY) for _ in range(2))
    assert [len(t._told(breaches)) for t in (first, first, second)] == [1, 0, 1]


def test_a_breach_is_told_once_for_each_cause(alarms, server, prometheus):
    async def watch() -> list[Any]:
        async with Watching(alarms.PrometheusDriftTrigger(prometheus.url, server.url, poll=QUICK)) as watching:
            await watching.asked(prometheus, path=ALERTS)
            assert watching.told == []
            prometheus.says(ALERTS, fired(alert(value=2.0)), fired(alert(value=9.0)), fired(alert(value=3.0)))
            await watching.asked(prometheus, path=ALERTS)
            assert len(watching.told) == 1
            prometheus.says(ALERTS, fired(alert(), alert(signal="text", value=5.0)))
            await watching.asked(prometheus, path=ALERTS)
            assert len(watching.told) == 2
            prometheus.says(ALERTS, fired(alert(signal="text")))  # one of them is over
            await watching.asked(prometheus, path=ALERTS)
            return watching.told

    first, second = asyncio.run(watch())
    assert (first["causes"], second["causes"]) == (["image"], ["text", "image"])


def test_a_breach_of_another_domain_or_version_is_told_too(alarms, server, prometheus):
    async def watch() -> list[Any]:
        async with Watching(alarms.PrometheusDriftTrigger(prometheus.url, server.url, poll=QUICK)) as watching:
            prometheus.says(ALERTS, fired(alert("general"), alert("medical")))
            await watching.asked(prometheus, path=ALERTS)
            prometheus.says(ALERTS, fired(alert("general", version="2")))
            await watching.asked(prometheus, path=ALERTS)
            return watching.told

    assert [(b["domain"], b["version"]) for b in asyncio.run(watch())] == [("general", "1"), ("medical", "1"), ("general", "2")]


def test_one_look_serves_all_domains(alarms, server, prometheus):
    domains = ["general", "industrial", "medical", "scientific"]

    async def watch() -> list[Any]:
        prometheus.says(ALERTS, fired(*(alert(d) for d in domains)), fired())
        async with Watching(alarms.PrometheusDriftTrigger(prometheus.url, server.url, poll=QUICK)) as watching:
            await watching.asked(prometheus, 3, ALERTS)
            return watching.told

    assert [b["domain"] for b in asyncio.run(watch())] == domains
    assert server.asked["/metrics"] == 0


def test_a_breach_that_lasts_is_told_again_after_a_while(alarms, server, prometheus, monkeypatch):
    monkeypatch.setattr(alarms, "AGAIN", 0.2)
    prometheus.says(ALERTS, fired(alert()))

    async def watch() -> list[Any]:
        async with Watching(alarms.PrometheusDriftTrigger(prometheus.url, server.url, poll=QUICK)) as watching:
            await watching.until(lambda: len(watching.told) >= 3)
            return watching.told

    assert all(b["causes"] == ["image"] for b in asyncio.run(watch()))


def test_only_the_domains_asked_for_are_told(alarms, server, prometheus):
    prometheus.says(ALERTS, fired(alert("general"), alert("medical"), alert("industrial")))

    async def watch() -> list[Any]:
        trigger = alarms.PrometheusDriftTrigger(prometheus.url, server.url, ["medical"], poll=QUICK)
        async with Watching(trigger) as watching:
            await watching.asked(prometheus, path=ALERTS)
            return watching.told

    assert [b["domain"] for b in asyncio.run(watch())] == ["medical"]


@pytest.mark.parametrize("once", [False, True])
def test_without_prometheus_the_servers_metrics_are_told_once_they_last(alarms, server, once):
    async def watch() -> list[Any]:
        trigger = alarms.PrometheusDriftTrigger(NOBODY, server.url, once=once, poll=QUICK)
        async with Watching(trigger) as watching:
            await watching.asked(server)
            assert watching.told == []
            server.shows(HIGH)
            await watching.until(lambda: bool(watching.told))
            if not once:
                await watching.asked(server)
            return watching.told

    [told] = asyncio.run(watch())
    [breach] = told if once else [told]
    assert (breach["domain"], breach["version"], breach["causes"], breach["source"]) == ("general", "1", ["image"], "server")


def told_of(alarms: ModuleType, server: Source, *ratios: Ratios) -> list[Any]:
    """What is told when the server shows these, one at each look, and nothing after them."""

    async def watch() -> list[Any]:
        server.shows(*ratios, CALM)
        async with Watching(alarms.PrometheusDriftTrigger("", server.url, poll=QUICK)) as watching:
            await watching.asked(server, len(ratios) + 4)
            return watching.told

    return asyncio.run(watch())


def test_without_prometheus_one_high_metric_alone_is_not_told(alarms, server):
    assert told_of(alarms, server, CALM, HIGH, CALM, CALM, HIGH) == []
    assert len(told_of(alarms, server, CALM, HIGH, HIGH, HIGH, HIGH, HIGH, HIGH)) == 1


def test_without_prometheus_a_measurement_that_is_read_twice_is_still_one(alarms, server):
    """The server measures at its own pace; until it does again, whoever asks reads the same metric."""
    readings = math.ceil(ServingSettings().drift_seconds / alarms.POLL)
    assert told_of(alarms, server, CALM, *[HIGH] * readings, CALM) == []


def test_without_prometheus_two_signals_that_are_high_once_each_are_not_told(alarms, server):
    other = CALM | {("general", "1", "brightness"): 2.0}
    assert told_of(alarms, server, CALM, HIGH, other, CALM) == []


def test_one_high_metric_before_and_one_after_the_server_was_away_are_not_told(alarms, server):
    async def watch() -> list[Any]:
        server.says("/metrics", (200, metrics(HIGH)), (503, ""), (503, ""), (200, metrics(HIGH)), (200, metrics(CALM)))
        async with Watching(alarms.PrometheusDriftTrigger("", server.url, poll=QUICK)) as watching:
            await watching.asked(server, 9)
            return watching.told

    assert asyncio.run(watch()) == []


def test_while_both_are_down_the_watcher_goes_on_and_tells_once_the_server_is_back(alarms):
    port, gone = free_port(), free_port()

    async def watch() -> list[Any]:
        trigger = alarms.PrometheusDriftTrigger(f"http://127.0.0.1:{gone}", f"http://127.0.0.1:{port}", poll=QUICK)
        async with Watching(trigger) as watching:
            for _ in range(2):
                await asyncio.sleep(10 * QUICK)  # nobody answers
                assert not watching.task.done()
                with Source(port).shows(HIGH) as server:
                    await watching.asked(server)
                assert len(watching.told) == 1
            return watching.told

    [breach] = asyncio.run(watch())
    assert breach["domain"] == "general" and breach["source"] == "server"


def test_asked_for_one_breach_it_ends_with_a_list_of_all_of_that_moment(alarms, server, prometheus):
    prometheus.says(ALERTS, fired(), fired(alert("general"), alert("medical")))

    async def watch() -> list[Any]:
        trigger = alarms.PrometheusDriftTrigger(prometheus.url, server.url, ["general", "medical"], once=True, poll=QUICK)
        async with Watching(trigger) as watching:
            await asyncio.wait_for(watching.task, 30)
            return watching.told

    [told] = asyncio.run(watch())
    assert [b["domain"] for b in told] == ["general", "medical"]

"""The drift sensor, and a real Prometheus for it and for the trigger."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from fixtures.alerts import (  # noqa: F401  (fixtures)
    ALERTS,
    CALM,
    HIGH,
    NOBODY,
    QUICK,
    ROOT,
    Source,
    Watching,
    alarms,
    alert,
    fired,
    free_port,
    prometheus,
    server,
)

from clipft_tasks.core.settings import settings
from serving.inference.settings import ServingSettings

# A real Prometheus --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Source]]:
    """Prometheus with the configuration and the rules of the deployment, and the server that it scrapes."""
    program = shutil.which("prometheus")
    if not program:
        pytest.skip("Prometheus is not installed")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    with Source() as source:
        source.shows(CALM)
        values = {
            "SERVER_ADDRESS": source.url.removeprefix("http://"),
            "ALERTMANAGER_ADDRESS": NOBODY.removeprefix("http://"),
            "METRICS_ADDRESS": NOBODY.removeprefix("http://"),
            "RULES": str(ROOT / "deploy" / "prometheus" / "rules.yml"),
        }
        text = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text().partition("\n")[2]
        for name, value in values.items():
            text = text.replace(name, value)
        (folder / "prometheus.yml").write_text(text)
        command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        try:
            url, end = f"http://127.0.0.1:{port}", time.monotonic() + 30
            while not ready(url):
                assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-3000:]
                time.sleep(0.1)
            yield url, source
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=5).is_success
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_prometheus_tells_a_breach_once_and_again_only_with_another_cause(alarms, real):
    url, source = real
    drifting = {("industrial", "7", "text"): 2.0}

    async def watch() -> list[Any]:
        async with Watching(alarms.PrometheusDriftTrigger(url, NOBODY, ["general"], poll=0.2)) as watching:
            source.shows(HIGH | drifting)
            await watching.until(lambda: bool(watching.told), 30)
            source.shows(HIGH | drifting | {("general", "1", "brightness"): 2.0})
            await watching.until(lambda: len(watching.told) > 1, 30)
            return watching.told

    first, second = asyncio.run(watch())
    assert (first["domain"], first["version"], first["causes"], first["source"]) == ("general", "1", ["image"], "prometheus")
    assert first["ratio"] == pytest.approx(4.0) and first["since"]
    assert second["causes"] == ["image", "brightness"]


@pytest.mark.slow
def test_the_sensor_returns_what_prometheus_knows_of_the_domains_asked_for(alarms, real, sensor, monkeypatch):
    url, source = real
    source.shows(HIGH | {("industrial", "7", "text"): 2.0})
    monkeypatch.setenv("CLIPFT_PROMETHEUS_URL", url)
    settings.cache_clear()

    def found() -> set[str]:
        return {b["domain"] for b in asyncio.run(alarms.look(url, NOBODY)) or []}

    end = time.monotonic() + 60
    while found() != {"general", "industrial"}:
        assert time.monotonic() < end
        time.sleep(0.5)
    [breach] = sensor(domains=["industrial"]).execute({})
    assert (breach["domain"], breach["version"], breach["causes"]) == ("industrial", "7", ["text"])
    assert {b["domain"] for b in sensor().execute({})} == {"general", "industrial"}


# The sensor ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sensor(alarms: ModuleType, home: Path, server: Source, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes sensors in an installation without Prometheus."""
    monkeypatch.setenv("CLIPFT_SERVER_URL", server.url)
    settings.cache_clear()
    return lambda **given: alarms.PrometheusDriftSensor(task_id="watch", **({"poll": QUICK} | given))


@pytest.mark.parametrize("wait", [0, None, "0", 0.0])
def test_the_sensor_skips_what_follows_when_nothing_drifts_now(sensor, wait):
    from airflow.sdk.exceptions import AirflowSkipException

    with pytest.raises(AirflowSkipException):
        sensor(wait_minutes=wait).execute({})


def test_the_sensor_skips_when_nobody_can_be_asked(sensor, monkeypatch):
    from airflow.sdk.exceptions import AirflowSkipException

    monkeypatch.setenv("CLIPFT_SERVER_URL", NOBODY)
    settings.cache_clear()
    with pytest.raises(AirflowSkipException):
        sensor().execute({})


@pytest.mark.parametrize("domains", [None, [], ["general"], ["medical", "general"]])
def test_the_sensor_returns_the_breaches_of_the_domains_asked_for(sensor, server, domains):
    server.shows(HIGH | {("industrial", "7", "image"): 3.0})
    expected = ["general"] if domains else ["general", "industrial"]
    assert [b["domain"] for b in sensor(domains=domains).execute({})] == expected


def test_without_prometheus_the_sensor_looks_twice_before_it_says_anything(sensor, server):
    """The same hysteresis as the rules': one high metric is chance, whoever asks."""
    from airflow.sdk.exceptions import AirflowSkipException

    server.shows(HIGH, CALM)
    with pytest.raises(AirflowSkipException):
        sensor().execute({})
    assert server.asked["/metrics"] == 2
    server.shows(HIGH, CALM | {("general", "1", "text"): 3.0})
    with pytest.raises(AirflowSkipException):
        sensor().execute({})
    server.shows(HIGH | {("general", "1", "text"): 9.0}, HIGH)
    [breach] = sensor().execute({})
    assert breach["causes"] == ["image"]


def test_the_sensors_two_looks_see_two_measurements(alarms):
    assert alarms.PrometheusDriftSensor(task_id="watch").poll > ServingSettings().drift_seconds


def test_a_sensor_that_sees_nothing_does_not_wait_for_a_second_look(sensor, server):
    from airflow.sdk.exceptions import AirflowSkipException

    with pytest.raises(AirflowSkipException):
        sensor(poll=3600).execute({})
    assert server.asked["/metrics"] == 1


def test_what_prometheus_says_needs_no_second_look(sensor, server, prometheus, monkeypatch):
    prometheus.says(ALERTS, fired(alert()))
    monkeypatch.setenv("CLIPFT_PROMETHEUS_URL", prometheus.url)
    settings.cache_clear()
    assert len(sensor(poll=3600).execute({})) == 1


def test_drift_of_other_domains_is_none_for_the_sensor(sensor, server):
    from airflow.sdk.exceptions import AirflowSkipException

    server.shows(HIGH)
    with pytest.raises(AirflowSkipException):
        sensor(domains=["medical"]).execute({})


def test_the_sensor_waits_without_a_worker_and_returns_what_the_trigger_found(sensor, server):
    from airflow.sdk.exceptions import TaskDeferred

    made = sensor(domains=["general"], wait_minutes="2", poll=QUICK)
    with pytest.raises(TaskDeferred) as deferred:
        made.execute({})
    assert deferred.value.timeout.total_seconds() == 120
    _, kwargs = deferred.value.trigger.serialize()
    assert kwargs["domains"] == ["general"] and kwargs["once"] is True

    async def watch() -> list[Any]:
        async with Watching(type(deferred.value.trigger)(**kwargs)) as watching:
            await watching.asked(server)
            server.shows(HIGH | {("industrial", "7", "image"): 3.0})
            await asyncio.wait_for(watching.task, 30)
            return watching.told

    [event] = asyncio.run(watch())
    [breach] = made.resume_execution(deferred.value.method_name, {"event": event}, {})
    assert (breach["domain"], breach["causes"]) == ("general", ["image"])


def test_the_sensor_skips_what_follows_when_no_drift_came_in_time(sensor):
    """A wait that is over is no failure: what follows is skipped, as when it looks once."""
    from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason
    from airflow.sdk.exceptions import AirflowSkipException

    with pytest.raises(AirflowSkipException):
        sensor(wait_minutes=2).resume_execution(TRIGGER_FAIL_REPR, {"error": TriggerFailureReason.TRIGGER_TIMEOUT}, {})

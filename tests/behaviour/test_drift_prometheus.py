"""A real Prometheus, with the deployment's configuration and rules, for the trigger and the sensor."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fixtures.drift_alerts import CALM, HIGH, NOBODY, ROOT, Running, Source, plugin  # noqa: F401  (fixtures)
from fixtures.ports import free_port

from clipft_tasks.core.settings import settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Source]]:
    """Prometheus' address, and the server that it scrapes."""
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


def test_an_alert_is_an_event_once_and_again_only_with_another_signal(plugin, real):
    url, source = real
    drifting = {("industrial", "7", "text"): 2.0}

    async def run() -> list[Any]:
        async with Running(plugin.PrometheusDriftTrigger(url, NOBODY, ["general"], poll=0.2)) as running:
            source.shows(HIGH | drifting)
            await running.until(lambda: bool(running.events), 30)
            source.shows(HIGH | drifting | {("general", "1", "brightness"): 2.0})
            await running.until(lambda: len(running.events) > 1, 30)
            return running.events

    first, second = asyncio.run(run())
    assert (first["domain"], first["version"], first["signals"], first["source"]) == ("general", "1", ["image"], "prometheus")
    assert first["ratio"] == pytest.approx(4.0) and first["since"]
    assert second["signals"] == ["image", "brightness"]


def test_the_sensor_returns_what_prometheus_knows_of_the_domains_asked_for(plugin, real, home, monkeypatch):
    url, source = real
    source.shows(HIGH | {("industrial", "7", "text"): 2.0})
    monkeypatch.setenv("CLIPFT_PROMETHEUS_URL", url)
    settings.cache_clear()

    def found() -> set[str]:
        return {a.domain for a in asyncio.run(plugin.fetch_alerts(url, NOBODY)) or []}

    def sensed(**given: Any) -> list[Any]:
        return plugin.PrometheusDriftSensor(task_id="watch", **given).execute({})

    end = time.monotonic() + 60
    while found() != {"general", "industrial"}:
        assert time.monotonic() < end
        time.sleep(0.5)
    [alert] = sensed(domains=["industrial"])
    assert (alert["domain"], alert["version"], alert["signals"]) == ("industrial", "7", ["text"])
    assert {a["domain"] for a in sensed()} == {"general", "industrial"}

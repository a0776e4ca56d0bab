"""Who is asked about drift: a small server of figures, a Prometheus that says what it is told to, and a watcher of both."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9"  # the port of discard, which nobody listens on
QUICK = 0.02  # seconds between two looks, in tests

Figures = dict[tuple[str, str, str], float]  # (domain, version, signal): figure over its limit


@pytest.fixture(scope="module")
def alarms(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """plugins/clipft_drift.py, with an Airflow home of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        return import_module("clipft_drift")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def metrics(figures: Figures) -> str:
    """The server's /metrics, as far as drift goes."""
    lines = ["# TYPE clipft_drift_ratio gauge"]
    lines += [
        f'clipft_drift_ratio{{domain="{d}",version="{v}",signal="{signal}"}} {ratio}'
        for (d, v, signal), ratio in figures.items()
    ]
    lines += ["# TYPE clipft_drift_items gauge"]
    lines += [f'clipft_drift_items{{domain="{d}",version="{v}",signal="{signal}"}} 128' for d, v, signal in figures]
    return "\n".join(lines) + "\n"


class Source:
    """A small HTTP server on the loopback: one answer after the other by path, the last of them for ever."""

    def __init__(self, port: int = 0) -> None:
        self.answers: dict[str, list[tuple[int, str]]] = {}
        self.asked: dict[str, int] = {}
        source = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                script = source.answers.get(self.path, [(404, "")])
                number = source.asked.get(self.path, 0)
                status, text = script[min(number, len(script) - 1)]
                source.asked[self.path] = number + 1
                self.send_response(status)
                self.send_header("Content-Type", "application/json" if "/api/" in self.path else "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def shows(self, *figures: Figures) -> "Source":
        """What /metrics says from now on."""
        self.answers["/metrics"], self.asked["/metrics"] = [(200, metrics(f)) for f in figures], 0
        return self

    def says(self, path: str, *answers: tuple[int, str]) -> "Source":
        self.answers[path], self.asked[path] = list(answers), 0
        return self

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Source]:
    """The clipft server, as far as an alarm asks it; nothing drifts."""
    with Source() as source:
        yield source.shows(CALM)


@pytest.fixture
def prometheus() -> Iterator[Source]:
    """Prometheus, as far as an alarm asks it; nothing fires."""
    with Source() as source:
        yield source.says(ALERTS, fired())


CALM: Figures = {("general", "1", "image"): 0.5, ("industrial", "7", "image"): 0.2}
HIGH: Figures = CALM | {("general", "1", "image"): 4.0}
ALERTS = "/api/v1/alerts"


def alert(domain: str = "general", signal: str = "image", value: float = 2.0, **more: Any) -> dict[str, Any]:
    """An alert as Prometheus lists it."""
    labels = {"alertname": more.pop("name", "ClipftDrift"), "domain": domain, "signal": signal, "severity": "warning"}
    labels["version"] = more.pop("version", "1")
    at = {"state": "firing", "activeAt": "2026-03-01T10:00:00Z", "value": f"{value:e}", "annotations": {}}
    return {"labels": labels, **at, **more}


def fired(*alerts: dict[str, Any]) -> tuple[int, str]:
    return 200, json.dumps({"status": "success", "data": {"alerts": list(alerts)}})


class Watching:
    """A trigger that runs as Airflow's triggerer runs it, and what it told."""

    def __init__(self, trigger: Any) -> None:
        self.trigger, self.told = trigger, []

    async def __aenter__(self) -> "Watching":
        async def run() -> None:
            async for event in self.trigger.run():
                self.told.append(event.payload)

        self.task = asyncio.create_task(run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def until(self, true: Callable[[], bool], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not true():
            if self.task.done() and self.task.exception():
                raise self.task.exception()
            assert time.monotonic() < end, f"not within {seconds} s; told so far: {self.told}"
            await asyncio.sleep(0.01)

    async def asked(self, source: Source, times: int = 6, path: str = "/metrics") -> None:
        """Wait until it looked so many more times, and thought about all of them but the last."""
        target = source.asked.get(path, 0) + times
        await self.until(lambda: source.asked.get(path, 0) >= target)

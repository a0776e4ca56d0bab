"""What watching costs the server: python -m bench.monitoring_cost

The starter, fine-tuned on monocrystalline elpv, on two servers; all is as delivered, so the window is full and measured every five
seconds. Each server shares one core with eight clients that classify images over HTTP. Two processes differ by more than what is
looked for, and so does one machine at two times; therefore both are asked at once, in rounds in which one keeps its window and the
other does not, turn about, and what counts is how their ratio changes from a round to the next. Needs Linux and two cores that do
nothing else; takes about twenty minutes.
"""

import argparse
import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from http.client import HTTPConnection
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipft_tasks.core.settings import settings

if TYPE_CHECKING:
    from fastapi import FastAPI

PROJECT = Path(__file__).resolve().parents[1]
CLIENTS = 8  # of each server
WARM = 300  # images before anything is measured: more than a window holds


def registered() -> list[bytes]:
    """Train and register the champion; bodies of requests that classify an image of its test split each."""
    from clipft_tasks.data import versioning
    from clipft_tasks.spec import RunSpec
    from clipft_tasks.stages import chain

    spec = RunSpec.from_flat(
        {
            "domain": "industrial", "source": "elpv:mono", "train.epochs": 1, "resolution.train": 128,
            "resolution.evaluate": [128], "gate.rules": ["gain(score) >= -1"],
        }
    )  # fmt: skip
    done: dict[str, Any] = {}
    for name in chain.stages_of(spec):
        done[name] = chain.run_stage(name, spec, done.__getitem__)
        if name == "promote":
            break
    data = versioning.fetch(versioning.find("", "industrial"))
    images = [base64.b64encode(data.image_bytes(row)).decode() for row in data.split("test").itertuples()]
    return [json.dumps({"domain": "industrial", "images": {"base64": p}}).encode() for p in images]


def create_app() -> "FastAPI":
    """The server, with one more route: PUT /watching/true or /watching/false."""
    from serving.inference.app import create_app as delivered
    from serving.inference.security import PUBLIC

    app = delivered()
    kept: dict[str, Any] = {}

    @app.put("/watching/{on}", dependencies=PUBLIC)
    def watching(on: bool) -> None:
        """As if CLIPFT_SERVING_DRIFT had been false meanwhile: windows stay as they are."""
        monitor = app.state.server.monitor
        with monitor._lock:
            if on:
                for watched in kept.values():
                    watched.limit._at = time.monotonic()  # a pause earns no images
                monitor._watched.update(kept)
            else:
                kept.update(monitor._watched)
                monitor._watched.clear()

    return app


class Server:
    """A server process on a free port and one core."""

    def __init__(self, core: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "bench.monitoring_cost:create_app", "--factory", "--port", str(self.port)]
        began = ["taskset", "-c", str(core), *command, "--log-level", "warning"]
        self.process = subprocess.Popen(began, cwd=PROJECT)

    def watch(self, on: bool) -> None:
        http = HTTPConnection("127.0.0.1", self.port, timeout=60)
        http.request("PUT", f"/watching/{on}".lower())
        assert http.getresponse().status == 200
        http.close()

    def get(self, path: str) -> tuple[int, str]:
        http = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            http.request("GET", path)
            answer = http.getresponse()
            return answer.status, answer.read().decode()
        finally:
            http.close()

    def metric(self, name: str) -> float:
        """A metric without labels of /metrics."""
        return next(float(line.split()[1]) for line in self.get("/metrics")[1].splitlines() if line.startswith(f"{name} "))


_bodies: list[bytes] = []  # of the process that plays


def _keep(bodies: list[bytes]) -> None:
    _bodies[:] = bodies


def played(port: int, core: int, seconds: float = 1e9, count: int = 10**9) -> float:
    """Answers a second, while CLIENTS on one core ask for some time or so many times."""
    os.sched_setaffinity(0, {core})
    lock, asked, answered, until = threading.Lock(), 0, 0, time.perf_counter() + seconds

    def client() -> None:
        nonlocal asked, answered
        http = HTTPConnection("127.0.0.1", port, timeout=60)
        while time.perf_counter() < until:
            with lock:
                number, asked = asked, asked + 1
            if number >= count:
                break
            http.request("POST", "/v1/classify", _bodies[number % len(_bodies)], {"content-type": "application/json"})
            answer = http.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}")
            with lock:
                answered += 1
        http.close()

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(lambda _: client(), range(CLIENTS)))
    return answered / (time.perf_counter() - began)


@contextmanager
def served(core: int) -> Iterator[Server]:
    server = Server(core)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                if server.get("/readyz")[0] == 200:
                    break
            except OSError:
                pass
            if time.monotonic() > until or server.process.poll() is not None:
                raise RuntimeError("the server does not start")
            time.sleep(0.3)
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of paired differences, and its 95% interval by resampling the pairs."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (4000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, help="where model and data are kept for the next time; empty: nowhere")
    parser.add_argument("--rounds", type=int, default=104)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one of them")
    asked = parser.parse_args()
    with nullcontext(asked.home) if asked.home else tempfile.TemporaryDirectory() as home:
        for name in [n for n in os.environ if n.startswith("CLIPFT_")]:
            del os.environ[name]
        os.environ["CLIPFT_HOME"] = str(home)
        settings.cache_clear()
        compare(asked.rounds, asked.seconds)


def compare(rounds: int, seconds: float) -> None:
    """Both servers at once, watched in turn."""
    bodies, cores = registered(), sorted(os.sched_getaffinity(0))[:2]
    with ExitStack() as both:
        servers = [both.enter_context(served(core)) for core in cores]
        players = both.enter_context(ProcessPoolExecutor(2, get_context("spawn"), _keep, (bodies,)))

        def play(seconds: float = 1e9, count: int = 10**9) -> list[tuple[float, float]]:
            """Answers a second, and CPU seconds per answer, of either server."""
            before = [server.metric("process_cpu_seconds_total") for server in servers]
            began = time.perf_counter()
            at_once = [players.submit(played, s.port, core, seconds, count) for s, core in zip(servers, cores, strict=True)]
            rates, wall = [f.result() for f in at_once], time.perf_counter() - began
            spent = [s.metric("process_cpu_seconds_total") - b for s, b in zip(servers, before, strict=True)]
            return [(rate, cpu / (rate * wall)) for rate, cpu in zip(rates, spent, strict=True)]

        play(count=WARM)
        found = []
        for number in range(rounds):
            first = number % 4 in (0, 3)  # what a machine gains or loses with time cancels in four rounds
            for server, on in zip(servers, (first, not first), strict=True):
                server.watch(on)
                assert server.get("/v1/drift/industrial")[0] == (200 if on else 404)
            found.append(play(seconds=seconds))
        sums = [sum(s.metric(f"clipft_drift_measuring_seconds_{of}") for s in servers) for of in ("sum", "count")]
    # Two rounds, in one of which the first server is watched and in one the second: half of how their ratio changes.
    ratio = np.log(np.array(found)[:, 0] / np.array(found)[:, 1])
    pairs = ratio[: rounds // 2 * 2].reshape(-1, 2, 2)
    gained = np.where(np.arange(len(pairs))[:, None] % 2 == 0, 1, -1) * (pairs[:, 0] - pairs[:, 1]) / 2
    lost = {"throughput_lost": interval(-gained[:, 0]), "cpu_seconds_more": interval(gained[:, 1])}
    for name, (mean, low, high) in lost.items():
        print(f"{name}: {mean:.2%} [{low:.2%}, {high:.2%}]")
    rate = float(np.median(np.array(found)[:, :, 0]))
    print(json.dumps(lost | {"requests_per_second_and_core": rate, "seconds_per_window": sums[0] / sums[1], "rounds": rounds}))


if __name__ == "__main__":
    main()

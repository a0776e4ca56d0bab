"""What watching costs the server: python -m bench.windows

The starter, fine-tuned on monocrystalline elpv, on two servers of which one keeps no windows (CLIPFT_SERVING_DRIFT=false). Eight
clients classify pictures over HTTP, at one server and then at the other, in pairs of short rounds whose order changes; all else is
as delivered, so the window is full and measured every five seconds. Takes about ten minutes on two cores that do nothing else.
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np

from clipft_tasks.settings import settings

PROJECT = Path(__file__).resolve().parents[1]
CLIENTS = 8
WARM = 300  # pictures before anything is measured: more than a window holds


def registered() -> list[bytes]:
    """Train and register the champion; bodies of requests that classify a picture of its test split each."""
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
    pictures = [base64.b64encode(data.picture(row)).decode() for row in data.split("test").itertuples()]
    return [json.dumps({"domain": "industrial", "images": {"base64": p}}).encode() for p in pictures]


class Server:
    """The server as it is delivered, on a free port."""

    def __init__(self, drift: bool) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        env = os.environ | {"CLIPFT_SERVING_DRIFT": str(drift)}
        command = [sys.executable, "-m", "uvicorn", "serving.app:create_app", "--factory", "--port", str(self.port)]
        self.process = subprocess.Popen([*command, "--log-level", "warning"], cwd=PROJECT, env=env)

    def get(self, path: str) -> tuple[int, str]:
        http = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            http.request("GET", path)
            answer = http.getresponse()
            return answer.status, answer.read().decode()
        finally:
            http.close()

    def figure(self, name: str) -> float:
        """A figure without labels of /metrics."""
        return next(float(line.split()[1]) for line in self.get("/metrics")[1].splitlines() if line.startswith(f"{name} "))

    def played(self, bodies: list[bytes], seconds: float = 1e9, count: int = 10**9) -> tuple[float, float]:
        """Answers a second, and CPU seconds of the server per answer, while CLIENTS ask for some time or so many times."""
        lock, asked, answered, until = threading.Lock(), 0, 0, time.perf_counter() + seconds

        def client() -> None:
            nonlocal asked, answered
            http = HTTPConnection("127.0.0.1", self.port, timeout=60)
            while time.perf_counter() < until:
                with lock:
                    number, asked = asked, asked + 1
                if number >= count:
                    break
                http.request("POST", "/v1/classify", bodies[number % len(bodies)], {"content-type": "application/json"})
                answer = http.getresponse()
                answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"status {answer.status}")
                with lock:
                    answered += 1
            http.close()

        before, began = self.figure("process_cpu_seconds_total"), time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(lambda _: client(), range(CLIENTS)))
        wall, cpu = time.perf_counter() - began, self.figure("process_cpu_seconds_total") - before
        return answered / wall, cpu / answered


@contextmanager
def served(drift: bool) -> Iterator[Server]:
    server = Server(drift)
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
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one round")
    asked = parser.parse_args()
    with nullcontext(asked.home) if asked.home else tempfile.TemporaryDirectory() as home:
        for name in [n for n in os.environ if n.startswith("CLIPFT_")]:
            del os.environ[name]
        os.environ["CLIPFT_HOME"] = str(home)
        settings.cache_clear()
        compare(asked.pairs, asked.seconds)


def compare(pairs: int, seconds: float) -> None:
    """Both servers, round by round."""
    bodies = registered()
    with ExitStack() as both:
        watched, plain = (both.enter_context(served(drift)) for drift in (True, False))
        for server in (watched, plain):
            server.played(bodies, count=WARM)
        assert watched.get("/v1/drift/industrial")[0] == 200 and plain.get("/v1/drift/industrial")[0] == 404
        rounds: dict[Server, list[tuple[float, float]]] = {watched: [], plain: []}
        for number in range(pairs):
            for server in (watched, plain) if number % 2 else (plain, watched):
                rounds[server].append(server.played(bodies, seconds))
        measuring = watched.figure("clipft_drift_measuring_seconds_sum") / watched.figure(
            "clipft_drift_measuring_seconds_count"
        )
    with_, without = np.array(rounds[watched]), np.array(rounds[plain])
    found = {
        "requests_per_second": {"watched": float(np.median(with_[:, 0])), "plain": float(np.median(without[:, 0]))},
        "throughput_lost": interval(1 - with_[:, 0] / without[:, 0]),
        "cpu_seconds_more": interval(with_[:, 1] / without[:, 1] - 1),
        "milliseconds_per_window": 1000 * measuring,
        "pairs": pairs,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    for name in ("throughput_lost", "cpu_seconds_more"):
        mean, low, high = found[name]
        print(f"{name}: {mean:.2%} [{low:.2%}, {high:.2%}]")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

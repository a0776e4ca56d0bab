"""Runs beside one another, each in a process with cores of its own; and means over their seeds."""

import json
import math
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t for the mean of so many seeds
Run = dict[str, Any]


class KeptRuns:
    """What runs found, in a file of JSON lines, so that a bench that ended early goes on where it was."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.lock = path, threading.Lock()
        lines = path.read_text().splitlines() if path and path.exists() else []
        self.found: dict[str, Run] = {json.dumps(kept["ask"]): kept for kept in map(json.loads, lines)}

    def get(self, ask: Run) -> Run | None:
        kept = self.found.get(json.dumps(ask))
        return kept and kept["found"]

    def add(self, ask: Run, found: Run, seconds: float) -> None:
        with self.lock:
            self.found[json.dumps(ask)] = kept = {"ask": ask, "found": found, "seconds": seconds}
            if self.path:
                with self.path.open("a") as file:
                    file.write(json.dumps(kept) + "\n")

    @property
    def longest(self) -> float:
        """Seconds of the longest run so far."""
        with self.lock:
            return max((kept["seconds"] for kept in self.found.values()), default=0.0)


class Lanes:
    """As many runs at once as fit on this machine, on its CPU.

    Args:
        module: with a `main` that calls `arguments`; it is started anew for each run.
        cores: of each run; all that there are, where those are fewer.
        kept: a file of what runs found, which are not run again; None: nothing is kept.
        minutes: no run is begun that would probably end later; what is left is said, and the program ends.
    """

    def __init__(self, module: str, cores: int, kept: Path | None = None, minutes: float = math.inf) -> None:
        there = sorted(os.sched_getaffinity(0))
        self.module, cores = module, min(cores, len(there))
        self.kept, self.end = KeptRuns(kept), time.monotonic() + 60 * minutes
        self.free: queue.Queue[list[int]] = queue.Queue()
        for lane in range(len(there) // cores):
            self.free.put(there[lane * cores : (lane + 1) * cores])
        self.count = self.free.qsize()

    def run(self, asks: Sequence[Run]) -> list[Run]:
        """What each found, in order; the first asked begin first. Ends the program where `minutes` do not suffice."""
        with ThreadPoolExecutor(self.count) as pool:
            found = list(pool.map(self._one, asks))
        if left := found.count(None):
            raise SystemExit(f"{len(asks) - left} of {len(asks)} runs are there; the same command goes on with the others.")
        return [run for run in found if run is not None]

    def _one(self, ask: Run) -> Run | None:
        if (known := self.kept.get(ask)) is not None:
            return known
        cores = self.free.get()
        began = time.monotonic()
        try:
            if began + self.kept.longest > self.end:
                return None
            command = [sys.executable, "-m", self.module, "--one", json.dumps(ask | {"cores": cores})]
            env = os.environ | {"OMP_NUM_THREADS": str(len(cores)), "CUDA_VISIBLE_DEVICES": ""}
            done = subprocess.run(command, stdout=subprocess.PIPE, env=env, text=True, check=True)
        finally:
            self.free.put(cores)
        found: Run = json.loads(done.stdout.splitlines()[-1])
        self.kept.add(ask, found, time.monotonic() - began)
        print(f"{json.dumps(ask)}: {json.dumps(found)}", file=sys.stderr, flush=True)
        return found


def arguments(parser: ArgumentParser, one: Callable[[Run], Run]) -> Namespace:
    """The command line of a bench that runs in lanes; ends here, with `one`, where it is one of the runs."""
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="of each run")
    parser.add_argument("--one", help="a single run, as JSON; what the others are made of")
    asked = parser.parse_args()
    if asked.one:
        from clipft_tasks.devices import hardware

        ask = json.loads(asked.one)
        os.sched_setaffinity(0, ask.pop("cores"))
        hardware.use_threads(hardware.usable_cores())
        print(json.dumps(one(ask)))
        raise SystemExit
    return asked


def mean(values: list[float]) -> dict[str, float]:
    """Mean over seeds with its 95% interval."""
    spread = T95.get(len(values), 1.96) * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {
        "value": statistics.fmean(values),
        "low": statistics.fmean(values) - spread,
        "high": statistics.fmean(values) + spread,
    }

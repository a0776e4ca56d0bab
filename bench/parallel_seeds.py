"""Runs beside one another, each in a process with cores of its own; and means over their seeds."""

import json
import math
import os
import queue
import statistics
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t for the mean of so many seeds
Run = dict[str, Any]


class Lanes:
    """As many runs at once as fit on this machine.

    Args:
        module: with a `main` that calls `arguments`; it is started anew for each run.
        cores: of each run; all that there are, where those are fewer.
    """

    def __init__(self, module: str, cores: int) -> None:
        there = sorted(os.sched_getaffinity(0))
        self.module, cores = module, min(cores, len(there))
        self.free: queue.Queue[list[int]] = queue.Queue()
        for lane in range(len(there) // cores):
            self.free.put(there[lane * cores : (lane + 1) * cores])
        self.count = self.free.qsize()

    def run(self, asks: Sequence[Run]) -> list[Run]:
        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(self._one, asks))

    def _one(self, ask: Run) -> Run:
        cores = self.free.get()
        try:
            command = [sys.executable, "-m", self.module, "--one", json.dumps(ask | {"cores": cores})]
            env = os.environ | {"OMP_NUM_THREADS": str(len(cores))}
            done = subprocess.run(command, stdout=subprocess.PIPE, env=env, text=True, check=True)
        finally:
            self.free.put(cores)
        found: Run = json.loads(done.stdout.splitlines()[-1])
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

"""Steps of a bench, each in a process of its own, so that its peak memory is its own."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of a unit of ru_maxrss


@dataclass(frozen=True)
class Cost:
    """What a step took. peak_bytes: of its process, start_bytes: what that held before."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    start_bytes: int


def measured(work: Callable[[], object]) -> Cost:
    """What some work takes in this process."""
    start, began, cpu = _peak(), time.perf_counter(), time.process_time()
    work()
    return Cost(round(time.perf_counter() - began, 2), round(time.process_time() - cpu, 2), _peak(), start)


def told(cost: Cost) -> None:
    """Print a step's cost for the process that started it."""
    print(json.dumps(asdict(cost)))


def each_alone(
    module: str, steps: Iterable[str], more: Sequence[str], timeout: float | None = None, env: Mapping[str, str] | None = None
) -> dict[str, dict[str, float]]:
    """The cost of each step by name, a printed row each; of one that fails or takes too long there is a line on standard error.

    Args:
        module: takes `--step` and `more`, and ends with `told`.
        timeout: seconds a step may take.
        env: on top of this process's environment.
    """
    found = {}
    steps = list(steps)
    width = max(map(len, steps))
    for name in steps:
        command = [sys.executable, "-m", module, "--step", name, *more]
        try:
            done = subprocess.run(command, env=os.environ | (env or {}), capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            print(f"{name} took more than {timeout:.0f} s", file=sys.stderr)
            continue
        if done.returncode:
            print(f"{name} failed\n{done.stderr[-2000:]}", file=sys.stderr)
            continue
        cost = Cost(**json.loads(done.stdout.splitlines()[-1]))
        shown = f"{cost.seconds:8.1f} s {cost.cpu_seconds:8.1f} s of a core {cost.peak_bytes / 1e6:7.0f} MB peak"
        print(f"| {name:<{width}} | {shown} {cost.start_bytes / 1e6:6.0f} at start |", flush=True)
        found[name] = asdict(cost)
    return found


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT

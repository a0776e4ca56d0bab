"""Forty small tasks over two workers beside as many on the control plane's own executor: python -m bench.worker_tasks

Starts the team's services as processes in network namespaces (Linux, root; see tests/team/engine.py), joins two workers through the
gateway, and prints for each executor what the tasks cost. `--interpreters` gives every task a fresh interpreter, as a Mac needs.
"""

import argparse
import json
import os
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from clipft_tasks.devices.hardware import usable_cores

PROJECT = Path(__file__).resolve().parents[1]
WORKERS = ("left", "right")


def metrics(tasks: list[dict[str, Any]], at_once: int) -> dict[str, float]:
    """Of one executor's tasks: seconds from the first start to the last end, a task's own, and what each costs a slot."""

    def seconds(moment: str) -> float:
        return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()

    wall = max(seconds(t["end_date"]) for t in tasks) - min(seconds(t["start_date"]) for t in tasks)
    inside = [seconds(t["end_date"]) - seconds(t["start_date"]) for t in tasks]
    return {
        "tasks": len(tasks),
        "at_once": at_once,
        "wall_seconds": round(wall, 1),
        "median_seconds": round(sorted(inside)[len(inside) // 2], 2),
        "seconds_a_task_and_slot": round(wall * at_once / len(tasks), 2),
        "tasks_per_hour": round(3600 * len(tasks) / wall),
    }


def compared(tasks: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The metrics of each executor, of one run of the DAG `forty` over two workers."""
    return {
        "two workers, one task at a time each": metrics([t for t in tasks if t["task_id"] == "on_workers"], len(WORKERS)),
        "LocalExecutor, two at a time": metrics([t for t in tasks if t["task_id"] == "here"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--interpreters", action="store_true")
    given = parser.parse_args()
    sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]
    from team.fleet import fleet, until

    with tempfile.TemporaryDirectory() as folder, fleet(Path(folder, "fleet")) as plane:
        fresh = {"AIRFLOW__CORE__EXECUTE_TASKS_NEW_PYTHON_INTERPRETER": str(given.interpreters)}
        for name in WORKERS:
            plane.worker(name, **fresh)
        for name in WORKERS:
            until(lambda name=name: "takes tasks of the queue" in plane.log(name), 400, name)
        plane.airflow.unpause("forty")
        run = plane.run("forty", {"count": given.count})
        plane.finished("forty", run, 1800)
        tasks = plane.airflow.tasks("forty", run)
    out = compared(tasks)
    print("| | at once | first start to last end, s | median of a task, s | a task and slot, s | tasks an hour |")
    print("|---|---|---|---|---|---|")
    for name, f in out.items():
        cells = ("at_once", "wall_seconds", "median_seconds", "seconds_a_task_and_slot", "tasks_per_hour")
        print(f"| {name} | {' | '.join(f'{f[c]:g}' for c in cells)} |")
    print(json.dumps(out | {"cores": usable_cores(), "load": os.getloadavg()[0], "interpreters": given.interpreters}))


if __name__ == "__main__":
    main()

"""A DAG run on the terminal: its tasks as they come, with what their stages say."""

import time
from collections.abc import Callable
from typing import Any, TypeAlias

from rich.console import Console

from clipft_tasks.core.errors import ClipftError, TransientError
from clipft_tasks.ops.airflow_client import Airflow, TaskInstance
from deploy.local.environment import address

Summary: TypeAlias = dict[str, Any]  # of a demo: JSON for whoever reads it, shown on one screen
LIMIT = 1500  # seconds for a run; two cores need about a third of it

console = Console(highlight=False)


def follow(airflow: Airflow, dag: str, run: str, meanwhile: Callable[[], None] = lambda: None) -> str:
    """Show what a run does until it is done; returns its id.

    Args:
        meanwhile: called between two looks.
    Raises: ClipftError with the failed task's own words.
    """
    console.print(f"[dim]{address('airflow')}/dags/{dag}/runs/{run}[/]")
    seen: dict[tuple[str, int, int], int] = {}
    ended: set[tuple[str, int, int]] = set()
    until = time.monotonic() + LIMIT
    while True:
        state = airflow.state(dag, run)
        for task in sorted(airflow.tasks(dag, run), key=lambda t: t["start_date"] or "~"):
            key = (task["task_id"], task["map_index"], task["try_number"])
            if task["state"] in ("running", "success", "failed", "up_for_retry") and key not in ended and task["start_date"]:
                if key not in seen:
                    index = f" {task['rendered_map_index'] or ''}" if task["map_index"] >= 0 else ""
                    console.print(
                        f"[bold]{task['task_id']}{index}[/]"
                        + (f" (try {task['try_number']})" if task["try_number"] > 1 else "")
                    )
                _show_log(airflow, dag, run, task, seen, key)
                if task["state"] != "running":
                    ended.add(key)
        if state == "success":
            return run
        if state == "failed":
            failed = [t for t in airflow.tasks(dag, run) if t["state"] == "failed"]
            words = [line for t in failed for line in airflow.log(dag, run, t) if line.strip()][-3:]
            names = ", ".join(t["task_id"] for t in failed)
            raise ClipftError(
                f"{dag}, task {names}",
                " ".join(words),
                f"See {address('airflow')}/dags/{dag}/runs/{run}.",
                code="demo.task_failed",
            )
        if time.monotonic() > until:
            raise ClipftError(
                dag,
                f"it did not end within {LIMIT} s",
                f"See {address('airflow')}/dags/{dag}/runs/{run}.",
                code="demo.too_slow",
            )
        meanwhile()
        time.sleep(0.7)


def _show_log(
    airflow: Airflow, dag: str, run: str, task: TaskInstance, seen: dict[tuple[str, int, int], int], key: tuple[str, int, int]
) -> None:
    """The stage's own lines, without Airflow's."""
    told = seen.setdefault(key, 0)
    try:
        lines = airflow.log(dag, run, task)
    except TransientError:
        return
    for line in lines[told:]:
        console.print(f"  {line.rstrip()}", style="dim", markup=False)
    seen[key] = max(told, len(lines))

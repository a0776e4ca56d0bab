"""A DAG for tests and bench/worker_tasks.py: small tasks on a worker's queue, and as many on the control plane's own executor."""

import os
import uuid
from pathlib import Path

from airflow.sdk import dag, task

QUEUE = os.environ.get("CLIPFT_ACCELERATOR_QUEUE", "cpu")


def leave(number: int) -> str:
    """A mark that this task ran here: one file for each time it does. Returns the worker's name ("" on the control plane)."""
    folder = Path(os.environ["CLIPFT_HOME"]) / "ran"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}-{uuid.uuid4().hex}").touch()
    return os.environ.get("CLIPFT_WORKER_NAME", "")


@dag(schedule=None, catchup=False, params={"count": 40}, max_active_tasks=64, default_args={"retries": 2})
def forty() -> None:
    @task
    def numbers(params: dict | None = None) -> list[int]:
        return list(range((params or {})["count"]))

    @task(queue=QUEUE, executor="EdgeExecutor")
    def on_workers(number: int) -> str:
        return leave(number)

    @task(executor="LocalExecutor")
    def here(number: int) -> str:
        return leave(number)

    counted = numbers()
    # One kind after the other, so that neither waits for the other's processor.
    on_workers.expand(number=counted) >> here.expand(number=counted)


forty()

"""Airflow's scheduler, which has loaded what tasks import: `LocalExecutor` forks each task from it, and finds that there.

Without this every task of a run imports PyTorch, MLflow and others anew, for longer than many of them work. None of these starts
a thread or touches a device when it is imported, and clipft itself is not among them, so that a task always runs the code of the
day. It schedules from its first second: they are loaded one by one while it has nothing to do, and before the first task at the
latest. On macOS Airflow gives each task a fresh interpreter (Metal does not survive a fork), so nothing is loaded there.
"""

import importlib
import logging
import os
import sys
from contextlib import suppress

LIBRARIES = ("torch", "open_clip", "mlflow", "pandas", "great_expectations", "dvc.repo", "sklearn", "matplotlib.figure")


def load(libraries: list[str]) -> None:
    """Import them, and take them off the list."""
    logging.disable(logging.INFO)  # some tell how they are built
    while libraries:
        with suppress(ModuleNotFoundError):  # what an image leaves out, its tasks do without
            importlib.import_module(libraries.pop(0))
    logging.disable(logging.NOTSET)


def main() -> None:
    from airflow.__main__ import main as airflow
    from airflow.executors import local_executor

    class Executor(local_executor.LocalExecutor):
        """Forks its workers when there is a task for them, and does not outlive one that was killed."""

        left = list(LIBRARIES) if sys.platform != "darwin" else []

        def sync(self) -> None:
            if self.left:
                load([self.left.pop(0)])
            super().sync()

        def _spawn_workers_with_gc_freeze(self, spawn_number: int) -> None:
            if self._unread_messages.value:  # not at the start
                load(self.left)
                super()._spawn_workers_with_gc_freeze(spawn_number)  # type: ignore[no-untyped-call]  # as typed as Airflow is

        def _check_workers(self) -> None:
            """A worker that waits for tasks holds the lock of their queue. Killed, it never lets go, and no other would get
            any: the scheduler ends, is started again, and finds the tasks that were lost."""
            if lost := [worker.pid for worker in self.workers.values() if worker.exitcode not in (None, 0)]:
                self.log.warning("Worker processes %s were killed: the scheduler starts again.", lost)
                os._exit(1)
            super()._check_workers()  # type: ignore[no-untyped-call]

    local_executor.LocalExecutor = Executor  # type: ignore[misc]
    sys.argv = ["airflow", "scheduler", "--skip-serve-logs"]
    airflow()


if __name__ == "__main__":
    main()

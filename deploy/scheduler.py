"""Airflow's scheduler, which has loaded what tasks import: `LocalExecutor` forks each task from it, and finds that there.

Without this every task of a run imports PyTorch, MLflow and others anew, for longer than many of them work. None of these starts
a thread or touches a device when it is imported, and clipft itself is not among them, so that a task always runs the code of the
day. On macOS Airflow gives each task a fresh interpreter (Metal does not survive a fork), so nothing is loaded there.
"""

import importlib
import sys
from contextlib import suppress

LIBRARIES = ("torch", "open_clip", "mlflow", "pandas", "great_expectations", "dvc.repo", "sklearn", "matplotlib.figure")


def load() -> None:
    for name in LIBRARIES:
        with suppress(ModuleNotFoundError):  # what an image leaves out, its tasks do without
            importlib.import_module(name)


def main() -> None:
    from airflow.__main__ import main as airflow

    if sys.platform != "darwin":
        load()
    sys.argv = ["airflow", "scheduler", "--skip-serve-logs"]
    airflow()


if __name__ == "__main__":
    main()

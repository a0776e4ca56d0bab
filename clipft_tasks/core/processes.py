"""Processes that do a part of the work, started afresh."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.popen_spawn_posix import Popen
from multiprocessing.process import BaseProcess
from types import ModuleType

_hiding = threading.Lock()


@contextmanager
def _without_main() -> Iterator[None]:
    """A program without a file of its own. Python would run it again in the new process, to find there what was defined in it."""
    with _hiding:
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:
        with _without_main():
            return SpawnProcess._Popen(process_obj)


class _Context(SpawnContext):
    Process = _Process


def fresh_pool(workers: int, initializer: Callable[[], object]) -> ProcessPoolExecutor:
    """A pool of processes that import what they are given, and do not run this process's program again: inside a task of Airflow
    that would be `airflow`, which refuses to start there. Functions must be of importable modules."""
    return ProcessPoolExecutor(workers, mp_context=_Context(), initializer=initializer)

"""Python programs that start in a moment: forked from a process that has imported what they import, which takes longer than most
tests. For tests of what a program does; how it starts, and what it imports for that, is seen where it is run as a person would.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from multiprocessing import forkserver
from pathlib import Path

import pytest

from deploy.scheduler import LIBRARIES

ROOT = Path(__file__).parents[1]
# What clipft's own modules and their libraries import, some of it only when it is first used.
IMPORTED = (
    *LIBRARIES,
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "pytest",
    "serving.app",
    "uvicorn.protocols.http.httptools_impl",
)
SERVER = "import uvicorn; uvicorn.main()"


@cache
def _forks() -> multiprocessing.context.ForkServerContext:
    """The one of this test process; it ends with it."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(list(IMPORTED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # a process with threads is not forked
        patch.chdir(ROOT)  # where it finds the code
        forkserver.ensure_running()
    return forks


class Program:
    """What `subprocess.Popen` is of `python -c`, by the same names."""

    def __init__(
        self, code: str, *arguments: object, environment: Mapping[str, str] | None = None, log: Path | None = None
    ) -> None:
        """Args: environment: the whole of it; log: where it writes all it says, else to `out` and `err`."""
        self._folder = tempfile.TemporaryDirectory()
        self.out, self.err = (log or Path(self._folder.name) / name for name in ("out", "err"))
        asked = (
            code,
            [str(a) for a in arguments],
            dict(os.environ if environment is None else environment),
            self.out,
            self.err,
        )
        self._process = _forks().Process(target=_become, args=asked, daemon=True)
        self._process.start()
        self.pid = int(self._process.pid or 0)
        self.terminate, self.kill = self._process.terminate, self._process.kill

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked program", timeout or 0)
        return self._process.exitcode


def run(code: str, *arguments: object, environment: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """What `subprocess.run` is of it."""
    program = Program(code, *arguments, environment=environment)
    return subprocess.CompletedProcess(code, program.wait(), program.out.read_text(), program.err.read_text())


def _become(code: str, arguments: list[str], environment: dict[str, str], out: Path, err: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for there, here in ((out, 1), (err, 2)):
        os.dup2(os.open(there, os.O_WRONLY | os.O_CREAT | os.O_APPEND), here)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})

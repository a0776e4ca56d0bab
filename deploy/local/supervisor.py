"""Runs programs of the Procfile, starts again what ends by itself, and takes all of them down together.

`python -m deploy.local.supervisor NAME…` prints what they say, a program's name before each line, until it is sent SIGTERM.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from types import FrameType
from typing import IO

import psutil

from clipft_tasks.ops.stack_processes import SUPERVISOR, note

from .environment import PROJECT

SOON = 30.0  # seconds: what ends before that has not started well
TRIES = 3  # of a program that has not started well yet; then everything stops, and who waits for it is told
LONGEST = 30.0  # seconds between two starts of a program
PATIENCE = 12.0  # seconds that programs get to end by themselves
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


class Supervisor:
    """Keeps some programs running.

    Args:
        commands: of a shell, by name.
        record: is called with who runs whenever that changes.
    """

    def __init__(self, commands: Mapping[str, str], record: Callable[[Mapping[str, int]], None]) -> None:
        self.commands, self.record = commands, record
        self.running: dict[int, str] = {}
        self._handles: dict[str, subprocess.Popen[bytes]] = {}  # kept, since one that is collected would ask for its own status
        self._began: dict[str, float] = {}
        self._due = dict.fromkeys(commands, 0.0)
        self._quick = dict.fromkeys(commands, 0)  # ends too soon after a start, in a row
        self._well: set[str] = set()  # who ran for a while, once
        self._over = False
        self._print = threading.Lock()

    def run(self) -> int:
        """Until SIGTERM or SIGINT, or until a program does not start at all; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        if sys.platform == "linux":  # what a program leaves behind when it is killed becomes a child of this one
            ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
        while not self._over:
            for name in [name for name, due in self._due.items() if due <= time.monotonic()]:
                self._start(name)
            for pid, status in self._ended():
                if (name := self.running.pop(pid, "")) and not self._restarts(name, pid, status):
                    self._stop()
                    return 1
            time.sleep(0.1)
        self._stop()
        return 128 + signal.SIGTERM

    def _start(self, name: str) -> None:
        del self._due[name]
        process = subprocess.Popen(
            self.commands[name], shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, cwd=PROJECT,
        )  # fmt: skip
        self.running[process.pid], self._handles[name] = name, process
        self._began[name] = time.monotonic()
        assert process.stdout
        threading.Thread(target=self._copy, args=(name, process.stdout), daemon=True).start()
        self._say(SUPERVISOR, f"{name} started (process {process.pid})")
        self.record({name: pid for pid, name in self.running.items()})

    def _restarts(self, name: str, pid: int, status: int) -> bool:
        """See to what a program left, and when it is started again; False: it does not start at all."""
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        self._clear()
        soon = time.monotonic() - self._began[name] < SOON
        self._quick[name] = self._quick[name] + 1 if soon else 0
        if not soon:
            self._well.add(name)
        self._say(SUPERVISOR, f"{name} ended with {status}")
        if self._quick[name] >= TRIES and name not in self._well:
            self._say(SUPERVISOR, f"{name} did not start in {TRIES} tries: all others are stopped")
            return False
        self._due[name] = time.monotonic() + min(LONGEST, 2.0 ** self._quick[name])
        return True

    def _clear(self) -> None:
        """Kill children that are no program of ours: those of a program that ended."""
        for child in psutil.Process().children():
            if child.pid not in self.running:
                for process in (*child.children(recursive=True), child):
                    with suppress(psutil.Error):
                        process.kill()

    def _ended(self) -> list[tuple[int, int]]:
        """Children that ended since, with their exit status (negative: of a signal)."""
        found = []
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                found.append((ended[0], os.waitstatus_to_exitcode(ended[1])))
                if name := self.running.get(ended[0]):
                    self._handles[name].returncode = found[-1][1]
        return found

    def _stop(self) -> None:
        """End all programs, and whatever they left."""
        for number, seconds in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, 5.0)):
            for pid in self.running:
                with suppress(OSError):
                    os.killpg(pid, number)
            until = time.monotonic() + seconds
            while self.running and time.monotonic() < until:
                for pid, _ in self._ended():
                    self.running.pop(pid, None)
                time.sleep(0.05)
        self._clear()
        until = time.monotonic() + 5.0
        while (self._ended() or psutil.Process().children()) and time.monotonic() < until:
            time.sleep(0.05)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._over = True

    def _copy(self, name: str, said: IO[bytes]) -> None:
        for line in said:
            self._say(name, line.decode(errors="replace").rstrip())

    def _say(self, name: str, line: str) -> None:
        with self._print:
            print(f"{datetime.now():%H:%M:%S} {name:13} | {line}", flush=True)


def programs() -> dict[str, str]:
    """The Procfile: commands by name."""
    lines = (PROJECT / "Procfile").read_text().splitlines()
    return {name: command for name, _, command in (line.partition(": ") for line in lines) if command}


if __name__ == "__main__":
    known = programs()
    sys.exit(Supervisor({name: known[name] for name in sys.argv[1:]}, note).run())

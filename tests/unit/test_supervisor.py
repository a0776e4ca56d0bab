"""The embedded stack's programs: what ends is started again, what it left behind is ended, and all end together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from clipft_tasks.ops import stack_processes

PROJECT = Path(__file__).resolve().parents[2]
RUN = """
import sys
from clipft_tasks.ops import stack_processes
from deploy.local import supervisor
supervisor.SOON = float(sys.argv[1])
commands = dict(zip(sys.argv[2::2], sys.argv[3::2]))
sys.exit(supervisor.Supervisor(commands, stack_processes.note).run())
"""
# A program with a child in a session of its own, as a task of Airflow is.
PARENT = f"""{sys.executable} -c 'import os, subprocess, time; print(
subprocess.Popen(["sleep", "900"], start_new_session=True).pid, flush=True); time.sleep(900)'"""


@pytest.fixture
def supervise(home):
    """Starts a supervisor of some commands; it, and its lines so far."""
    started = []

    def start(soon: float = 0, **commands: str) -> tuple[subprocess.Popen, Callable[[], list[str]]]:
        log = home.parent / "log"
        asked = [sys.executable, "-c", RUN, str(soon), *(word for pair in commands.items() for word in pair)]
        with log.open("w") as out:
            process = subprocess.Popen(asked, cwd=PROJECT, stdout=out, stderr=out)
        started.append(process)
        return process, lambda: log.read_text().splitlines()

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


def until(true: Callable[[], object], seconds: float = 60) -> object:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def said(lines: Callable[[], list[str]], name: str) -> list[str]:
    return [line.split(" | ")[1] for line in lines() if line.split()[1] == name]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whose a lost child is")
def test_a_killed_program_is_started_again_and_what_it_left_behind_is_ended(supervise):
    process, lines = supervise(first="echo up; exec sleep 900", second=PARENT)
    left = int(until(lambda: said(lines, "second"))[0])
    before = stack_processes.programs()
    assert before["supervisor"].pid == process.pid and before.keys() == {"supervisor", "first", "second"}
    before["second"].kill()
    until(lambda: len(said(lines, "second")) == 2)
    assert not psutil.pid_exists(left)
    after = until(lambda: (now := stack_processes.programs()).get("second") != before["second"] and now)
    assert after["first"] == before["first"] and len(said(lines, "first")) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert not [p for p in (*after.values(), *before.values()) if p.is_running()]
    assert not psutil.pid_exists(int(said(lines, "second")[1]))


def test_where_a_program_does_not_start_at_all_the_others_end_too(supervise):
    process, lines = supervise(soon=900, well="echo $$; exec sleep 900", ill="echo wrong; exit 3")
    assert process.wait(60) == 1
    assert said(lines, "ill") == ["wrong"] * 3 and "ill did not start" in lines()[-1]
    with pytest.raises(ProcessLookupError):
        os.kill(int(said(lines, "well")[0]), 0)

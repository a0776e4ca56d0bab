"""The worker at work: `airflow edge worker` under watch, started only on the control plane's code, started again when it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from ..core.console import say
from ..core.errors import ClipftError, TransientError
from ..core.files import atomic_write
from ..core.settings import settings
from . import checks
from .membership import ControlPlane, Membership
from .service import STOPPING, SleepInhibitor

ASK = 60.0  # seconds between two looks at the control plane
WAIT = (5.0, 60.0)  # seconds until the next try, first and longest


class Runner:
    """One `clipft worker run`.

    SIGINT drains: no new task, the one that runs is finished. SIGTERM (or a second SIGINT) hands it over: the task writes
    its checkpoint, sends it to MLflow and ends, so that another worker goes on with it.
    """

    def __init__(self, member: Membership, ask: float = ASK, wait: tuple[float, float] = WAIT) -> None:
        self._member, self._ask, self._wait = member, ask, wait
        self._edge: subprocess.Popen[bytes] | None = None
        self._stop: signal.Signals | None = None
        self._awake = SleepInhibitor()
        self._trouble = ""  # why the running worker takes no new tasks

    def run(self) -> None:
        """Until drained or told to stop. Raises ClipftError when the control plane turns this worker away, or runs other code."""
        with _SingleInstance():
            before = {s: signal.signal(s, self._signal) for s in (signal.SIGTERM, signal.SIGINT)}
            try:
                self._run()
            finally:
                self._awake.hold(False)
                self._end()
                for number, handler in before.items():
                    signal.signal(number, handler)
                _state_file().unlink(missing_ok=True)

    def _run(self) -> None:
        waited = self._wait[0]
        while self._stop is None:
            try:
                require_compatibility(self._member.ask())
            except TransientError as error:
                self._tell("waiting", f"{error} Trying again in {waited:.0f} s.")
                self._sleep(waited)
                waited = min(2 * waited, self._wait[1])
                continue
            self._tell("running", f"Worker {self._member.name} takes tasks of the queue {self._member.queue}.")
            self._start()
            began = time.monotonic()
            self._watch()
            if self._trouble:
                raise ClipftError("the worker", self._trouble, "", code="worker.turned_away")
            if self._stop is None:
                waited = self._wait[0] if time.monotonic() - began > 60 else min(2 * waited, self._wait[1])
                self._tell("waiting", f"Airflow's worker ended; trying again in {waited:.0f} s. Its last lines say why.")
                self._sleep(waited)
        say("The worker has stopped.")

    def _start(self) -> None:
        program = str(Path(sys.executable).with_name("airflow"))
        command = [program, "edge", "worker", "-q", self._member.queue, "-c", "1", "-H", self._member.name]
        # A session of its own: a Ctrl-C in this terminal is for us to pass on.
        self._edge = subprocess.Popen(command, env=self._member.environment(), start_new_session=True)

    def _watch(self) -> None:
        """See Airflow's worker through to its end."""
        assert self._edge is not None
        asked, since = time.monotonic(), 0.0
        told: signal.Signals | None = None
        tasks: set[psutil.Process] = set()
        while self._edge.poll() is None:
            time.sleep(0.5)
            tasks = _tasks(self._edge.pid)
            self._awake.hold(bool(tasks))
            if self._stop is not None and self._stop != told:
                drains = self._stop == signal.SIGINT
                self._tell("draining", "No new tasks; the one that runs is finished." if drains else "The task is handed over.")
                self._edge.send_signal(self._stop)
                if told is not None:  # Airflow's worker heeds one signal only
                    for task in tasks:
                        _signal(task, self._stop)
                told, since = self._stop, time.monotonic()
            if told == signal.SIGTERM and time.monotonic() - since > STOPPING - 20:
                say("The task does not end; it is killed. Its retry goes on from the last checkpoint.")
                break
            if told is None and time.monotonic() - asked > self._ask:
                asked = time.monotonic()
                self._look()
        self._end(tasks)
        self._awake.hold(False)

    def _look(self) -> None:
        """Ask whether this worker may go on; if not, it takes no new tasks."""
        try:
            require_compatibility(self._member.ask())
        except TransientError:
            pass  # Airflow's worker waits for it as well
        except ClipftError as error:
            self._trouble = f"{error.why}. {error.fix}"
            say(f"No new tasks: {error}")
            self._stop = signal.SIGINT

    def _signal(self, number: int, frame: FrameType | None) -> None:
        self._stop = signal.Signals(number) if self._stop is None else signal.SIGTERM

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._stop is None and time.monotonic() < until:
            time.sleep(0.2)

    def _end(self, tasks: set[psutil.Process] | None = None) -> None:
        """Leave nothing behind: a task that outlived its worker would train beside its own retry."""
        left = set(tasks or ())
        if self._edge is not None and self._edge.poll() is None:
            left |= set(_process_tree(self._edge.pid))
        left |= {child for task in list(left) for child in _process_tree(task.pid)}
        for process in left:
            _signal(process, signal.SIGTERM)
        _, stubborn = psutil.wait_procs(list(left), timeout=30)
        for process in stubborn:
            _signal(process, signal.SIGKILL)
        if self._edge is not None:
            self._edge.wait()

    def _tell(self, state: str, message: str) -> None:
        say(message)
        content = {
            "pid": os.getpid(),
            "created": psutil.Process().create_time(),
            "state": state,
            "said": message,
            "at": time.time(),
        }
        atomic_write(_state_file(), json.dumps(content))


def require_compatibility(theirs: ControlPlane) -> None:
    """Raise ClipftError unless clock, versions and code are the control plane's."""
    wrong = [line for line in checks.check_compatibility(theirs) if not line.right]
    if wrong:
        what = "; ".join(line.said for line in wrong)
        raise ClipftError("this worker", what, "Run: " + " && ".join(line.fix for line in wrong), code="worker.differs")


@dataclass(frozen=True)
class RunningWorker:
    """The worker that runs on this home.

    Attributes:
        state: waiting, running or draining. said: its last line.
        tasks: that it works on, each in a few words.
    """

    pid: int
    state: str
    said: str
    tasks: list[str]


def running() -> RunningWorker | None:
    """The worker that runs here; None when there is none."""
    try:
        content = json.loads(_state_file().read_text())
        process = psutil.Process(content["pid"])
        if abs(process.create_time() - content["created"]) > 1:
            return None
        tasks = sorted({task for edge in _edge_workers(process.pid) for task in _tasks(edge)}, key=lambda task: task.pid)
        return RunningWorker(process.pid, content["state"], content["said"], [_describe(task) for task in tasks])
    except (OSError, ValueError, KeyError, psutil.Error):
        return None


def stop(number: signal.Signals, patience: float) -> bool:
    """Tell the worker that runs here to stop, and wait; whether there was one. Raises ClipftError when it does not end."""
    there = running()
    if there is None:
        return False
    process = psutil.Process(there.pid)
    process.send_signal(number)
    try:
        process.wait(patience)
    except psutil.TimeoutExpired:
        raise ClipftError(
            "the worker",
            f"its task still runs after {patience:.0f} s",
            "Wait, or hand the task over: clipft worker drain --now",
            code="worker.still_busy",
        ) from None
    return True


class _SingleInstance:
    """One worker a home."""

    def __enter__(self) -> None:
        from filelock import FileLock, Timeout

        settings().folder("worker")
        self._lock = FileLock(str(settings().worker_lock))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ClipftError(
                "the worker",
                f"one runs already on {settings().root}",
                "See `clipft worker status`; `clipft worker drain` stops it.",
                code="worker.already_running",
            ) from None

    def __exit__(self, *about: object) -> None:
        self._lock.release()


def _state_file() -> Path:
    return settings().folder("worker") / "state.json"


def _process_tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _tasks(edge: int) -> set[psutil.Process]:
    """The tasks' supervisors: what Airflow's worker itself started."""
    try:
        return set(psutil.Process(edge).children())
    except psutil.Error:
        return set()


def _edge_workers(runner: int) -> list[int]:
    found = []
    for child in _tasks(runner):
        try:
            if "edge worker" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


def _describe(task: psutil.Process) -> str:
    try:
        work = json.loads(task.cmdline()[-1])["ti"]
        return f"{work['dag_id']}.{work['task_id']} ({work['run_id']}, try {work['try_number']})"
    except (psutil.Error, ValueError, KeyError, IndexError):
        return f"process {task.pid}"


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        pass

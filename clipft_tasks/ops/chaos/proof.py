"""The proof: an installation of its own, rounds of the loop, strikes, and what came of it beside a run that nobody disturbed."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path

import httpx
import psutil

from ...core.console import say
from ...core.errors import ClipftError, TransientError
from ...core.settings import CHECKOUT, settings
from .. import installation, stack_processes
from ..airflow_client import Airflow
from . import made, state
from .strikes import POWER, TASK, WORKER, Strike, draw

PER_ROUND = 4  # kills
UNDISTURBED = "clipft_tasks.cli.undisturbed"  # a program; nothing here may import what it runs
PROGRAMS = ("AIRFLOW", "MLFLOW", "SERVER", "PROMETHEUS", "ALERTMANAGER", "STATSD")
RUN_SECONDS = 1800.0  # that a struck run may take
GONE = 15.0  # seconds that a strike waits for a process of its kind
TITLES = {TASK: "airflow worker -- 0", WORKER: "airflow worker -- LocalExecutor"}


@dataclass(frozen=True)
class Followed:
    """A DAG run, how it ended, how often each task was tried, and the last lines of those that failed."""

    dag: str
    run: str
    state: str
    tries: dict[str, int]
    why: list[str]


@dataclass
class Report:
    """What was done and what came of it.

    Attributes:
        strikes: as drawn, with `hit`, the process that was killed, or why none was.
        runs: each DAG run.
        problems: in a sentence each; none when the installation held what it promises.
    """

    seed: int
    strikes: list[dict[str, object]] = field(default_factory=list)
    runs: list[Followed] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0


def run(folder: Path, kills: int, power_cuts: int, seed: int, keep: Callable[[Report], None]) -> Report:
    """Strike an installation that is made in `folder` for this and stopped at the end.

    Args:
        keep: is given the report as far as it is, now and then.
    Raises: ClipftError where the folder is not empty, there is no checkout, or the stack does not come up at all.
    """
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        raise ClipftError(str(folder), "it is not empty", "Name a new folder.", code="chaos.folder_in_use")
    if not (CHECKOUT / "Procfile").exists():
        raise ClipftError(
            "the embedded stack", "it is started from a clone of clipft", "Run this there.", code="chaos.no_checkout"
        )
    began, report = time.monotonic(), Report(seed)
    rounds = max(1, ceil(kills / PER_ROUND), power_cuts)
    strikes = draw(seed, kills, power_cuts, rounds)
    made.make(folder / "made", rounds)
    expected = _undisturbed(folder, rounds)
    _become(folder / "home")
    try:
        stack("up")
        for number in range(1, rounds + 1):
            say(f"Round {number} of {rounds}")
            for dag, form in zip(("clipft_dataset", "clipft_finetune"), made.forms(folder / "made", number), strict=True):
                _Run(dag, form, report).until_over([s for s in strikes if (s.round, s.dag) == (number, dag)])
                keep(report)
        report.problems += _judge(expected, rounds)
    finally:
        before = stack_processes.members()
        stack("down")
    report.problems += [f"process {p.pid} outlived `make down`: {_title(p)}" for p in before if _lives(p)]
    report.seconds = round(time.monotonic() - began, 1)
    keep(report)
    return report


def _undisturbed(folder: Path, rounds: int) -> state.State:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("CLIPFT_", "AIRFLOW"))} | {
        "CLIPFT_HOME": str(folder / "undisturbed")
    }  # fmt: skip
    asked = [sys.executable, "-m", UNDISTURBED, str(folder / "made"), str(rounds)]
    done = subprocess.run(asked, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClipftError(
            "the undisturbed run", f"it failed: {done.stderr[-1500:]}", "Mend that first: nothing had been struck yet.",
            code="chaos.undisturbed_failed",
        )  # fmt: skip
    return dict(json.loads(done.stdout.rpartition(state.STATE)[2]))


def _become(home: Path) -> None:
    """Make this process one of an installation of its own, on ports that nobody holds."""
    for name in [n for n in os.environ if n.startswith(("CLIPFT_", "AIRFLOW"))]:
        del os.environ[name]
    os.environ["CLIPFT_HOME"] = str(home)
    held = [socket.create_server(("127.0.0.1", 0)) for _ in PROGRAMS]
    for program, listener in zip(PROGRAMS, held, strict=True):
        os.environ[f"CLIPFT_{program}_PORT"] = str(listener.getsockname()[1])
        listener.close()
    settings.cache_clear()


def stack(action: str) -> None:
    """`make up` or `make down`. Raises: ClipftError with its last words."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("CLIPFT_") or k.endswith(("_PORT", "_HOME"))}
    asked = [sys.executable, "-m", "deploy.local.stack", action]
    done = subprocess.run(
        asked, cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise ClipftError(
            f"the stack of {settings().root}", f"`{action}`: {done.stdout[-1500:]}",
            f"All that its programs said is in {settings().root / 'logs' / 'stack.log'}.", code="chaos.stack_failed",
        )  # fmt: skip
    installation.use_stack_settings()


class _Run:
    """One DAG run, which is struck and watched to its end; started again by hand, as a person would, when it fails with a reason."""

    def __init__(self, dag: str, form: dict[str, object], report: Report) -> None:
        self.dag, self.form, self.report = dag, form, report
        self.id = self._trigger()

    def until_over(self, strikes: list[Strike]) -> None:
        due, until, failures = list(strikes), time.monotonic() + RUN_SECONDS, 0
        airflow: Airflow | None = None
        while time.monotonic() < until:
            try:
                airflow = airflow or Airflow.of_settings(30)
                tasks = airflow.tasks(self.dag, self.id)
                over = airflow.state(self.dag, self.id)
            except TransientError:
                airflow = None
                time.sleep(0.5)
                continue
            begun = {task["task_id"] for task in tasks if task["start_date"]}
            if due and (due[0].task in begun or over in ("success", "failed")):
                self._strike(due.pop(0))
            elif over in ("success", "failed"):
                self._note(airflow, over)
                if over == "success" or failures == 2:
                    return
                failures += 1
                self.id = self._trigger()
            else:
                time.sleep(0.3)
        self.report.problems.append(f"{self.dag} {self.id} did not end within {RUN_SECONDS:.0f} s")

    def _trigger(self) -> str:
        until = time.monotonic() + 300
        while True:
            try:
                return Airflow.of_settings(30).trigger(self.dag, self.form)
            except TransientError:
                if time.monotonic() > until:
                    raise
                time.sleep(1)

    def _strike(self, strike: Strike) -> None:
        time.sleep(strike.delay)
        hit = cut_power() if strike.kind == POWER else kill(strike.kind, strike.choice)
        say(f"{self.dag}, {strike.task}: {hit}")
        self.report.strikes.append(asdict(strike) | {"hit": hit, "run": self.id})
        if strike.kind in (POWER, stack_processes.SUPERVISOR):
            stack("up")

    def _note(self, airflow: Airflow, over: str) -> None:
        tasks = airflow.tasks(self.dag, self.id)
        why = [line for task in tasks if task["state"] == "failed" for line in airflow.log(self.dag, self.id, task)[-4:]]
        self.report.runs.append(Followed(self.dag, self.id, over, {t["task_id"]: t["try_number"] for t in tasks}, why))
        if over == "failed":
            say(f"{self.dag} {self.id} failed: {' | '.join(why)}")
            if not any("Error" in line for line in why):
                self.report.problems.append(f"{self.dag} {self.id} failed and does not say why")


def kill(kind: str, choice: float) -> str:
    """SIGKILL one process of a kind; says which."""
    until = time.monotonic() + GONE
    while time.monotonic() < until:
        if there := sorted(_of_kind(kind), key=lambda p: p.pid):
            victim = there[int(choice * len(there))]
            with suppress(psutil.Error):
                title = _title(victim)
                victim.kill()
                return f"{kind}, process {victim.pid} ({title})"
        time.sleep(0.1)
    return f"{kind}: no process of it was there"


def _of_kind(kind: str) -> list[psutil.Process]:
    programs = stack_processes.programs()
    root = programs.get("scheduler" if kind in TITLES else kind)
    if root is None:
        return []
    if kind == stack_processes.SUPERVISOR:
        return [root]
    with suppress(psutil.Error):
        family = [root, *root.children(recursive=True)]
        if kind in TITLES:
            return [p for p in family if _title(p).startswith(TITLES[kind])]
        return [p for p in family if not _title(p).startswith(tuple(TITLES.values()))]
    return []


def cut_power() -> str:
    """SIGKILL every process of the stack, none of which sees another one go."""
    there = stack_processes.members()
    for send in (psutil.Process.suspend, psutil.Process.kill):
        for process in there:
            with suppress(psutil.Error):
                send(process)
    psutil.wait_procs(there, timeout=10)
    return f"power, {len(there)} processes"


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:100]
    except psutil.Error:
        return ""


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _judge(expected: state.State, rounds: int) -> list[str]:
    """What is not as it must be, in a sentence each."""
    from ..doctor import health

    live, until = "", time.monotonic() + 120
    while live != str(rounds) and time.monotonic() < until:
        with suppress(httpx.HTTPError, ValueError):
            live = httpx.get(f"{settings().server_url}/readyz", timeout=30).json()["live"].get(made.DOMAIN, "")
        time.sleep(0.5)
    problems = [] if live == str(rounds) else [f"the server answers with version {live or 'none'} and not with {rounds}"]
    problems += state.differences(expected, state.found())
    problems += state.left_behind()
    if keeper := stack_processes.programs().get(stack_processes.SUPERVISOR):
        family = {keeper, *keeper.children(recursive=True)}
        strays = [p for p in stack_processes.members() if p not in family and _lives(p)]
        problems += [f"process {p.pid} is no program's: {_title(p)}" for p in strays]
    findings = health.run_checks()
    return problems + ([] if health.is_healthy(findings) else [f"clipft doctor: {line}" for line in health.as_lines(findings)])

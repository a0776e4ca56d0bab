"""Who is killed: one process of a kind, or all at once."""

import time
from contextlib import suppress

import psutil

from .. import stack_processes
from .strikes import TASK, WORKER

GONE = 15.0  # seconds that a strike waits for a process of its kind
TITLES = {TASK: "airflow worker -- 0", WORKER: "airflow worker -- LocalExecutor"}


def kill(kind: str, choice: float) -> str:
    """SIGKILL one process of a kind; says which."""
    until = time.monotonic() + GONE
    while time.monotonic() < until:
        if there := sorted(_of_kind(kind), key=lambda p: p.pid):
            victim = there[int(choice * len(there))]
            with suppress(psutil.Error):
                named = title(victim)
                victim.kill()
                return f"{kind}, process {victim.pid} ({named})"
        time.sleep(0.1)
    return f"{kind}: no process of it was there"


def cut_power() -> str:
    """SIGKILL every process of the stack, none of which sees another one go."""
    there = stack_processes.members()
    for send in (psutil.Process.suspend, psutil.Process.kill):
        for process in there:
            with suppress(psutil.Error):
                send(process)
    psutil.wait_procs(there, timeout=10)
    return f"power, {len(there)} processes"


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
            return [p for p in family if title(p).startswith(TITLES[kind])]
        return [p for p in family if not title(p).startswith(tuple(TITLES.values()))]
    return []


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:100]
    except psutil.Error:
        return ""


def lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False

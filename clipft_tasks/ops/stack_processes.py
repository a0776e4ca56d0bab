"""The processes of this home's embedded stack: what its supervisor notes, and whoever else belongs to them."""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from ..core.files import atomic_write
from ..core.settings import settings

SUPERVISOR = "supervisor"
MARK = "CLIPFT_STACK"  # in the environment of each: the home


def note(running: Mapping[str, int]) -> None:
    """Keep who runs, by name, so that they are found even after the supervisor, this process, was killed."""
    found = []
    for name, pid in {SUPERVISOR: os.getpid(), **running}.items():
        with suppress(psutil.Error):
            found.append([name, pid, _began(psutil.Process(pid))])
    atomic_write(settings().folder() / "stack.json", json.dumps(found))


def forget() -> None:
    (settings().folder() / "stack.json").unlink(missing_ok=True)


def _began(process: psutil.Process) -> float:
    """When a process began, by a clock that nobody sets: on Linux a time of day moves with the clock, so there it is since the boot."""
    if sys.platform != "linux":
        return process.create_time()
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        raise psutil.NoSuchProcess(process.pid) from None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def programs() -> dict[str, psutil.Process]:
    """Those noted that live, by name; a number that went to another process since does not count."""
    found = {}
    try:
        for name, pid, created in json.loads((settings().root / "stack.json").read_text()):
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if abs(_began(process) - created) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                    found[name] = process
    except (OSError, ValueError):  # none, or of an earlier release
        pass
    return found


def members() -> list[psutil.Process]:
    """Every process of the stack: the noted ones, whoever carries its mark, and their descendants. Tasks leave their parents'
    process group and Airflow overwrites the memory that the mark stands in, so no single way finds all."""
    home, found = str(settings().root), set(programs().values())
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == home:
                found.add(process)
        except (psutil.Error, OSError):
            continue
    for process in list(found):
        try:
            found.update(process.children(recursive=True))
        except psutil.Error:
            continue
    own = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    return [p for p in found if p.pid not in own]

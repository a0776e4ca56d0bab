"""Airflow's garbage: logs of tasks, records of old runs; and whether anything of clipft is at work."""

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from ...core.errors import ClipftError, TransientError
from ...core.settings import settings
from .. import airflow_program
from .files import remove_all, written
from .report import DAY, Item, Report

LOG_BYTES = 64 * 2**20  # of the programs' own log, beyond which its beginning goes
LOG_KEPT = 4 * 2**20
# The DAG that collects garbage, its name in an earlier release, and one that touches nothing.
MAINTENANCE = ("clipft_maintenance", "clipft_care", "clipft_reminders")


class Activity:
    """Whether a task may be about to read a cache. Looked at once; what is not known counts as at work."""

    @cached_property
    def reason(self) -> str:
        """Why caches must stay now; "" when nothing is at work."""
        if _held(settings().worker_lock):
            return "a worker runs here"
        try:
            database = airflow_program.database()
            if "dag_run" not in database.tables():
                return ""
            others = f"dag_id like 'clipft%' and dag_id not in {MAINTENANCE}"
            unfinished = database.count(f"dag_run where state in ('running', 'queued') and {others}")
            return "a task is running" if unfinished else ""
        except (TransientError, ClipftError) as error:
            return f"whether a task is running is not known ({error})"


def _held(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with FileLock(str(lock), timeout=0):
            return False
    except Timeout:
        return True


@dataclass(frozen=True)
class Logs:
    """Logs of tasks that nobody wrote to for `days`."""

    days: float
    title: str = "logs of tasks"

    def find(self) -> Report:
        root = Path(os.environ.get("AIRFLOW__LOGGING__BASE_LOG_FOLDER", settings().root / "airflow" / "logs"))
        old = [p for p in root.rglob("*") if p.is_file() and written(p) > self.days] if root.is_dir() else []
        if not old:
            return Report()
        size, reason = sum(p.stat().st_size for p in old), f"written more than {self.days:g} days ago"
        return Report([Item("logs", f"{len(old)} files of {root}", reason, size, remove_all(old))])


@dataclass(frozen=True)
class StackLog:
    """The beginning of the log of the embedded stack's programs."""

    title: str = "the log of the stack"

    def find(self) -> Report:
        log = settings().root / "logs" / "stack.log"
        if not log.exists() or log.stat().st_size <= LOG_BYTES:
            return Report()
        return Report([Item("logs", str(log), "only its end is kept", log.stat().st_size - LOG_KEPT, lambda: _cut(log))])


def _cut(log: Path) -> int:
    """Keep the end of a file that programs append to; what they write meanwhile comes after it."""
    with log.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size - LOG_KEPT)
        end = file.read()
        file.seek(0)
        file.truncate()
        file.write(end)
    return size - log.stat().st_size


@dataclass(frozen=True)
class Metadata:
    """Airflow's records of runs that ended more than `days` ago, by its own `airflow db clean`."""

    days: float
    title: str = "Airflow's records"

    def find(self) -> Report:
        database = airflow_program.database()
        if "dag_run" not in database.tables():
            return Report()
        before = datetime.fromtimestamp(time.time() - self.days * DAY, UTC).strftime("%Y-%m-%d %H:%M:%S")
        if late := database.count(f"dag_run where state in ('running', 'queued') and start_date < '{before}'"):
            return Report(skipped=[f"{self.title}: {late} runs that began more than {self.days:g} days ago are not over"])
        rows = airflow_program.old_records(self.days)
        if not rows:
            return Report()
        reason = f"older than {self.days:g} days: " + ", ".join(f"{n} {count}" for n, count in sorted(rows.items()))
        what = f"{sum(rows.values()):,} records of Airflow"
        return Report([Item("metadata", what, reason, 0, lambda: airflow_program.clean(self.days))])

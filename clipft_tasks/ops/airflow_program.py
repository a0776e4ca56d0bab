"""Airflow's own database and its program, where they are installed: migrations, and records that have grown old."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ..core.errors import ClipftError
from ..core.settings import settings
from .databases import Database, all_databases


def database() -> Database:
    return next(d for d in all_databases() if d.name == "airflow")


def program(*arguments: str) -> str:
    """Run `airflow …` on this installation's database; returns what it printed. Raises ClipftError with its last words."""
    env = {k: v for k, v in os.environ.items() if k != "_AIRFLOW_PROCESS_CONTEXT"}  # set in a task, which may not
    env.setdefault("AIRFLOW_HOME", str(settings().root / "airflow"))
    env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = database().url
    env["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    try:
        done = subprocess.run(["airflow", *arguments], env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ClipftError(
            "airflow", "it is not installed here", "Run this where Airflow is installed.", code="ops.missing_program"
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ClipftError(
            f"`airflow {' '.join(arguments[:2])}`", f"it failed: {' '.join(said[-2:])}", code="ops.program_failed"
        )
    return done.stdout


def old_records(days: float) -> dict[str, int]:
    """How many rows of each table `airflow db clean` would delete. Raises TransientError while a run of that age is not over."""
    listed = program("db", "clean", "--dry-run", "--yes", "--clean-before-timestamp", _before(days))
    found = re.findall(r"Checking table (\w+)\s+Found (\d+) rows", listed)
    return {table: int(rows) for table, rows in found if int(rows)}


def clean(days: float) -> int:
    """Delete them; returns bytes, which only shrinking the database gives back."""
    program("db", "clean", "--yes", "--skip-archive", "--clean-before-timestamp", _before(days))
    return 0


def _before(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")

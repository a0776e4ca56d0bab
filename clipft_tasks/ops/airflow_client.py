"""What these commands ask of Airflow: over REST as the user that settings name, and by its program where it is installed."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from ..core.errors import ClipftError, Transient
from ..core.settings import settings
from .databases import Database, all_of_them

ACTIVE = ("running", "queued")


class Airflow:
    """A logged-in client. Raises Transient: no answer; ClipftError: it refuses the user."""

    def __init__(self, timeout: float = 5) -> None:
        self.http = httpx.Client(base_url=settings().airflow_url, timeout=timeout)
        password = settings().airflow_password
        self._token = ""
        if password:
            body = {"username": settings().airflow_user, "password": password.get_secret_value()}
            answer = self._ask("POST", "/auth/token", json=body)
            if answer.status_code in (401, 403):
                raise ClipftError(
                    f"Airflow at {settings().airflow_url}",
                    f"it does not accept the password of {settings().airflow_user}",
                    "Set CLIPFT_AIRFLOW_USER and CLIPFT_AIRFLOW_PASSWORD.",
                )
            self._token = self._read(answer).get("access_token", "")

    @property
    def logged_in(self) -> bool:
        return bool(self._token)

    def get(self, path: str) -> Any:
        return self._read(self._ask("GET", path, headers={"Authorization": f"Bearer {self._token}"} if self._token else {}))

    def running(self) -> int:
        """DAG runs of clipft that run or wait to, but for this care itself."""
        query = "&".join(f"state={state}" for state in ACTIVE)
        runs = self.get(f"/api/v2/dags/~/dagRuns?{query}&limit=100")["dag_runs"]
        return sum(run["dag_id"] != "clipft_maintenance" for run in runs)

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return self.http.request(method, path, **more)
        except httpx.HTTPError as error:
            raise Transient(f"Airflow at {settings().airflow_url} does not answer: {error!r}") from None

    def _read(self, answer: httpx.Response) -> Any:
        if answer.is_error:
            raise Transient(f"Airflow at {settings().airflow_url} answered {answer.status_code} to {answer.request.url.path}")
        try:
            return answer.json()
        except ValueError:
            raise Transient(f"{settings().airflow_url} answers, but not as Airflow does") from None


def database() -> Database:
    return next(d for d in all_of_them() if d.name == "airflow")


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
        raise ClipftError("airflow", "it is not installed here", "Run this where Airflow is installed.") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ClipftError(f"`airflow {' '.join(arguments[:2])}`", f"it failed: {' '.join(said[-2:])}")
    return done.stdout


def old_records(days: float) -> dict[str, int]:
    """How many rows of each table `airflow db clean` would delete. Raises Transient while a run of that age is not over."""
    listed = program("db", "clean", "--dry-run", "--yes", "--clean-before-timestamp", _before(days))
    found = re.findall(r"Checking table (\w+)\s+Found (\d+) rows", listed)
    return {table: int(rows) for table, rows in found if int(rows)}


def clean(days: float) -> int:
    """Delete them; returns bytes, which only shrinking the database gives back."""
    program("db", "clean", "--yes", "--skip-archive", "--clean-before-timestamp", _before(days))
    return 0


def _before(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")

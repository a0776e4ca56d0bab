"""Airflow over its REST API, as a person's script would use it: what doctor, the embedded stack, examples and tests ask."""

import time
from collections.abc import Mapping
from typing import Any, Self, TypeAlias, TypedDict

import httpx

from ..core.errors import ClipftError, TransientError
from ..core.settings import settings

Json: TypeAlias = Any  # what Airflow answers: its shape is the path's
REFUSED = (400, 401, 403, 409, 422)  # asking again without changing anything does not help


class DagRun(TypedDict):
    """A DAG run, as far as it is used here."""

    dag_id: str
    dag_run_id: str
    state: str


class TaskInstance(TypedDict):
    """A task of a run, as far as it is used here; times as ISO 8601, seconds."""

    task_id: str
    map_index: int
    rendered_map_index: str | None
    try_number: int
    state: str | None
    start_date: str | None
    end_date: str | None
    duration: float | None


class Airflow:
    """A client that logs in when it is made, and anew when its token has ended.

    Args:
        password: "" asks as nobody.
    Raises: TransientError: no answer; ClipftError: it refuses the user. So does every call; a request that Airflow refuses is a
        ClipftError with Airflow's own words.
    """

    def __init__(self, url: str, user: str, password: str, timeout: float = 60) -> None:
        self.url, self._user, self._password = url, user, password
        self._http = httpx.Client(base_url=url, timeout=timeout)
        if password:
            self._log_in()

    @classmethod
    def of_settings(cls, timeout: float = 5) -> Self:
        """As the user that settings name."""
        password = settings().airflow_password
        return cls(settings().airflow_url, settings().airflow_user, password.get_secret_value() if password else "", timeout)

    @property
    def logged_in(self) -> bool:
        return "authorization" in self._http.headers

    def raw(self, method: str, path: str, json: object = None) -> httpx.Response:
        """One request to any path, whatever its answer."""
        answer = self._request(method, path, json)
        if answer.status_code == 401 and self.logged_in:  # tokens end after a day
            self._log_in()
            answer = self._request(method, path, json)
        return answer

    def get(self, path: str) -> Json:
        return self._read(self.raw("GET", path))

    def call(self, method: str, path: str, json: object = None) -> Json:
        """One call below /api/v2."""
        return self._read(self.raw(method, f"/api/v2{path}", json))

    def running(self) -> int:
        """DAG runs of clipft that run or wait to, but for maintenance itself and reminders."""
        runs = self.call("GET", "/dags/~/dagRuns?state=running&state=queued&limit=100")["dag_runs"]
        return sum(run["dag_id"] not in ("clipft_maintenance", "clipft_reminders") for run in runs)

    def pool(self, name: str, slots: int, description: str) -> None:
        """Make a pool where there is none of that name."""
        found = {p["name"] for p in self.call("GET", "/pools?limit=100")["pools"]}
        if name not in found:
            body = {"name": name, "slots": slots, "description": description, "include_deferred": False}
            self.call("POST", "/pools", json=body)

    def dags(self) -> set[str]:
        """Names of clipft's DAGs."""
        return {d["dag_id"] for d in self.call("GET", "/dags?limit=100&tags=clipft")["dags"]}

    def unpause(self, dag: str) -> None:
        self.call("PATCH", f"/dags/{dag}", json={"is_paused": False})

    def trigger(self, dag: str, conf: Mapping[str, object], run: str = "") -> str:
        """Start a run; returns its id.

        Args:
            run: its id, so that who got no answer may ask again and starts no second one; "": Airflow chooses one.
        """
        path, body = f"/dags/{dag}/dagRuns", {"logical_date": None, "conf": conf} | ({"dag_run_id": run} if run else {})
        answer = self.raw("POST", f"/api/v2{path}", body)
        return run if run and answer.status_code == 409 else str(self._read(answer)["dag_run_id"])

    def runs(self, dag: str) -> list[DagRun]:
        """The newest runs, newest first."""
        return list(self.call("GET", f"/dags/{dag}/dagRuns?limit=20&order_by=-run_after")["dag_runs"])

    def state(self, dag: str, run: str) -> str:
        return str(self.call("GET", f"/dags/{dag}/dagRuns/{run}")["state"])

    def tasks(self, dag: str, run: str) -> list[TaskInstance]:
        return list(self.call("GET", f"/dags/{dag}/dagRuns/{run}/taskInstances?limit=200")["task_instances"])

    def result(self, dag: str, run: str, task: str, index: int = -1) -> Json:
        """What a task returned."""
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/xcomEntries/return_value?deserialize=true&map_index={index}"
        return self.call("GET", path)["value"]

    def answer(self, dag: str, run: str, task: str, option: str) -> None:
        """Answer a task that waits for a person, no sooner than a person could: Airflow fails a task that goes on before its
        scheduler has noted that it began to wait."""
        time.sleep(3)
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/-1/hitlDetails"
        self.call("PATCH", path, json={"chosen_options": [option], "params_input": {}})

    def log(self, dag: str, run: str, task: TaskInstance) -> list[str]:
        """What the stage itself has said so far in a task's newest try, and the errors that ended it."""
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task['task_id']}/logs/{max(1, task['try_number'])}"
        content = self.call("GET", f"{path}?full_content=true&map_index={task['map_index']}")["content"]
        return [
            str(line["event"]) + "".join(f": {e['exc_value']}" for e in line.get("error_detail") or [])
            for line in content
            if isinstance(line, dict) and (line.get("logger") == "task.stdout" or line.get("level") in ("error", "critical"))
        ]

    def _log_in(self) -> None:
        body = {"username": self._user, "password": self._password}
        answer = self._request("POST", "/auth/token", body)
        if answer.status_code in (401, 403):
            raise ClipftError(
                f"Airflow at {self.url}",
                f"it does not accept the password of {self._user}",
                "Set CLIPFT_AIRFLOW_USER and CLIPFT_AIRFLOW_PASSWORD.",
                code="airflow.wrong_password",
            )
        self._http.headers["Authorization"] = f"Bearer {self._read(answer).get('access_token', '')}"

    def _request(self, method: str, path: str, json: object) -> httpx.Response:
        try:
            return self._http.request(method, path, json=json)
        except httpx.HTTPError as error:
            raise TransientError(f"Airflow at {self.url} does not answer: {error!r}") from None

    def _read(self, answer: httpx.Response) -> Json:
        asked = f"{answer.request.method} {answer.request.url.path}"
        if answer.status_code in REFUSED:
            raise ClipftError(
                f"Airflow's {asked}", f"it was refused with {answer.status_code}: {answer.text[:500]}", code="airflow.refused"
            )
        if answer.is_error:
            raise TransientError(f"Airflow at {self.url} answered {answer.status_code} to {asked}")
        try:
            return answer.json() if answer.content else None
        except ValueError:
            raise TransientError(f"{self.url} answers, but not as Airflow does") from None

"""Airflow over REST, as a person's script would use it."""

import time
from typing import Any

import httpx

from .environment import USER, address, keep_secrets


class Airflow:
    """A logged-in client of the embedded Airflow."""

    def __init__(self) -> None:
        self._http = httpx.Client(base_url=address("airflow"), timeout=120)  # a machine that trains answers late
        self._login()

    def _login(self) -> None:
        password = keep_secrets()["password"]
        answer = self._http.post("/auth/token", json={"username": USER, "password": password})
        answer.raise_for_status()
        self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """One call below /api/v2; raises httpx.HTTPStatusError with Airflow's own words."""
        answer = self.raw(method, f"/api/v2{path}", **kwargs)
        if answer.is_error:
            raise httpx.HTTPStatusError(f"{method} {path}: {answer.text[:500]}", request=answer.request, response=answer)
        return answer.json() if answer.content else None

    def raw(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """One call to any path, as the person who is logged in."""
        answer = self._http.request(method, path, **kwargs)
        if answer.status_code == 401:  # tokens end after a day
            self._login()
            answer = self._http.request(method, path, **kwargs)
        return answer

    def pool(self, name: str, slots: int, description: str) -> None:
        found = {p["name"] for p in self.call("GET", "/pools?limit=100")["pools"]}
        body = {"slots": slots, "description": description, "include_deferred": False}
        if name not in found:
            self.call("POST", "/pools", json={"name": name, **body})

    def unpause(self, dag: str) -> None:
        self.call("PATCH", f"/dags/{dag}", json={"is_paused": False})

    def dags(self) -> set[str]:
        return {d["dag_id"] for d in self.call("GET", "/dags?limit=100&tags=clipft")["dags"]}

    def trigger(self, dag: str, conf: dict[str, Any]) -> str:
        return str(self.call("POST", f"/dags/{dag}/dagRuns", json={"logical_date": None, "conf": conf})["dag_run_id"])

    def runs(self, dag: str) -> list[dict[str, Any]]:
        """The newest runs, newest first."""
        return list(self.call("GET", f"/dags/{dag}/dagRuns?limit=20&order_by=-run_after")["dag_runs"])

    def answer(self, dag: str, run: str, task: str, option: str) -> None:
        """Answer a task that waits for a person, no sooner than a person could: Airflow fails a task that goes on before its
        scheduler has noted that it began to wait."""
        time.sleep(3)
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/-1/hitlDetails"
        self.call("PATCH", path, json={"chosen_options": [option], "params_input": {}})

    def state(self, dag: str, run: str) -> str:
        return str(self.call("GET", f"/dags/{dag}/dagRuns/{run}")["state"])

    def tasks(self, dag: str, run: str) -> list[dict[str, Any]]:
        return list(self.call("GET", f"/dags/{dag}/dagRuns/{run}/taskInstances?limit=200")["task_instances"])

    def result(self, dag: str, run: str, task: str, index: int = -1) -> Any:
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/xcomEntries/return_value?deserialize=true&map_index={index}"
        return self.call("GET", path)["value"]

    def log(self, dag: str, run: str, task: dict[str, Any]) -> list[str]:
        """What the stage itself has said so far in a task's newest try, and the errors that ended it."""
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task['task_id']}/logs/{max(1, task['try_number'])}"
        content = self.call("GET", f"{path}?full_content=true&map_index={task['map_index']}")["content"]
        return [
            str(line["event"]) + "".join(f": {e['exc_value']}" for e in line.get("error_detail") or [])
            for line in content
            if isinstance(line, dict) and (line.get("logger") == "task.stdout" or line.get("level") in ("error", "critical"))
        ]

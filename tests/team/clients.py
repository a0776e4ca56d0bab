"""Those who use a team's deployment: a person's script at Airflow, an application at the server."""

import threading
import time
from typing import Any

import httpx

from clipft_tasks.core.errors import TransientError
from clipft_tasks.ops.airflow_client import Airflow
from team.engine import Team


class TeamAirflow(Airflow):
    """A logged-in client, through the gateway."""

    def __init__(self, team: Team) -> None:
        super().__init__(team.address(8080), team.env["CLIPFT_TEAM_USER"], team.env["CLIPFT_TEAM_PASSWORD"])

    def finish(self, dag: str, conf: dict[str, Any], seconds: float = 900) -> str:
        """Trigger a run and wait until it ended well; a gateway or database that is away for a moment is waited for."""
        run = self.trigger(dag, conf)
        self.wait(dag, run, seconds)
        return run

    def wait(self, dag: str, run: str, seconds: float = 900) -> None:
        until = time.monotonic() + seconds
        state = ""
        while time.monotonic() < until and state not in ("success", "failed"):
            time.sleep(1)
            try:
                state = self.state(dag, run)
            except TransientError:
                continue
        failed = {t["task_id"]: self.log(dag, run, t)[-8:] for t in self.tasks(dag, run) if t["state"] == "failed"}
        assert state == "success", (state, failed)


class Clients:
    """Applications that ask the same again and again and try once more when a request fails. Bounded: they end with `with`.

    Args:
        ask: one request; its answer is kept when `keep` says what of it.
    """

    def __init__(self, url: str, body: dict[str, Any], many: int, pause: float = 0.02, most: int = 3000) -> None:
        self.url, self.body, self.pause, self.most = url, body, pause, most
        self.answers: list[tuple[str, list[tuple[str, float]]]] = []  # version, label and probability of each image
        self.again: list[str] = []  # first tries that failed
        self.lost: list[str] = []  # second tries that failed too
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(many)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(timeout=60) as http:
            for _ in range(self.most):
                if self._stop.wait(self.pause):
                    return
                if why := self._one(http):
                    self.again.append(why)
                    if why := self._one(http):
                        self.lost.append(why)

    def _one(self, http: httpx.Client) -> str:
        try:
            answer = http.post(self.url, json=self.body)
        except httpx.HTTPError as error:
            return repr(error)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text[:200]}"
        said = [(p["label"], p["probability"]) for p in answer.json()["predictions"]]
        self.answers.append((answer.headers["x-clipft-model-version"], said))
        return ""

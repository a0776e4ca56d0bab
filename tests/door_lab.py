"""A control plane for tests: the real door behind `/door`, and beside it just enough of Airflow, MLflow and data to be reached."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

from deploy.door.app import create_app
from deploy.door.settings import DoorSettings

TOKEN, MASTER = "operator-token", "0123456789abcdef" * 2


class ControlPlane:
    """Attributes: url (of "Airflow"), app (the door's own), operator (a client of its admin API)."""

    def __init__(self, home: Path, **settings: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        addresses = {f"{name}_address": self.url for name in ("airflow", "mlflow", "data")}
        given = {"door_home": home, "door_secret": MASTER, "door_token": TOKEN, "team_password": "of-people", **addresses}
        self.app = create_app(DoorSettings(**given | settings))
        outer = FastAPI()
        outer.mount("/door", self.app)
        for path in ("/edge_worker/v1/health", "/api/2.0/mlflow/experiments/search", "/datasets.git/HEAD"):
            outer.get(path)(lambda: {})
        config = uvicorn.Config(outer, host="127.0.0.1", port=port, log_level="warning")
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self.operator = httpx.Client(base_url=f"{self.url}/door", headers={"Authorization": f"Bearer {TOKEN}"})
        self.door = httpx.Client(base_url=f"{self.url}/door")

    def invite(self, name: str, **more: object) -> str:
        return self.operator.post("/admin/invitations", json={"name": name, **more}).json()["code"]

    def join(self, name: str) -> tuple[str, str]:
        """Name and secret of a worker that joined."""
        return name, self.door.post("/v1/join", json={"code": self.invite(name)}).json()["secret"]

    def asked(self, what: str, method: str = "GET", uri: str = "/", **how: object) -> httpx.Response:
        """What the gateway is told about a request."""
        headers = {"X-Forwarded-Method": method, "X-Forwarded-Uri": uri} | dict(how.pop("headers", {}))
        return self.door.get(f"/auth/{what}", headers=headers, **how)


@contextmanager
def control_plane(home: Path, **settings: object) -> Iterator[ControlPlane]:
    plane = ControlPlane(home, **settings)
    plane._thread.start()
    while not plane.server.started:
        time.sleep(0.02)
    try:
        yield plane
    finally:
        plane.server.should_exit = True
        plane._thread.join()

"""A control plane with workers: machines in namespaces of their own, joined only through the gateway."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from conftest import write_images, write_tiny

from clipft_tasks.core.errors import TransientError
from clipft_tasks.ops.airflow_client import Airflow
from deploy.compose import secrets
from team import compose, engine

HERE = Path(__file__).resolve().parent
SETTINGS = {
    "CLIPFT_SERVER_REPLICAS": "1",
    "CLIPFT_MLFLOW_WORKERS": "1",
    "CLIPFT_AIRFLOW_API_WORKERS": "1",
    "CLIPFT_LIGHT_TASKS": "2",
    "CLIPFT_ACCELERATOR_EXECUTOR": "EdgeExecutor",
    "CLIPFT_ACCELERATOR_QUEUE": "cpu",
    # As a worker must call them: the gateway is all that it can see.
    "CLIPFT_AIRFLOW_ADDRESS": "http://gateway:8080",
    "CLIPFT_MLFLOW_ADDRESS": "http://gateway:5050",
    "CLIPFT_DATA_ADDRESS": "http://gateway:8090",
}


class Fleet:
    """Attributes: team (the engine), airflow (its API), mlflow (a client of its REST API, as a person)."""

    def __init__(self, folder: Path) -> None:
        sources = folder / "sources"
        write_images(sources / "images")
        write_tiny(sources / "tiny")
        folder.chmod(0o755)
        env = compose.dotenv(secrets.content()) | SETTINGS | {"CLIPFT_SOURCES": str(sources)}
        self.folder, self.env = folder, env
        self.team = engine.Team(folder / "engine", env, profiles=("core",))
        for service in self.team.services.values():
            if "airflow" in service["image"]:
                service["volumes"] = [*service.get("volumes", []), f"{HERE}/forty_tasks.py:/opt/clipft/dags/forty.py:ro"]

    def up(self) -> None:
        self.team.up(900)
        self.airflow = Airflow(self.team.address(8080), self.env["CLIPFT_TEAM_USER"], self.env["CLIPFT_TEAM_PASSWORD"])
        person = (self.env["CLIPFT_TEAM_USER"], self.env["CLIPFT_TEAM_PASSWORD"])
        self.mlflow = httpx.Client(base_url=f"{self.team.address(5050)}/api/2.0/mlflow", auth=person, timeout=30)
        wanted = {"clipft_dataset", "clipft_finetune"}
        until(lambda: self.airflow.dags() >= wanted, 400, "the DAGs")

    def operator(self, *words: str) -> str:
        """`docker compose exec airflow-scheduler clipft worker …`"""
        done = self.team.execute(self.team.one("airflow-scheduler"), "clipft", "worker", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def invite(self, name: str) -> str:
        return self.operator("invite", name).split("--code ")[1].split()[0]

    def worker(self, name: str, code: str = "", **environment: str) -> engine.Container:
        """A new machine: the service `worker-cuda` with a volume of its own; of the control plane it sees the gateway alone."""
        service = copy.deepcopy(self.team.compose["services"]["worker-cuda"])
        service["restart"] = "no"  # what ended is looked at
        volume = f"worker-{name}"
        self.team.compose["volumes"][volume] = {}
        tiny = self.folder / f"tiny-{name}"
        if not tiny.exists():
            write_tiny(tiny)
        service["volumes"] = [
            f"{volume}:/var/lib/clipft",
            f"{tiny}:/sources/tiny:ro",
            f"{HERE}/forty_tasks.py:/opt/clipft/dags/forty.py:ro",
        ]
        service["environment"] |= {
            "CLIPFT_JOIN_CODE": code or self.invite(name),
            "CLIPFT_UPLOAD_SECONDS": "1",
            "AIRFLOW__EDGE__JOB_POLL_INTERVAL": "1",
            "AIRFLOW__EDGE__HEARTBEAT_INTERVAL": "3",
            # No MPS here: a forked child starts in a fraction of the time.
            "AIRFLOW__CORE__EXECUTE_TASKS_NEW_PYTHON_INTERPRETER": "False",
        } | environment
        made = self.team._add(f"worker-{name}", 1, service)
        self.team._resolver(made)
        self.team.start(made)
        return made

    def alone(self) -> None:
        """No worker that another test left behind takes part."""
        for container in self.team.containers:
            if container.name.startswith("worker-") and container.name != "worker-gateway" and container.alive:
                self.team.kill(container)

    def home(self, name: str) -> Path:
        """A worker's volume, as seen from outside."""
        return self.team.folder / "volumes" / f"worker-{name}"

    def again(self, worker: engine.Container) -> None:
        """`docker restart`: told to end, and started again."""
        self.team.stop(worker, 200)
        self.team.start(worker)

    def sees(self, worker: engine.Container) -> list[Path]:
        """Which volumes of this deployment, and which of its files, a worker can reach on its file system."""
        held = sorted((self.team.folder / "volumes").iterdir())
        mounted = {line.split()[3] for line in self.team.execute(worker, "cat", "/proc/self/mountinfo").stdout.splitlines()}
        listed = self.team.execute(worker, "ls", "-d", str(self.folder), *map(str, held)).stdout.split()
        return [p for p in held if str(p) in mounted or str(p) in listed] + [Path(p) for p in listed if p == str(self.folder)]

    def heard(self, task: str) -> float:
        """When Airflow last heard of a task that runs (seconds since 1970); 0 when it runs nowhere."""
        asked = f"select extract(epoch from max(last_heartbeat_at)) from task_instance where task_id = '{task}' and state = 'running'"
        command = ["psql", "--username=postgres", "--dbname=airflow", "--no-align", "--tuples-only", f"--command={asked}"]
        return float(self.team.execute(self.team.one("postgres"), *command).stdout.strip() or 0)

    def ran(self, name: str, dag: str, run: str, task: str) -> list[int]:
        """Which of a mapped task's parts a worker did, one for each try."""
        logs = self.home(name) / "worker" / "airflow" / "logs" / f"dag_id={dag}" / f"run_id={run}" / f"task_id={task}"
        return [int(p.parent.name.removeprefix("map_index=")) for p in logs.glob("map_index=*/attempt=*.log")]

    def log(self, name: str) -> str:
        return self.team.logs(f"worker-{name}", lines=400)

    def run(self, dag: str, conf: dict[str, Any]) -> str:
        return self.airflow.trigger(dag, conf)

    def task(self, dag: str, run: str, name: str) -> dict[str, Any]:
        return next((t for t in self.airflow.tasks(dag, run) if t["task_id"] == name), {})

    def finished(self, dag: str, run: str, seconds: float) -> None:
        """Wait for a DAG run to succeed; says what failed, in the task's own words, as soon as it does."""
        until(lambda: self.airflow.state(dag, run) in ("success", "failed"), seconds, f"{dag} {run}")
        if self.airflow.state(dag, run) != "success":
            failed = [t for t in self.airflow.tasks(dag, run) if t["state"] == "failed"]
            raise AssertionError({t["task_id"]: self.airflow.log(dag, run, t)[-6:] for t in failed})

    def training(self) -> dict[str, Any] | None:
        """The newest MLflow run of the domain: its tags, and its last step so far."""
        experiment = self.mlflow.get("/experiments/get-by-name", params={"experiment_name": "clipft-general"})
        if experiment.is_error:
            return None
        body = {"experiment_ids": [experiment.json()["experiment"]["experiment_id"]], "max_results": 1}
        found = self.mlflow.post("/runs/search", json=body).json().get("runs")
        if not found:
            return None
        data = found[0]["data"]
        steps = [m["step"] for m in data.get("metrics", []) if m["key"] == "train.loss"]
        return {
            "id": found[0]["info"]["run_id"],
            "tags": {t["key"]: t["value"] for t in data.get("tags", [])},
            "metrics": {m["key"]: m["value"] for m in data.get("metrics", [])},
            "step": int(steps[0]) if steps else -1,
        }

    def versions(self) -> list[dict[str, Any]]:
        return (
            self.mlflow.get("/model-versions/search", params={"filter": "name='clipft-general'"})
            .json()
            .get("model_versions", [])
        )


def until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for something; a neighbor that is restarting does not count as an answer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if got := true():
                return got
        except (httpx.HTTPError, TransientError):
            pass
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {seconds:g} s")


@contextmanager
def fleet(folder: Path) -> Iterator[Fleet]:
    """A running control plane without workers; everything ends with it."""
    made = Fleet(folder)
    try:
        made.up()
        yield made
    finally:
        made.team.down()

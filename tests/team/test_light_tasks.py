"""Light tasks on machines that share no disk: executors and stores are settings, as docs/scale.md says."""

import copy
import os
import subprocess
from pathlib import Path

import pytest
from conftest import write_images, write_tiny

from clipft_tasks.ops.airflow_client import Airflow
from deploy.compose import secrets
from team import compose, engine
from team.fleet import SETTINGS, until

pytestmark = [pytest.mark.team, pytest.mark.timeout(2400)]
KEPT = ("postgres", "store", "airflow-init", "airflow-api", "airflow-scheduler", "airflow-dag-processor", "mlflow")
MACHINES = ("left", "right")
PARTS = 4
# What docs/scale.md names: the same on all machines. EdgeExecutor stands for CeleryExecutor and KubernetesExecutor: a task goes
# to whatever machine takes it.
LIGHT = {
    "AIRFLOW__CORE__EXECUTOR": "airflow.providers.edge3.executors.EdgeExecutor",
    "AIRFLOW__EDGE__API_URL": "http://airflow-api:8080/edge_worker/v1/rpcapi",
    "CLIPFT_DATA_REPO": "git://repository/data.git",
    "CLIPFT_DVC_REMOTE": "s3://data",
    "CLIPFT_STAGING": "s3://data/staging",
    "CLIPFT_INGEST_PARTS": str(PARTS),
}
GATEWAYS = (
    "TRUSTED_JWKS_URL",
    "JWT_ALGORITHM",
    "JWT_ISSUER",
    "JWT_AUDIENCE",
)  # of workers outside, which there are none of here


class Machines:
    """A control plane that runs no task, and two machines that do. Attributes: team (the engine), airflow (its API)."""

    def __init__(self, folder: Path) -> None:
        self.sources = folder / "sources"
        write_images(self.sources / "images", 120)  # enough in a part for processes of a task's own
        write_tiny(self.sources / "tiny")
        folder.chmod(0o755)
        env = compose.dotenv(secrets.content()) | SETTINGS | {"CLIPFT_SOURCES": str(self.sources)}
        self.team = engine.Team(folder / "engine", env, profiles=("core",))
        self.team.services = {name: self.team.services[name] for name in KEPT}
        keys = {name: value for name, value in self.team.services["airflow-scheduler"]["environment"].items() if "AWS_" in name}
        for name in ("airflow-api", "airflow-scheduler", "airflow-dag-processor"):
            environment = self.team.services[name]["environment"]
            for gone in GATEWAYS:
                environment.pop(f"AIRFLOW__EDGE__{gone}")
            environment |= LIGHT | keys
        self.env = env

    def up(self) -> None:
        self.team.up(900)
        self._repository()
        self.machines = {name: self._machine(name) for name in MACHINES}
        address = f"http://{self.team.one('airflow-api').addresses['inside']}:8080"
        self.airflow = Airflow(address, self.env["CLIPFT_TEAM_USER"], self.env["CLIPFT_TEAM_PASSWORD"])
        until(lambda: "clipft_dataset" in self.airflow.dags(), 400, "the DAG")

    def _start(self, name: str, service: dict) -> engine.Container:
        made = self.team._add(name, 1, service | {"restart": "no"})
        self.team._resolver(made)
        self.team.start(made)
        return made

    def _repository(self) -> None:
        """A git host, as a team has one."""
        self.team.compose["volumes"]["repository"] = {}
        folder = self.team.folder / "volumes" / "repository"
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch", "main", str(folder / "data.git")], check=True)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 10001, 0)
        serve = ["git", "daemon", "--reuseaddr", "--export-all", "--enable=receive-pack", "--base-path=/srv"]
        service = {
            "user": "10001:0",
            "networks": ["inside"],
            "volumes": ["repository:/srv"],
            "environment": {},
            "command": serve,
        }
        self._start("repository", service)

    def _machine(self, name: str) -> engine.Container:
        """A machine that reaches Airflow's API, MLflow, the store and the git host, with a disk of its own and no database."""
        service = copy.deepcopy(self.team.services["airflow-scheduler"])
        service["command"] = ["airflow", "edge", "worker", "-q", "default", "-c", "2", "-H", name]
        service["networks"] = ["inside", "storage"]
        volumes = {f"home-{name}": "/var/lib/clipft", f"airflow-{name}": "/var/lib/airflow"}
        self.team.compose["volumes"] |= {key: {} for key in volumes}
        service["volumes"] = [*(f"{volume}:{place}" for volume, place in volumes.items()), f"{self.sources}:/sources:ro"]
        for secret in ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "CLIPFT_MLFLOW_STORE", "CLIPFT_TUNING_URL"):
            service["environment"].pop(secret)
        service["environment"] |= {"AIRFLOW__EDGE__JOB_POLL_INTERVAL": "1", "AIRFLOW__EDGE__HEARTBEAT_INTERVAL": "3"}
        return self._start(f"light-{name}", service)

    def ran(self, name: str, run: str) -> set[tuple[str, int]]:
        """Tasks of a run that a machine did, with their number among mapped ones."""
        logs = self.team.folder / "volumes" / f"airflow-{name}" / "logs" / "dag_id=clipft_dataset" / f"run_id={run}"
        found = set()
        for log in logs.rglob("attempt=*.log"):
            parts = dict(part.split("=", 1) for part in log.relative_to(logs).parts[:-1])
            found.add((parts["task_id"], int(parts.get("map_index", -1))))
        return found


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    if reason := engine.lacking():
        pytest.skip(reason)
    made = Machines(tmp_path_factory.mktemp("light"))
    try:
        made.up()
        yield made
    finally:
        made.team.down()


def test_two_machines_without_a_shared_disk_make_one_data_set(plane):
    """Ingest, validate and version in parts, whichever machine takes which; what passes between them passes the store."""
    form = {"domain": "general", "source": "/sources/images/images.csv", "model.start": "/sources/tiny"}
    run = plane.airflow.trigger("clipft_dataset", form)
    until(lambda: plane.airflow.state("clipft_dataset", run) in ("success", "failed"), 1500, "clipft_dataset")
    tasks = plane.airflow.tasks("clipft_dataset", run)
    failed = {t["task_id"]: plane.airflow.log("clipft_dataset", run, t)[-8:] for t in tasks if t["state"] == "failed"}
    assert not failed, failed
    expected = {(task, part) for task in ("decode", "check") for part in range(PARTS)}
    expected |= {(task, -1) for task in ("ingest", "validate", "version")}
    assert {(t["task_id"], t["map_index"]) for t in tasks} == expected and {t["state"] for t in tasks} == {"success"}

    did = {name: plane.ran(name, run) for name in MACHINES}
    assert set.union(*did.values()) == expected and all(did.values()), did
    for name, machine in plane.machines.items():
        other = next(one for one in MACHINES if one != name)
        mounted = plane.team.execute(machine, "cat", "/proc/self/mountinfo").stdout
        assert f"/home-{name} " in mounted and f"/home-{other} " not in mounted and "/volumes/home " not in mounted

    made = plane.airflow.result("clipft_dataset", run, "version")
    assert made["dataset"] == "general/v1" and made["new"] and made["rows"] == 240
    repository = plane.team.folder / "volumes" / "repository" / "data.git"
    tags = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", repository, "tag"], capture_output=True, text=True, check=True
    )
    assert tags.stdout.split() == ["general/v1"]

"""The team's deployment as it runs: docker-compose.yaml's own commands and environments, on networks of their own."""

import base64
import json
import subprocess
import time
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from conftest import COLORS, made_image, small
from fixtures.live_server import b64, png

from team.clients import Clients, TeamAirflow
from team.compose import PROJECT

pytestmark = [pytest.mark.team, pytest.mark.timeout(2400)]

http = httpx.Client(timeout=60)
CLASSIFY = {"domain": "general", "images": [b64(png(made_image(label, 700 + n))) for n in range(4) for label in COLORS]}


NOISE = 1e-4  # of a probability: batches of another size round differently

Said = list[tuple[str, float]]


def distance(one: Said, other: Said) -> float:
    """How far two answers to the same batch are apart at most."""
    return max(abs(p - q) if a == b else 1.0 for (a, p), (b, q) in zip(one, other, strict=True))


def closest(one: Said, other: Said) -> float:
    """How far they are apart for the image that tells them apart least."""
    return min(abs(p - q) if a == b else 1.0 for (a, p), (b, q) in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def people(team) -> tuple[str, str]:
    return team.env["CLIPFT_TEAM_USER"], team.env["CLIPFT_TEAM_PASSWORD"]


@pytest.fixture(scope="module")
def airflow(team) -> TeamAirflow:
    return TeamAirflow(team)


@pytest.fixture(scope="module")
def chain(team, airflow) -> dict[str, str]:
    """Two models by the real DAGs on made images: runs of `clipft_dataset` and of `clipft_finetune`, twice."""
    flat = small(Path("/sources/images/images.csv"), Path("/sources/tiny"))
    data = {k: v for k, v in flat.items() if k in ("domain", "source", "model.start")}
    training = {k: v for k, v in flat.items() if k != "source"} | {
        "gate.rules": ["gain(score) >= -1"],
        "resolution.evaluate": [32],
    }
    runs = {"dataset": airflow.finish("clipft_dataset", data)}
    runs["first"] = airflow.finish("clipft_finetune", training)
    unsure = {"train.seed": 1, "train.epochs": 1, "train.learning_rate": 1e-4}  # so that its answers are told from the first's
    runs["second"] = airflow.finish("clipft_finetune", training | unsure)
    return runs


def live(team) -> list[dict[str, str]]:
    """What each replica that answers has live, by its own word."""
    found = []
    for replica in team.of("server"):
        try:
            found.append(http.get(f"http://{replica.addresses['inside']}:8800/readyz").json()["live"])
        except httpx.HTTPError:
            continue
    return found


# Where one gets in ---------------------------------------------------------------------------------------------------


def test_every_service_is_healthy_and_airflow_knows_its_dags(team, airflow):
    assert {c.name for c in team.containers if c.alive} >= team.services.keys() - {"airflow-init"}
    health = http.get(team.address(8080) + "/api/v2/monitor/health").json()
    assert all(health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor", "triggerer"))
    there = {p.stem for p in (PROJECT / "dags").glob("*.py")}
    team.until(lambda: airflow.dags() == there, 240, "airflow-dag-processor")
    paused = {d["dag_id"] for d in airflow.call("GET", "/dags?limit=100&paused=true")["dags"]}
    assert paused == {p.stem for p in (PROJECT / "dags").glob("*.py") if "is_paused_upon_creation=True" in p.read_text()}
    assert next(p["slots"] for p in airflow.call("GET", "/pools")["pools"] if p["name"] == "accelerator") == 16


@pytest.mark.parametrize(
    "port, path", [(5050, "/"), (5050, "/api/2.0/mlflow/experiments/search?max_results=1"), (8090, "/datasets.git/HEAD")]
)
def test_mlflow_and_data_ask_who_is_there(team, people, port, path):
    url = team.address(port) + path
    nobody = http.get(url)
    assert nobody.status_code == 401 and "basic" in nobody.headers["www-authenticate"].lower()
    assert http.get(url, auth=(people[0], "guessed")).status_code == 401
    assert http.get(url, auth=people).status_code in (200, 404)


@pytest.mark.parametrize(
    "method, path", [("POST", "/edge_worker/v1/worker/laptop"), ("GET", "/api/v2/dags"), ("GET", "/gateway/v1/me")]
)
def test_airflow_and_the_worker_gateway_ask_too(team, method, path):
    assert http.request(method, team.address(8080) + path, json={}).status_code == 401


def test_a_worker_of_an_earlier_release_is_told_what_to_do(team):
    answer = http.get(team.address(8080) + "/door/v1/me")
    assert answer.status_code == 410 and "make worker" in answer.json()["detail"]


@pytest.mark.parametrize(
    "port, path",
    [
        (8080, "/gateway/jwks"),
        (8080, "/gateway/auth/mlflow"),
        (8800, "/metrics"),
        (8090, "/objects/"),
        (8090, "/datasets.git/config"),
    ],
)
def test_inner_pages_are_not_there_from_outside(team, people, port, path):
    assert http.get(team.address(port) + path, auth=people).status_code == 404


def test_another_machine_reaches_the_gateway_and_nothing_behind_it(team):
    machine = team.join("laptop")
    ask = team.command(machine, "wget", "-qO", "-", "--tries=1", "--timeout=3")
    inside = {name: team.one(name) for name in ("postgres", "store", "mlflow", "server", "worker-gateway", "prometheus")}
    gateway = team.one("gateway").addresses["outside"]
    assert subprocess.run([*ask, f"http://{gateway}:8800/healthz"], capture_output=True).returncode == 0
    for container in inside.values():
        for address in container.addresses.values():
            done = subprocess.run([*ask, f"http://{address}:8800/healthz"], capture_output=True, text=True)
            assert done.returncode, container.name


def test_of_the_store_its_neighbors_reach_what_asks_for_a_key_and_no_more(team):
    ask = ("wget", "-qO", "/dev/null", "--tries=1", "--timeout=3")
    scheduler = team.one("airflow-scheduler")
    assert team.execute(scheduler, *ask, "http://store:8333/healthz").returncode == 0
    assert team.execute(scheduler, *ask, "http://store:8333/data").returncode == 8  # the server's own refusal
    for port in (9333, 8080, 8888):  # master, volumes, filer
        assert team.execute(team.one("store"), *ask, f"http://127.0.0.1:{port}/").returncode in (0, 8)
        assert team.execute(scheduler, *ask, f"http://store:{port}/").returncode == 4  # nobody answers


def test_files_outside_volumes_cannot_be_written_and_nobody_is_root(team):
    for name in ("airflow-scheduler", "mlflow", "server", "worker-gateway"):
        container = team.one(name)
        assert team.execute(container, "id", "-u").stdout.strip() == "10001"
        assert "Read-only" in team.execute(container, "touch", "/opt/clipft/x").stderr
    assert team.execute(team.one("gateway"), "touch", "/srv/datasets/x").returncode


# The chain -----------------------------------------------------------------------------------------------------------


def test_the_whole_chain_runs_and_its_model_is_live_on_every_replica(team, airflow, chain):
    made = airflow.result("clipft_dataset", chain["dataset"], "version")
    assert made["dataset"] == "general/v1" and made["new"]
    for run, version in (("first", "1"), ("second", "2")):
        assert airflow.result("clipft_finetune", chain[run], "deploy")["replicas"] == 3
        assert airflow.result("clipft_finetune", chain[run], "verify")["version"] == version
    assert live(team) == [{"general": "2"}] * 3
    answer = http.post(team.address(8800) + "/v1/classify", json=CLASSIFY)
    assert answer.status_code == 200 and answer.headers["x-clipft-dataset"] == "general/v1"


def test_data_and_models_lie_in_the_store_and_databases_in_postgres(team, chain):
    names = team.execute(
        team.one("airflow-scheduler"), "python", "-c",
        "import boto3, json; print(json.dumps([o['Key'] for o in boto3.client('s3').list_objects_v2(Bucket='data')['Contents']]))",
    )  # fmt: skip
    assert names.returncode == 0 and all(k.startswith("files/md5/") for k in json.loads(names.stdout)), names.stderr
    models = team.execute(
        team.one("mlflow"), "python", "-c",
        "import boto3, json; print(json.dumps([o['Key'] for o in boto3.client('s3', endpoint_url='http://store:8333').list_objects_v2(Bucket='mlflow')['Contents']]))",
    )  # fmt: skip
    assert any(k.endswith("open_clip_model.safetensors") for k in json.loads(models.stdout)), models.stderr
    home = team.folder / "volumes" / "home"
    kept = [
        path for path in home.rglob("*.db") if path.relative_to(home).parts[0] != "cache"
    ]  # what a cache has can be made again
    assert not kept, "a SQLite file beside Postgres"


def test_data_sets_are_read_over_http_and_never_written(team, people, chain, tmp_path):
    host = team.address(8090)
    credentials = base64.b64encode(":".join(people).encode()).decode()
    clone = [
        "git",
        "-c",
        f"http.extraHeader=Authorization: Basic {credentials}",
        "clone",
        "--quiet",
        f"{host}/datasets.git",
        "copy",
    ]
    done = subprocess.run(clone, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tags = subprocess.run(["git", "tag"], cwd=tmp_path / "copy", capture_output=True, text=True).stdout.split()
    assert tags == ["general/v1"]
    digest = next(
        line.split()[-1] for line in (tmp_path / "copy/general/manifest.dvc").read_text().splitlines() if "md5:" in line
    )
    parts = http.get(f"{host}/objects/files/md5/{digest[:2]}/{digest[2:]}", auth=people).json()
    digest = parts[0]["md5"]
    thing = f"{host}/objects/files/md5/{digest[:2]}/{digest[2:]}"
    assert http.get(thing).status_code == 401
    assert http.get(thing, auth=people).content[:4] == b"PAR1" and http.head(thing, auth=people).status_code == 200
    for method in ("PUT", "POST", "DELETE"):
        assert http.request(method, thing, auth=people, content=b"x").status_code in (401, 403, 405)
    assert http.get(thing, auth=people).content[:4] == b"PAR1"


def test_prometheus_sees_every_replica_and_airflows_own_metrics(team, chain):
    def up() -> bool:
        asked = http.get(
            f"http://{team.one('prometheus').addresses['inside']}:9090/api/v1/query", params={"query": "up"}
        ).json()
        jobs = [(r["metric"]["job"], r["value"][1]) for r in asked["data"]["result"]]
        return jobs.count(("clipft-server", "1")) == 3 and jobs.count(("airflow", "1")) == 1

    team.until(up, 60, "prometheus")


# Replicas ------------------------------------------------------------------------------------------------------------


def test_a_replica_killed_under_load_costs_no_client_more_than_one_retry(team, chain):
    victim = team.one("server", 2)
    with Clients(team.address(8800) + "/v1/classify", CLASSIFY, many=4) as clients:
        team.until(lambda: len(clients.answers) >= 30, 60)
        team.kill(victim)
        killed = len(clients.answers)
        team.until(lambda: len(clients.answers) >= killed + 60, 60)
        team.start(victim)  # and it takes part again, only once it can answer
        team.until(lambda: team.healthy(victim) and live(team) == [{"general": "2"}] * 3, 120, "server")
        team.until(lambda: len(clients.answers) >= killed + 120, 60)
    assert not clients.lost, clients.lost[:3]
    assert len(clients.again) <= 8, clients.again  # what each had under way, or sent on a connection that had just been broken
    assert {version for version, _ in clients.answers} == {"2"}


def test_a_promotion_reaches_all_replicas_within_ten_seconds_and_no_batch_mixes_versions(team, airflow, chain):
    """`clipft_rollback` promotes version 1 again, deploys and verifies it, while clients ask for batches of eight."""
    seen: dict[int, float] = {}
    with Clients(team.address(8800) + "/v1/classify", CLASSIFY, many=2) as clients:
        team.until(lambda: len(clients.answers) >= 20, 60)
        run = airflow.trigger("clipft_rollback", {"domain": "general"})
        until = time.monotonic() + 300
        while len(seen) < 3 and time.monotonic() < until:
            for number, said in enumerate(live(team)):
                if said == {"general": "1"}:
                    seen.setdefault(number, time.time())
            time.sleep(0.1)
        airflow.wait("clipft_rollback", run)
        settled = len(clients.answers)
        team.until(lambda: len(clients.answers) >= settled + 20, 60)
    promoted = next(t["end_date"] for t in airflow.tasks("clipft_rollback", run) if t["task_id"] == "promote")
    took = max(seen.values()) - datetime.fromisoformat(promoted).timestamp()
    assert len(seen) == 3 and took < 10, took
    assert not clients.lost, clients.lost[:3]
    own = dict(clients.answers)
    assert own.keys() == {"1", "2"} and closest(own["1"], own["2"]) > 10 * NOISE
    assert all(distance(said, own[version]) < NOISE for version, said in clients.answers)
    print(f"\nA promotion reached three replicas {took:.1f} s after its task ended.")


# What fails and comes back -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["airflow-api", "postgres"])
def test_a_run_goes_on_when_a_service_is_restarted_under_it(team, airflow, chain, service):
    data = {"domain": "general", "source": "/sources/images/images.csv", "model.start": "/sources/tiny"}
    run = airflow.trigger("clipft_dataset", data)
    team.until(lambda: any(t["state"] in ("running", "success") for t in airflow.tasks("clipft_dataset", run)), 120)
    team.restart(team.one(service), 180)
    airflow.wait("clipft_dataset", run)
    made = airflow.result("clipft_dataset", run, "version")
    assert made["dataset"] == "general/v1" and not made["new"], "the same data, once"
    assert all(team.healthy(c) for c in team.containers if c.name in team.services), team.logs()
    assert http.post(team.address(8800) + "/v1/classify", json=CLASSIFY).status_code == 200

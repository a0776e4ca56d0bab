"""`clipft doctor` ends in time whatever answers, says what is wrong and the way out, and tells no secret."""

import json
import socket
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner

from clipft_tasks.cli.main import main
from clipft_tasks.core.settings import settings
from clipft_tasks.ops import databases, installation
from clipft_tasks.ops.doctor import findings, health, machine

SECRET = "a-secret-that-is-never-shown"


class Pretender(HTTPServer):
    """Answers like whatever a test needs: path → (status, content)."""

    def __init__(self, answers: dict[str, tuple[int, object]]) -> None:
        self.answers, self.skew = answers, 0.0
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        status, content = self.server.answers.get(path, (404, "nothing here"))
        self.send_response_only(status)
        self.send_header("Date", self.date_time_string(time.time() + self.server.skew))
        self.end_headers()
        self.wfile.write(content.encode() if isinstance(content, str) else json.dumps(content).encode())

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


def well_airflow() -> dict[str, tuple[int, object]]:
    from importlib.metadata import version

    parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
    return {
        "/api/v2/monitor/health": (200, {p: {"status": "healthy"} for p in parts}),
        "/api/v2/version": (200, {"version": version("apache-airflow")}),
        "/auth/token": (201, {"access_token": SECRET}),
        "/api/v2/importErrors": (200, {"import_errors": []}),
        "/api/v2/dags": (200, {"dags": [{"dag_id": "clipft_finetune"}]}),
        "/api/v2/dags/~/dagRuns": (200, {"dag_runs": [{"dag_id": "clipft_maintenance"}]}),
        "/edge_worker/ui/worker": (200, {"workers": [{"worker_name": "studio", "queues": ["mps"], "state": "idle"}]}),
    }


@pytest.fixture
def airflow(home, monkeypatch):
    server = Pretender(well_airflow())
    monkeypatch.setenv("CLIPFT_AIRFLOW_URL", server.url)
    monkeypatch.setenv("CLIPFT_AIRFLOW_PASSWORD", SECRET)
    settings.cache_clear()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    """The device is looked at elsewhere: PyTorch takes seconds to load."""
    monkeypatch.setattr(machine, "device", lambda: ("ok", "not looked at"))
    monkeypatch.setattr(health, "LIMIT", 120.0)  # a machine that is busy with other tests is not what is tested


def seen() -> dict[str, health.Finding]:
    return {f.thing: f for f in health.run_checks()}


def test_what_does_not_answer_is_wrong_and_comes_with_the_command(home):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        import os

        for name in ("AIRFLOW", "MLFLOW", "SERVER", "PROMETHEUS", "ALERTMANAGER", "GRAFANA"):
            os.environ[f"CLIPFT_{name}_{'URI' if name == 'MLFLOW' else 'URL'}"] = address
        try:
            settings.cache_clear()
            said = CliRunner().invoke(main, ["doctor", "--json"])
        finally:
            for name in [n for n in os.environ if n.startswith("CLIPFT_") and n != "CLIPFT_HOME"]:
                del os.environ[name]
    assert said.exit_code == 1
    found = {f["thing"]: f for f in json.loads(said.output)["found"]}
    for thing in ("Airflow", "MLflow", "Server", "Prometheus", "Alertmanager", "Grafana"):
        assert found[thing]["state"] == "wrong" and "make up" in found[thing]["fix"], found[thing]
    assert found["Models"]["state"] == "none" and "while the server does not answer" in found["Models"]["said"]


def test_what_accepts_and_never_answers_holds_nobody_up(home, monkeypatch):
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(64)
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        for name in ("AIRFLOW_URL", "MLFLOW_URI", "SERVER_URL", "PROMETHEUS_URL"):
            monkeypatch.setenv(f"CLIPFT_{name}", address)
        monkeypatch.setattr(findings, "ANSWER", 1.0)
        settings.cache_clear()
        began = time.monotonic()
        found = {f.thing: f for f in health.run_checks(limit=4)}
    assert time.monotonic() - began < 60  # it would be for ever
    assert found["Airflow"].state == found["MLflow"].state == found["Server"].state == "wrong"


def test_an_installation_that_is_well(airflow):
    found = seen()
    assert found["Airflow"].state == found["DAGs"].state == found["Clock"].state == "ok", found
    assert found["Packages"].state == "ok" and found["Disk"].state in ("ok", "look")
    assert found["Workers"].state == found["MLflow"].state == found["Data sets"].state == "none"


def test_a_package_of_another_version_than_the_lock_is_found(airflow, monkeypatch):
    there = machine.installed()
    assert there["mlflow"] and "apache-airflow" in there
    monkeypatch.setattr(machine, "installed", lambda: there | {"mlflow": "1.0"})
    found = seen()["Packages"]
    assert found.state == "wrong" and found.said.startswith("mlflow 1.0 instead of 3.") and found.fix == "make setup"


def change(path: str, content: object, status: int = 200):
    return lambda server: server.answers.update({path: (status, content)})


FAULTS = {
    "a dead scheduler": (
        change("/api/v2/monitor/health", {"metadatabase": {"status": "healthy"}, "scheduler": {"status": "unhealthy"}}),
        "Airflow",
        "scheduler, dag-processor, triggerer not healthy",
    ),
    "another release": (change("/api/v2/version", {"version": "2.9"}), "Airflow", "2.9 answers and"),
    "a wrong password": (change("/auth/token", {}, 401), "DAGs", "does not accept the password of admin"),
    "a broken DAG": (
        change(
            "/api/v2/importErrors", {"import_errors": [{"filename": "dags/mine.py", "stack_trace": "Traceback\nNameError: x"}]}
        ),
        "DAGs",
        "dags/mine.py cannot be imported: NameError: x",
    ),
    "no DAG of ours": (change("/api/v2/dags", {"dags": []}), "DAGs", "none of clipft's is there"),
    "something else at the address": (
        change("/api/v2/monitor/health", "<html>hello</html>"),
        "Airflow",
        "something else answers",
    ),
    "an answer of another shape": (change("/api/v2/monitor/health", ["x"]), "Airflow", "the check itself failed"),
    "a clock that is off": (lambda server: setattr(server, "skew", -120.0), "Clock", "s ahead of Airflow"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault, airflow):
    make, thing, said = FAULTS[fault]
    make(airflow)
    found = seen()[thing]
    assert found.state == "wrong" and said in found.said and found.fix, found


def test_workers_of_the_queue_that_training_waits_for(airflow, monkeypatch):
    monkeypatch.setenv("CLIPFT_ACCELERATOR_EXECUTOR", "EdgeExecutor")
    monkeypatch.setenv("CLIPFT_ACCELERATOR_QUEUE", "mps")
    settings.cache_clear()
    assert seen()["Workers"] == health.Finding("Workers", "queue mps", "ok", "studio online")
    airflow.answers["/edge_worker/ui/worker"] = (
        200,
        {"workers": [{"worker_name": "studio", "queues": ["mps"], "state": "offline"}]},
    )
    found = seen()["Workers"]
    assert found.state == "wrong" and "studio is offline" in found.said and "clipft worker" in found.fix
    monkeypatch.setenv("CLIPFT_ACCELERATOR_QUEUE", "cuda")
    settings.cache_clear()
    assert "none ever joined" in seen()["Workers"].said


def test_a_champion_that_is_not_live_and_targets_that_are_down(airflow, monkeypatch):
    alias = {"name": "clipft-general", "aliases": [{"alias": "champion", "version": "3"}]}
    more = Pretender(
        {
            "/health": (200, "OK"),
            "/version": (200, "3.17.2"),
            "/api/2.0/mlflow/registered-models/search": (200, {"registered_models": [alias]}),
            "/healthz": (200, {}),
            "/v1/models": (200, {"data": [{"domain": "general", "version": "2"}]}),
            "/metrics": (200, 'clipft_drift_ratio{domain="general",version="2",signal="mmd"} 1.7\n'),
            "/api/v1/targets": (
                200,
                {"data": {"activeTargets": [{"health": "down", "labels": {"job": "airflow"}, "scrapeUrl": "http://u:pw@x/", "lastError": "refused"}]}},
            ),
        }
    )  # fmt: skip
    for name in ("MLFLOW_URI", "SERVER_URL", "PROMETHEUS_URL"):
        monkeypatch.setenv(f"CLIPFT_{name}", more.url)
    settings.cache_clear()
    found = seen()
    assert "champion of general is version 3, live is 2" in found["Models"].said
    assert "target airflow at http://x/ is down: refused" in found["Prometheus"].said
    more.answers["/v1/models"] = (200, {"data": [{"domain": "general", "version": "3"}]})
    found = seen()
    assert found["Models"].state == "look" and "clipft drift general" in found["Models"].fix
    more.answers["/metrics"] = (200, 'clipft_window_items{domain="general",version="3",kind="images"} 12.0\n')
    found = seen()
    assert (
        found["Models"].state == "ok" and "too little traffic to measure drift: general 12 of 64 images" in found["Models"].said
    )
    more.answers["/metrics"] = (200, 'clipft_drift_ratio{domain="general",version="3",signal="mmd"} 0.2\n')
    assert "drift is measured" in seen()["Models"].said
    more.shutdown()
    more.server_close()


def test_secrets_are_never_shown_and_loose_ones_are_found(airflow, monkeypatch):
    monkeypatch.setenv("CLIPFT_MLFLOW_STORE", f"postgresql+psycopg2://mlflow:{SECRET}@127.0.0.1:1/mlflow")
    monkeypatch.setenv("CLIPFT_DATA_REPO", f"https://me:{SECRET}@127.0.0.1:1/datasets.git")
    monkeypatch.setenv("CLIPFT_SERVER_TOKEN", SECRET)
    monkeypatch.setenv("CLIPFT_MLFLOW_URI", f"http://me:{SECRET}@127.0.0.1:1")
    settings.cache_clear()
    file = settings().folder() / "secrets.json"
    file.write_text(SECRET)
    file.chmod(0o644)
    found = health.run_checks()
    assert SECRET not in "\n".join(health.as_lines(found)) and SECRET not in json.dumps(health.as_json(found))
    modes = next(f for f in found if f.thing == "Secrets")
    assert modes.state == "wrong" and modes.fix == f"chmod 600 {file}"


def test_tables_of_another_release_are_told_apart(home):
    file = home / "mlflow" / "mlflow.db"
    file.parent.mkdir(parents=True)
    with sqlite3.connect(file) as there:
        there.execute("create table alembic_version (version_num text)")
        there.execute("insert into alembic_version values ('of tomorrow')")
    assert "a newer release made them" in seen()["Tables, mlflow"].said
    _, newest = databases.known_revisions("mlflow")
    older = (databases.known_revisions("mlflow")[0] - newest).pop()
    with sqlite3.connect(file) as there:
        there.execute("update alembic_version set version_num = ?", (older,))
    found = seen()["Tables, mlflow"]
    assert "of an older release" in found.said and found.fix == "make up"
    file.write_bytes(b"no database at all" * 100)
    assert seen()["Tables, mlflow"].state == "wrong"


def test_a_remote_that_is_gone_or_cannot_be_written(home, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPFT_DVC_REMOTE", str(tmp_path / "remote"))
    settings.cache_clear()
    assert seen()["DVC remote"].state == "none"
    (tmp_path / "remote").write_text("a file in its place")
    found = seen()["DVC remote"]
    assert found.state == "wrong" and "cannot be written" in found.said


def test_the_stacks_addresses_are_known_in_any_shell_and_the_environment_wins(home, monkeypatch):
    installation.save_stack_settings(
        {"CLIPFT_SERVER_URL": "http://127.0.0.1:1", "CLIPFT_AIRFLOW_URL": "http://127.0.0.1:2", "CLIPFT_STACK": "x"}
    )
    file = home / "stack.env"
    assert file.stat().st_mode & 0o777 == 0o600 and "CLIPFT_STACK" not in file.read_text()
    monkeypatch.setenv("CLIPFT_AIRFLOW_URL", "http://127.0.0.1:3")
    monkeypatch.setenv("CLIPFT_SERVER_URL", "")
    monkeypatch.delenv("CLIPFT_SERVER_URL")
    installation.use_stack_settings()
    assert settings().server_url == "http://127.0.0.1:1" and settings().airflow_url == "http://127.0.0.1:3"

"""The checks of what answers over the network, or lies where all share it."""

import base64
import os
import re
import subprocess
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ...core.errors import ClipftError
from ...core.settings import settings
from ...drift.thresholds import WINDOW_MIN_ROWS
from .. import databases
from ..airflow_client import Airflow
from ..installation import log_command, start_command
from .findings import ANSWER, LOOK, NONE, OK, WRONG, Outcome, depends_on, get, json_of, start_hint, without_credentials


def airflow() -> Outcome:
    parts = json_of(get(settings().airflow_url, "/api/v2/monitor/health"))
    wanted = ("metadatabase", "scheduler", "dag_processor", "triggerer")
    ill = [p for p in wanted if (parts.get(p) or {}).get("status") != "healthy"]
    if ill:
        names = ", ".join(p.replace("_", "-") for p in ill)
        return WRONG, f"{names} not healthy", f"{start_command()}; then: {log_command('airflow-' + ill[0].replace('_', '-'))}"
    there = json_of(get(settings().airflow_url, "/api/v2/version"))["version"]
    return _same("apache-airflow", there, "scheduler, dag-processor and triggerer are healthy")


def dags() -> Outcome:
    with depends_on("Airflow"):
        get(settings().airflow_url, "/api/v2/version")
        airflow = Airflow.of_settings(ANSWER)
    if not airflow.logged_in:
        return (
            LOOK,
            "import errors are not looked at without a password",
            "Set CLIPFT_AIRFLOW_USER and CLIPFT_AIRFLOW_PASSWORD.",
        )
    errors = airflow.call("GET", "/importErrors?limit=100")["import_errors"]
    if errors:
        last = errors[0]["stack_trace"].strip().splitlines()[-1]
        return WRONG, f"{errors[0]['filename']} cannot be imported: {last}", f"Correct it; {len(errors)} file(s) in all."
    names = airflow.dags()
    if not names:
        return WRONG, "none of clipft's is there", f"Is the DAG folder this project's? {log_command('airflow-dag-processor')}"
    return OK, f"{len(names)} imported, {airflow.running()} runs under way"


def workers() -> Outcome:
    executor = settings().accelerator_executor or ""
    if "Edge" not in executor:
        return NONE, f"training runs in {executor or 'Airflow’s own executor'} here"
    with depends_on("Airflow"):
        airflow = Airflow.of_settings(ANSWER)
    if not airflow.logged_in:
        return LOOK, "not looked at without a password", "Set CLIPFT_AIRFLOW_USER and CLIPFT_AIRFLOW_PASSWORD."
    wanted = settings().accelerator_queue
    workers = airflow.get("/edge_worker/ui/worker")["workers"]
    mine = [w for w in workers if not w.get("queues") or wanted in w["queues"]]
    gone = ("offline", "unknown", "offline maintenance")
    online = [w["worker_name"] for w in mine if w["state"] not in gone and "maintenance" not in w["state"]]
    if online:
        away = sorted(w["worker_name"] for w in mine if w["worker_name"] not in online)
        return OK, f"{', '.join(sorted(online))} online" + (f"; not: {', '.join(away)}" if away else "")
    known = ", ".join(f"{w['worker_name']} is {w['state']}" for w in mine) or "none ever joined"
    return (
        WRONG,
        f"no worker is online ({known}); training waits",
        "On that machine: clipft worker status; a new one: clipft worker join",
    )


def mlflow() -> Outcome:
    address = settings().mlflow_uri
    if not address:
        return (OK, "spoken with directly, without a server") if _has_tables("mlflow") else (NONE, "nothing was tracked yet")
    login = _mlflow_login()
    get(address, "/health", login)
    there = get(address, "/version", login).text.strip()
    models = json_of(get(address, "/api/2.0/mlflow/registered-models/search?max_results=100", login)).get(
        "registered_models", []
    )
    return _same("mlflow", there, f"{len(models)} registered models")


def _mlflow_login() -> dict[str, str]:
    """The header of MLflow's own client: user and password, or a token, from its environment."""
    user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user:
        both = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(both.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _champions() -> dict[str, str]:
    """The champion's number by domain, of clipft's registered models."""
    address = settings().mlflow_uri
    if not address:
        if not _has_tables("mlflow"):
            return {}
        from ... import tracking

        return tracking.champions()
    query = "/api/2.0/mlflow/registered-models/search?max_results=100"
    found = {}
    for model in json_of(get(address, query, _mlflow_login())).get("registered_models", []):
        for alias in model.get("aliases", []):
            if alias["alias"] == "champion" and model["name"].startswith("clipft-"):
                found[model["name"].removeprefix("clipft-")] = str(alias["version"])
    return found


def _has_tables(name: str) -> bool:
    return any(d.name == name and d.tables() for d in databases.all_databases())


def remote() -> Outcome:
    remote = settings().remote
    if "://" in remote:
        return _store(remote)
    folder = Path(remote)
    if not folder.exists():
        if _has_versions():
            return (
                WRONG,
                "it is gone, and there are data-set versions",
                "clipft restore BACKUP into a new home, or mount that disk.",
            )
        return NONE, "made with the first data set"
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-"):
            pass
        next(folder.iterdir(), None)
    except OSError as error:
        return (
            WRONG,
            f"it cannot be written: {error.strerror}",
            f"Give it to the user that this runs as: chown -R {os.getuid()} {folder}",
        )
    return OK, "readable and writable"


def _store(remote: str) -> Outcome:
    """An object store or web server, through DVC itself, with the credentials that DVC would use."""
    from dvc.repo import Repo

    place = settings().working_copy
    if not (place / ".dvc" / "config").exists():
        return NONE, "looked at once there is a data set"
    try:
        with Repo(str(place)) as repo:
            odb = repo.cloud.get_remote_odb("store")
            written = odb.fs.join(odb.path, ".doctor")
            if settings().reads_only:
                odb.fs.exists(written)
                return OK, "readable"
            odb.fs.pipe_file(written, b"x")
            odb.fs.cat_file(written)
            odb.fs.remove(written)
    except Exception as error:  # whatever the store's own library raises
        fix = "Are CLIPFT_DVC_REMOTE, AWS_ENDPOINT_URL and its keys right, and the store up?"
        return WRONG, f"it cannot be read and written: {without_credentials(str(error).strip() or repr(error))[:200]}", fix
    return OK, "readable and writable"


def _has_versions() -> bool:
    return bool(_tags())


def _tags() -> list[str]:
    """Every version of every domain, oldest first."""
    place = settings().working_copy
    if not (place / ".git").exists():
        return []
    command = ["git", "-C", str(place), "for-each-ref", "--sort=creatordate", "--format=%(refname:strip=2)", "refs/tags/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER, check=False)
    if done.returncode:
        raise ClipftError(
            f"repository {place}",
            (done.stderr.strip() or "git cannot read it").rstrip("."),
            "clipft restore BACKUP",
            code="dataset.repository_failed",
        )
    return done.stdout.split()


def datasets() -> Outcome:
    if not (settings().working_copy / ".git").exists():
        return NONE, "made with the first data set"
    tags = _tags()
    return OK, f"{len(tags)} versions" + (f", the newest {tags[-1]}" if tags else "")


def server() -> Outcome:
    get(settings().server_url, "/healthz")
    live = json_of(get(settings().server_url, "/v1/models"))["data"]
    shown = ", ".join(f"{m['domain']} version {m['version']}" for m in live)
    return OK, f"live: {shown}" if shown else "nothing is live yet"


def models() -> Outcome:
    """Is live what should be, and is drift being measured?"""
    with depends_on("the server"):
        live = {m["domain"]: str(m["version"]) for m in json_of(get(settings().server_url, "/v1/models"))["data"]}
    with depends_on("MLflow"):
        champions = _champions()
    wrong = {d: v for d, v in champions.items() if live.get(d) != v}
    if wrong:
        domain, wanted = next(iter(sorted(wrong.items())))
        said = f"champion of {domain} is version {wanted}, live is {live.get(domain, 'none')}"
        return WRONG, said, f"clipft reconcile, or a look at why it was refused: {log_command('server')}"
    metrics = get(settings().server_url, "/metrics").text
    ratios = [(labels.get("domain", ""), value) for labels, value in _samples(metrics, "clipft_drift_ratio")]
    if over := sorted({domain for domain, ratio in ratios if ratio > 1}):
        return LOOK, f"{', '.join(over)} drifts beyond its limit", f"clipft drift {over[0]}"
    if not champions:
        return NONE, "no champion yet"
    if unmeasured := sorted(champions.keys() - {domain for domain, _ in ratios}):
        rows = {x.get("domain", ""): n for x, n in _samples(metrics, "clipft_window_items") if x.get("kind") == "images"}
        few = ", ".join(f"{domain} {rows.get(domain, 0):.0f}" for domain in unmeasured)
        return OK, f"every champion is live; too little traffic to measure drift: {few} of {WINDOW_MIN_ROWS} images"
    return OK, "every champion is live; drift is measured"


def _samples(metrics: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each sample of a metric, of Prometheus' text."""
    found = re.findall(rf"^{name}\{{([^}}]*)\}} (\S+)", metrics, re.M)
    return [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for labels, value in found]


def prometheus() -> Outcome:
    address = settings().prometheus_url
    if not address:
        return NONE, "drift is read from the server’s own metrics"
    targets = json_of(get(address, "/api/v1/targets?state=active"))["data"]["activeTargets"]
    down = [t for t in targets if t["health"] == "down"]
    if down:
        first = down[0]
        return (
            WRONG,
            f"target {first['labels']['job']} at {without_credentials(first['scrapeUrl'])} is down: {first['lastError']}",
            start_hint("Server"),
        )
    if not targets:
        return WRONG, "it scrapes nothing", "Is its configuration this project's?"
    firing = [a for a in json_of(get(address, "/api/v1/alerts"))["data"]["alerts"] if a["state"] == "firing"]
    if firing:
        names = sorted({a["labels"]["alertname"] for a in firing})
        return LOOK, f"{len(targets)} targets are up; firing: {', '.join(names)}"
    return OK, f"{len(targets)} targets are up, no alert"


def alertmanager() -> Outcome:
    if not settings().alertmanager_url:
        return NONE, ""
    get(settings().alertmanager_url, "/-/ready")
    return OK, "ready"


def grafana() -> Outcome:
    if not settings().grafana_url:
        return NONE, ""
    state = json_of(get(settings().grafana_url, "/api/health")).get("database")
    return (OK, "ready") if state == "ok" else (WRONG, f"its database is {state}", start_hint("Grafana"))


def _same(package: str, there: str, said: str) -> Outcome:
    """Is the service's release the one that this program was made for?"""
    try:
        here = version(package)
    except PackageNotFoundError:
        return OK, f"{there}; {said}"
    if here != there:
        return WRONG, f"{there} answers and {here} is installed here", f"Stop and start it with this release: {start_command()}"
    return OK, f"{there}; {said}"

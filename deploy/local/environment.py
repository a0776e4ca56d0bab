"""The environment of the embedded stack: ports, secrets, and what they mean to Airflow, MLflow and the server."""

import json
import os
import secrets
import shutil
import sys
from pathlib import Path

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.core.files import atomic_write
from clipft_tasks.core.settings import settings
from clipft_tasks.ops.airflow_client import Airflow

PROJECT = Path(__file__).resolve().parents[2]
PORTS = {"airflow": 8080, "mlflow": 5050, "server": 8800, "prometheus": 9090, "alertmanager": 9093, "statsd": 9102}
ALERTMANAGER = ("alertmanager", "prometheus-alertmanager")  # as its packagers call it
USER = "admin"
NAMES = {"jwt", "session", "server", "alerts", "password", "fernet"}
ROLES = ("viewer", "user", "op", "admin")  # as Airflow calls them; each may do what those before it may


def ports() -> dict[str, int]:
    """Ports by program; `CLIPFT_<PROGRAM>_PORT` changes one. Raises: ClipftError for what is no port, or that of two programs."""
    found: dict[str, int] = {}
    for name, usual in PORTS.items():
        given = os.environ.get(variable := f"CLIPFT_{name.upper()}_PORT", "") or str(usual)
        if not (given.isascii() and given.isdigit() and 0 < int(given) < 2**16):
            raise ClipftError(
                f"{variable}={given}", "it is no port", "Give a number from 1 to 65535.", code="stack.invalid_port"
            )
        if int(given) in found.values():
            other = next(other for other, port in found.items() if port == int(given))
            raise ClipftError(
                f"port {given}", f"{other} and {name} are both to have it", f"Choose another for one of them: {variable}.",
                code="stack.invalid_port",
            )  # fmt: skip
        found[name] = int(given)
    return found


def address(name: str) -> str:
    return f"http://127.0.0.1:{ports()[name]}"


def people() -> dict[str, str]:
    """Who may log in to Airflow, by name, with their role: its admin, and those of `CLIPFT_AIRFLOW_USERS` (`vera:viewer ann:user`).

    Raises: ClipftError for a name or role that Airflow does not take.
    """
    found = {USER: "admin"}
    for entry in os.environ.get("CLIPFT_AIRFLOW_USERS", "").split():
        name, _, role = entry.partition(":")
        if role not in ROLES or not name or name == USER or "," in name:
            raise ClipftError(
                f"CLIPFT_AIRFLOW_USERS: {entry}",
                "it is not a name of one's own and a role",
                f"Write name:role, with a role of {', '.join(ROLES)}.",
                code="stack.invalid_user",
            )
        found[name] = role
    return found


def password_of(name: str) -> str:
    """The name of a person's password among the installation's secrets."""
    return "password" if name == USER else f"password:{name}"


def keep_secrets() -> dict[str, str]:
    """The installation's secrets, made on first use and readable by their owner only."""
    path, names = settings().folder() / "secrets.json", NAMES | {password_of(name) for name in people()}
    known = dict(json.loads(path.read_text())) if path.exists() else {}
    if known.keys() >= names:
        return known
    made = {name: secrets.token_urlsafe(9 if name.startswith("password") else 48) for name in names}
    # Fernet wants exactly 32 bytes, padded.
    import base64

    made["fernet"] = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    made |= known  # a newer version may know of more secrets than an older one made
    atomic_write(path, json.dumps(made), mode=0o600)
    return made


def airflow_client() -> Airflow:
    """A client of the embedded Airflow, which answers late while the machine trains."""
    return Airflow(address("airflow"), USER, keep_secrets()["password"], timeout=120)


def environment() -> dict[str, str]:
    """Everything that the programs of the Procfile read, and that their children inherit."""
    home = settings().root
    secret = keep_secrets()
    folder = settings().folder("airflow")
    passwords = folder / "passwords.json"
    atomic_write(passwords, json.dumps({name: secret[password_of(name)] for name in people()}), mode=0o600)
    core: dict[str, object] = {
        "AIRFLOW_HOME": folder,
        "CORE__DAGS_FOLDER": PROJECT / "dags",
        "CORE__PLUGINS_FOLDER": PROJECT / "plugins",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": False,  # but those that say so themselves: a person switches them on
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": 3,
        "CORE__FERNET_KEY": secret["fernet"],
        "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in people().items()),
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": passwords,
        "CORE__EXECUTION_API_SERVER_URL": f"{address('airflow')}/execution/",
        # One writes at a time, and on a machine that trains it may take seconds: others wait instead of failing after five.
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder / 'airflow.db'}?timeout=60",
        "API__BASE_URL": address("airflow"),
        "API__PORT": ports()["airflow"],
        "API__SECRET_KEY": secret["session"],
        "API_AUTH__JWT_SECRET": secret["jwt"],
        # Airflow answers its tasks late too: after 5 s, as usual, they would fail before they begin.
        "WORKERS__EXECUTION_API_TIMEOUT": 30,
        "WORKERS__EXECUTION_API_RETRIES": 8,  # as usual, 5, they give up sooner than it is started again
        "LOGGING__BASE_LOG_FOLDER": folder / "logs",
        # A new run starts its first task within about a second.
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": 0.5,
        "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": 2,
        "SCHEDULER__JOB_HEARTBEAT_SEC": 2,
        # After a crash or `make down`, tasks that were running are found and tried again within seconds, not minutes.
        "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": 20,
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": 5,
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": 60,
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": 5,
        "DAG_PROCESSOR__REFRESH_INTERVAL": 10,
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 60,
        "DAG_PROCESSOR__PARSING_PROCESSES": 1,
        "DAG_PROCESSOR__PRINT_STATS_INTERVAL": 0,
        # Its own metrics, with labels instead of long names.
        "METRICS__STATSD_ON": True,
        "METRICS__STATSD_HOST": "127.0.0.1",
        "METRICS__STATSD_PORT": ports()["statsd"],
        "METRICS__STATSD_INFLUXDB_ENABLED": True,
        "METRICS__LEGACY_NAMES_ON": False,
    }
    artifacts = settings().folder("mlflow", "artifacts")
    # Import paths of stages inside tasks: the project itself, whether or not it is installed.
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    return {
        # The stack speaks with its own MLflow, whatever this shell (or a library that wrote there) last spoke with.
        **{k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")},
        **{(k if k == "AIRFLOW_HOME" else f"AIRFLOW__{k}"): str(v) for k, v in core.items()},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": os.environ.get(
            "OMP_NUM_THREADS", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2)
        ),
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight idle processes less
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "DO_NOT_TRACK": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "CLIPFT_HOME": str(home),
        "CLIPFT_STACK": str(home),  # marks every process of this stack, so that none is left behind
        "CLIPFT_MLFLOW_URI": address("mlflow"),
        "CLIPFT_MLFLOW_UI": address("mlflow"),
        "CLIPFT_MLFLOW_STORE": f"sqlite:///{home / 'mlflow' / 'mlflow.db'}",
        "CLIPFT_MLFLOW_ARTIFACTS": artifacts.as_uri(),
        "CLIPFT_AIRFLOW_URL": address("airflow"),
        "CLIPFT_AIRFLOW_USER": USER,
        "CLIPFT_AIRFLOW_PASSWORD": secret["password"],
        "CLIPFT_AIRFLOW_DB": f"sqlite:///{folder / 'airflow.db'}",
        "CLIPFT_SERVER_URL": address("server"),
        "CLIPFT_SERVER_TOKEN": secret["server"],
        "CLIPFT_ALERT_TOKEN": secret["alerts"],
        "CLIPFT_PROMETHEUS_URL": address("prometheus") if shutil.which("prometheus") else "",
        "CLIPFT_ALERTMANAGER_URL": address("alertmanager") if any(map(shutil.which, ALERTMANAGER)) else "",
        "CLIPFT_PROMETHEUS_CONFIG": str(home / "prometheus.yml"),
        "CLIPFT_PROMETHEUS_DATA": str(settings().folder("prometheus")),
        "CLIPFT_ALERTMANAGER_CONFIG": str(home / "alertmanager.yml"),
        "CLIPFT_ALERTMANAGER_DATA": str(settings().folder("alertmanager")),
        **{f"CLIPFT_{name.upper()}_PORT": str(port) for name, port in ports().items()},
    }

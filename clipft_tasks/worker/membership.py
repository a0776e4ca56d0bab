"""What makes this machine a worker: a name, a secret, addresses. Kept in one file that only its owner can read."""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import ValidationError

from ..contracts.worker_gateway import Answer, Enrollment, Greeting, Refusal
from ..core.errors import ClipftError, TransientError
from ..core.files import atomic_write
from ..core.settings import settings
from ..core.versions import PROJECT

T = TypeVar("T", bound=Answer)
# What a person may set for this machine alone; everything else comes from the control plane.
OWN = ("CLIPFT_CACHE_GB", "CLIPFT_SHARDS_GB", "CLIPFT_UPLOAD_SECONDS", "CLIPFT_THREADS", "CLIPFT_DOMAINS_PATH")


@dataclass(frozen=True)
class ControlPlane:
    """What a control plane says of itself; `skew`: seconds that its clock is ahead of ours."""

    about: Greeting
    skew: float


@dataclass(frozen=True)
class Membership:
    """Attributes:
    url: of the team's Airflow, as given to `join`.
    addresses: of airflow, mlflow, data and studies, as the control plane says.
    queue: whose tasks this machine takes, by the name of its device.
    ca: file with the certificate authority to trust beside the system's own; empty for none.
    """

    url: str
    name: str
    secret: str
    addresses: dict[str, str]
    queue: str
    ca: str = ""

    def keep(self) -> None:
        """Write it down, readable by its owner alone."""
        atomic_write(membership_path(), json.dumps(asdict(self), indent=1), mode=0o600)

    @classmethod
    def read(cls) -> "Membership":
        """Raises ClipftError when this machine has not joined."""
        try:
            fields = json.loads(membership_path().read_text())
            addresses = fields.pop("addresses")
            if "studies" in addresses:  # who joined with an earlier release knows it by another path
                addresses["studies"] = addresses["studies"].replace("/door/v1/", "/gateway/v1/")
            return cls(addresses=addresses, **fields)
        except FileNotFoundError:
            raise ClipftError(
                "this machine",
                f"it is no worker yet: there is no {membership_path()}",
                "Run `clipft worker join URL --code …` first.",
                code="worker.not_joined",
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise ClipftError(
                f"{membership_path()}", f"it cannot be read: {error}", "Join again.", code="worker.unreadable_membership"
            ) from None

    def ask(self) -> ControlPlane:
        """What the control plane says of itself to this worker. Raises as `look`."""
        return _read_about(_send("GET", self.url, "me", ca=self.ca, auth=(self.name, self.secret)))

    def leave(self) -> None:
        """Have the control plane forget this worker's secret. Raises as `look`."""
        _send("DELETE", self.url, "me", ca=self.ca, auth=(self.name, self.secret))

    def environment(self, given: Mapping[str, str] = os.environ) -> dict[str, str]:
        """What `airflow edge worker` and its tasks read."""
        home, air = settings().root, self.addresses["airflow"]
        user = {
            k: v for k, v in given.items() if k in OWN or not k.startswith(("CLIPFT_", "MLFLOW_TRACKING", "MLFLOW_REGISTRY"))
        }
        defaults = {
            "AIRFLOW__EDGE__JOB_POLL_INTERVAL": "2",
            "AIRFLOW__EDGE__HEARTBEAT_INTERVAL": "10",
            # A control plane that is away for a while costs patience, not the task.
            "AIRFLOW__EDGE__API_RETRIES": "60",
            "AIRFLOW__EDGE__API_RETRY_WAIT_MAX": "20",
            "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "30",
            "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "15",
            "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "20",
            "AIRFLOW__CORE__EXECUTE_TASKS_NEW_PYTHON_INTERPRETER": "True",
            "CLIPFT_UPLOAD_SECONDS": "300",
            "CLIPFT_SHARDS_GB": "50",
        }
        fixed = {
            "AIRFLOW_HOME": settings().folder("worker", "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": PROJECT / "dags",
            "AIRFLOW__CORE__PLUGINS_FOLDER": PROJECT / "plugins",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            # Those that DAG files name, or the files are no DAGs here.
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor,airflow.providers.edge3.executors.EdgeExecutor",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{air}/execution/",
            "AIRFLOW__EDGE__API_ENABLED": "True",
            "AIRFLOW__EDGE__API_URL": f"{air}/edge_worker/v1/rpcapi",
            "AIRFLOW__API_AUTH__JWT_SECRET": self.secret,
            "AIRFLOW__API_AUTH__JWT_KID": self.name,
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": settings().folder("worker", "airflow", "logs"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), user.get("PYTHONPATH", "")])),
            "PYTHONUNBUFFERED": "1",
            "PYTORCH_MPS_HIGH_WATERMARK_RATIO": "1.0",  # fail before the machine swaps; the loop takes smaller parts then
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), user.get("PATH", os.defpath)]),
            "GIT_PYTHON_REFRESH": "quiet",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_TRACKING_USERNAME": self.name,
            "MLFLOW_TRACKING_PASSWORD": self.secret,
            "DO_NOT_TRACK": "1",
            "CLIPFT_HOME": home,
            "CLIPFT_MLFLOW_URI": self.addresses["mlflow"],
            "CLIPFT_MLFLOW_UI": self.addresses["mlflow"],
            "CLIPFT_DATA_REPO": f"{self.addresses['data']}/datasets.git",
            "CLIPFT_DVC_REMOTE": f"{self.addresses['data']}/objects",
            "CLIPFT_WORKER_NAME": self.name,
            "CLIPFT_WORKER_SECRET": self.secret,
        }
        from ..devices import REGISTRY, backend

        if self.queue in REGISTRY.names() and not backend(self.queue).forks:
            fixed["AIRFLOW__CORE__EXECUTE_TASKS_NEW_PYTHON_INTERPRETER"] = "True"
        if self.addresses.get("studies"):
            fixed["CLIPFT_TUNING_URL"] = self.addresses["studies"]
        if self.ca:
            fixed |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"), self.ca)
        return defaults | user | {k: str(v) for k, v in fixed.items()}


def membership_path() -> Path:
    return settings().folder("worker") / "worker.json"


def delete() -> None:
    """This machine is no worker any more."""
    membership_path().unlink(missing_ok=True)


def look(url: str, code: str, ca: str = "") -> ControlPlane:
    """What the control plane at a URL says of itself to who was invited; the code can still be used afterwards.

    Raises: TransientError (nobody answers, or 5xx); ClipftError (it turns this machine away, and why; or it is no control plane).
    """
    return _read_about(_send("POST", url, "look", ca=ca, json={"code": code}))


def join(url: str, code: str, device: str, ca: str = "") -> Enrollment:
    """Use a code up: from now on this machine is a worker, with the secret of the answer. Raises as `look`."""
    return _read(Enrollment, _send("POST", url, "join", ca=ca, json={"code": code, "device": device}).response)


@dataclass(frozen=True)
class _Exchange:
    response: httpx.Response
    middle: float  # of the time that it took, seconds since 1970


def _send(
    method: str, url: str, path: str, *, ca: str, json: dict[str, str] | None = None, auth: tuple[str, str] | None = None
) -> _Exchange:
    """One request to the worker gateway, below `url`."""
    where = f"{url.rstrip('/')}/gateway/v1/{path}"
    before = time.time()
    try:
        answer = httpx.request(method, where, timeout=20, verify=ca or True, json=json, auth=auth)
    except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise TransientError(f"The control plane at {url} does not answer ({error or type(error).__name__}).") from error
    after = time.time()
    if answer.status_code >= 500:
        raise TransientError(f"The control plane at {url} answered {answer.status_code}.")
    if answer.is_error:
        if answer.status_code != 404 and (refusal := Refusal.read(answer.content)):
            why = f"it turned this machine away: {refusal.detail.rstrip('.')}"
            raise ClipftError(f"the control plane at {url}", why, code=refusal.code)
        raise _not_a_control_plane(answer)
    return _Exchange(answer, (before + after) / 2)


def _read(what: type[T], answer: httpx.Response) -> T:
    try:
        return what.model_validate_json(answer.content)
    except ValidationError:
        raise _not_a_control_plane(answer) from None


def _read_about(exchange: _Exchange) -> ControlPlane:
    about = _read(Greeting, exchange.response)
    return ControlPlane(about, about.time - exchange.middle)


def _not_a_control_plane(answer: httpx.Response) -> ClipftError:
    why = f"it answered {answer.status_code}, and not as a clipft control plane of this release does"
    return ClipftError(str(answer.request.url), why, "Is that the address of its Airflow?", code="worker.no_gateway")

"""What a worker may ask of Airflow, MLflow and the data: read data, read the registry, write runs. All else is refused."""

import re
from urllib.parse import unquote

# MLflow, below /api/2.0/ or /api/3.0/. Registered models and their versions are written by the control plane alone.
READS = re.compile(
    r"mlflow/(experiments/(get|get-by-name|search)|runs/get|metrics/get-history(-bulk-interval)?|artifacts/list"
    r"|logged-models/[^/]+(/artifacts/directories)?|registered-models/(get|alias|search|get-latest-versions)"
    r"|model-versions/(get|search|get-download-uri)|server-info)"
    r"|mlflow-artifacts/(artifacts(/.*)?|presigned/.+)"
)
WRITES = {
    "POST": re.compile(
        r"mlflow/(experiments/(create|search)|runs/(create|update|search|log-batch|log-metric|log-parameter|log-inputs|log-model"
        r"|outputs|set-tag|delete-tag)|logged-models(/search|/[^/]+/params)?|artifacts/presigned-(down|up)load-url"
        r"|registered-models/get-latest-versions)"
        r"|mlflow-artifacts/mpu/(create|complete|abort)/.+"
    ),
    "PATCH": re.compile(r"mlflow/logged-models/[^/]+(/tags)?"),
    "PUT": re.compile(r"mlflow-artifacts/artifacts/.+"),
    # Checkpoints of a run under way are a worker's own, and large.
    "DELETE": re.compile(r"mlflow-artifacts/artifacts/.*/artifacts/checkpoints/[^/]+"),
}
API = re.compile(r"(?:/[a-z]+)?/(?:api|ajax-api)/[23]\.0/(?P<call>.+)")  # perhaps below a prefix
EDGE = re.compile(r"/edge_worker/v1/(?P<call>.+)")
OWN = re.compile(r"(?:worker|worker/queues|jobs/fetch)/(?P<name>[^/]+)")


def normalized_path(uri: str) -> str | None:
    """The decoded path of a request's URI; None when it tries to be another path than it looks like."""
    path = unquote(uri.partition("?")[0].partition("#")[0])
    parts = path.split("/")
    if ".." in parts or "." in parts or "\\" in path or "%" in path or "//" in path:
        return None
    return path


def is_allowed(method: str, uri: str) -> bool:
    """Whether a worker may do this in MLflow."""
    path = normalized_path(uri)
    if path in ("/health", "/version") and method == "GET":
        return True
    match = API.fullmatch(path) if path else None
    if not match:
        return False
    call = match["call"]
    if method in ("GET", "HEAD") and READS.fullmatch(call):
        return True
    return method in WRITES and bool(WRITES[method].fullmatch(call))


def edge_call(path: str) -> str | None:
    """What a path asks of Airflow's edge API (`jobs/fetch/desk`), or None when it is another part of Airflow."""
    match = EDGE.fullmatch(path)
    return match["call"] if match else None


def worker_named_in(call: str) -> str | None:
    """Whose worker an edge call is about, where it names one."""
    match = OWN.fullmatch(call)
    return match["name"] if match else None

"""Files of models that lie in MLflow's store already. Each is written once: what was evaluated is what is served."""

import re
from urllib.parse import unquote

import httpx

from .errors import RefusedError
from .policy import normalized_path

MODEL_FILE = re.compile(
    r"(?:/[a-z]+)?/(?:api|ajax-api)/[23]\.0/mlflow-artifacts/(?:artifacts|mpu/create)/(?P<path>(?:.+/)?models/m-.+)"
)


class WrittenOnce:
    """Asks MLflow what is there.

    Args:
        mlflow: its address for the gateway; "": nobody is asked, and files may be replaced.
    """

    def __init__(self, mlflow: str) -> None:
        self._mlflow = mlflow.rstrip("/")

    def check(self, method: str, uri: str) -> None:
        """Raises RefusedError: 403 where a request would replace a file of a model, 503 where MLflow cannot say."""
        found = MODEL_FILE.fullmatch(normalized_path(uri) or "") if method in ("PUT", "POST") else None
        if found is None or not self._mlflow:
            return
        folder, _, name = unquote(found["path"]).rpartition("/")
        try:
            answer = httpx.get(
                f"{self._mlflow}/api/2.0/mlflow-artifacts/artifacts", params={"path": folder}, timeout=20, trust_env=False
            )
            answer.raise_for_status()
            there = {str(file["path"]) for file in answer.json().get("files", [])}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            why = f"MLflow does not say whether {name} is there already ({type(error).__name__})."
            raise RefusedError(503, why, code="gateway.mlflow_away") from None
        if name in there or f"{folder}/{name}" in there:
            why = f"{name} of this model is there already, and a model's files are written once."
            raise RefusedError(403, why, code="gateway.written_once")

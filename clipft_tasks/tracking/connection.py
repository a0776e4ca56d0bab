"""MLflow's client, and what its errors mean for a task."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ..core.errors import TransientError
from ..core.settings import settings

# MLflow writes what it has to say, news and warnings alike, to the error stream, where Airflow takes every line for an error. By
# Python's logging, it is logged as what it is.
_mlflow_log = logging.getLogger("mlflow")
_mlflow_log.handlers.clear()
_mlflow_log.propagate = True


def client() -> MlflowClient:
    """A client of the tracking server and registry that settings name."""
    uri = settings().tracking_uri
    if not settings().mlflow_uri:
        settings().folder("mlflow")
    elif uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    # A server that is away must be noticed in seconds: the task is retried by Airflow, not by an HTTP library for hours.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # Bytes come from MLflow itself, not from its store by signed address: most of those who ask cannot reach the store.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return MlflowClient()


def is_unreachable(error: Exception) -> bool:
    """Whether MLflow's client says that nobody answered."""
    return "API request to" in str(error) or "Max retries" in str(error)


@contextmanager
def retryable() -> Iterator[None]:
    """Turn "MLflow cannot be reached" into TransientError, so that the task is tried again."""
    try:
        yield
    except MlflowException as error:
        if is_unreachable(error):
            raise TransientError(f"MLflow at {settings().tracking_uri} does not answer: {error}") from error
        raise

"""MLflow: runs, checkpoints, packages, registry and aliases. Nobody else asks MLflow for anything but serving a package."""

from .checkpoints import delete_checkpoint, fetch_checkpoint, save_checkpoint
from .connection import client, retryable
from .packages import fetch_candidate, fetch_package, log_model
from .registry import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    champion,
    champions,
    lineage,
    model_name,
    promote,
    register,
    resolve_version,
    restore,
    version_by_alias,
    version_number,
)
from .runs import (
    find_run,
    finish_run,
    get_or_create_experiment,
    get_or_create_run,
    load_json_artifact,
    log_page,
    log_params,
    log_steps,
    run_link,
)

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "PREVIOUS",
    "champion",
    "champions",
    "client",
    "delete_checkpoint",
    "fetch_candidate",
    "fetch_checkpoint",
    "fetch_package",
    "find_run",
    "finish_run",
    "get_or_create_experiment",
    "get_or_create_run",
    "lineage",
    "load_json_artifact",
    "log_model",
    "log_page",
    "log_params",
    "log_steps",
    "model_name",
    "promote",
    "register",
    "resolve_version",
    "restore",
    "retryable",
    "run_link",
    "save_checkpoint",
    "version_by_alias",
    "version_number",
]

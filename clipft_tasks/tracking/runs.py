"""Runs: found by their key (tag `clipft.key`), the hash of what they were asked to do; that is what makes stages idempotent."""

import getpass
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Run
from mlflow.exceptions import MlflowException

from ..core.settings import settings
from ..domains import domain_names
from .connection import client
from .leases import exclusively

CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}
# What the experiments `clipft-<domain>` and `clipft-<domain>-<what>` hold, by what.
ABOUT = {
    "": "Fine-tunings of the domain {}: one run a training, with its evaluation and the package that is registered.",
    "data": "Data reports of the domain {}: one run a source that was checked.",
    "drift": "Drift reports of the domain {}: one run a suggestion.",
}

JsonObject: TypeAlias = dict[str, Any]  # of any record: it has no narrower type


def get_or_create_experiment(name: str) -> str:
    """The id of an experiment, created on first use."""
    found = client().get_experiment_by_name(name)
    if found:
        return found.experiment_id
    where = None
    if settings().tracking_uri.startswith("sqlite:"):
        where = settings().folder("mlflow", "artifacts", name).as_uri()
    try:
        return client().create_experiment(name, artifact_location=where, tags=_about(name))
    except MlflowException:  # another task was first
        found = client().get_experiment_by_name(name)
        if not found:
            raise
        return found.experiment_id


def find_run(key: str, experiment_id: str) -> Run | None:
    """The newest run of a key, whatever its state."""
    runs = client().search_runs([experiment_id], f"tags.`clipft.key` = '{key}'", max_results=1)
    return runs[0] if runs else None


def get_or_create_run(domain: str, key: str, name: str, tags: Mapping[str, str]) -> Run:
    """The run of a key: the one that there is, reopened, or a new one."""
    experiment_id = get_or_create_experiment(f"clipft-{domain}")
    with exclusively(f"runs.{domain}"):  # two tries of one task, on two machines, must not both find nothing
        found = find_run(key, experiment_id)
        if found is None:
            return client().create_run(experiment_id, run_name=name, tags={"clipft.key": key, **_origin(tags), **tags})
    client().update_run(found.info.run_id, status="RUNNING")
    return found


def finish_run(run_id: str, status: str = "FINISHED") -> None:
    client().set_terminated(run_id, status)


def log_dataset(run_id: str, tag: str, revision: str, content: str, counts: Mapping[str, int], source: str) -> None:
    """Say which data a run works on: an input for each split, with its digest and where it comes from. Safe to repeat.

    Args:
        tag, revision: of the dataset version (`industrial/v3`, a git commit). content: the digest of its rows.
        counts: rows by split.
        source: the repository of data sets.
    """
    where = json.dumps({"repository": source, "tag": tag, "revision": revision})
    inputs = [
        DatasetInput(
            Dataset(tag, f"{content[:24]}-{split}", "dvc", where, profile=json.dumps({"rows": rows})),
            [InputTag("mlflow.data.context", CONTEXTS.get(split, split))],
        )
        for split, rows in counts.items()
    ]
    client().log_inputs(run_id, inputs)


def _origin(tags: Mapping[str, str]) -> dict[str, str]:
    """Who made a run, from where: what MLflow's tables show."""
    asked = tags.get("clipft.dag_run", "")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    return {
        "mlflow.user": user,
        "mlflow.source.type": "JOB" if asked else "LOCAL",
        "mlflow.source.name": asked or "clipft",
    }


def _about(experiment: str) -> dict[str, str]:
    """The description of an experiment, and that it is about models which are trained: MLflow shows those pages first."""
    _, domain, what = [*experiment.split("-"), "", ""][:3]
    said = ABOUT.get(what, "") if domain in domain_names() else ""
    return {"mlflow.experimentKind": "custom_model_development"} | (
        {"mlflow.note.content": said.format(domain)} if said else {}
    )


def log_params(run_id: str, params: Mapping[str, object]) -> None:
    """Log parameters; a value that a resumed run already logged is left as it is."""
    logged = client().get_run(run_id).data.params
    new = [mlflow.entities.Param(k, str(v)) for k, v in params.items() if k not in logged]
    for i in range(0, len(new), 100):
        client().log_batch(run_id, params=new[i : i + 100])


def log_steps(run_id: str, steps: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    """Log metrics of training steps, many at a time; those of an epoch begin with `val.`."""
    now = int(time.time() * 1000)
    metrics = [
        mlflow.entities.Metric(k if k.startswith("val.") else f"train.{k}", float(v), now, step)
        for step, values in steps
        for k, v in values.items()
    ]
    for i in range(0, len(metrics), 1000):
        client().log_batch(run_id, metrics=metrics[i : i + 1000])


def log_page(experiment: str, key: str, name: str, tags: Mapping[str, str], metrics: Mapping[str, float], page: Path) -> str:
    """Put an HTML page into the run of a key, made when missing; returns its address."""
    experiment_id = get_or_create_experiment(experiment)
    run = find_run(key, experiment_id)
    if run is None:
        run = client().create_run(experiment_id, run_name=name, tags={"clipft.key": key, **_origin(tags), **tags})
    for metric, value in metrics.items():
        client().log_metric(run.info.run_id, metric, value)
    client().log_artifact(run.info.run_id, str(page))
    finish_run(run.info.run_id)
    return run_link(run, f"artifacts/{page.name}")


def load_json_artifact(run_id: str, name: str) -> JsonObject:
    """A JSON artifact of a run, or {} when there is none: MLflow copies files in place, so that of a killed process may be a part."""
    client()
    try:
        return cast(JsonObject, json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{name}")))
    except (MlflowException, OSError, ValueError):
        return {}


def run_link(run: Run, page: str = "") -> str:
    """The address of a run's page for a person; where MLflow has no pages, that of its files."""
    if not settings().mlflow_pages:
        return f"{str(run.info.artifact_uri).removesuffix('/artifacts')}/{page or 'artifacts'}"
    return f"{settings().mlflow_pages}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" + (
        f"/{page}" if page else ""
    )

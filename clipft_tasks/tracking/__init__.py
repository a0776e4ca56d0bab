"""MLflow: runs, registry and aliases. The only module that imports mlflow for anything but serving a package.

A run is found by its key (tag `clipft.key`), the hash of what it was asked to do; that is what makes stages idempotent.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import mlflow
from filelock import FileLock
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ..core.console import say
from ..core.errors import ClipftError, Transient
from ..core.settings import settings
from ..data.expectations import Check
from ..drift import incidents as incident_rules

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"


def client() -> MlflowClient:
    """A client of the tracking server and registry that settings name."""
    uri = settings().tracking_uri
    if uri.startswith("sqlite:///"):
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


def _away(error: Exception) -> bool:
    return "API request to" in str(error) or "Max retries" in str(error)


@contextmanager
def retryable() -> Iterator[None]:
    """Turn "MLflow cannot be reached" into Transient, so that the task is tried again."""
    try:
        yield
    except MlflowException as error:
        if _away(error):
            raise Transient(f"MLflow at {settings().tracking_uri} does not answer: {error}") from error
        raise


# Runs ----------------------------------------------------------------------------------------------------------------


def experiment(name: str) -> str:
    """The id of an experiment, created on first use."""
    found = client().get_experiment_by_name(name)
    if found:
        return cast(str, found.experiment_id)
    where = None
    if settings().tracking_uri.startswith("sqlite:"):
        where = settings().folder("mlflow", "artifacts", name).as_uri()
    try:
        return cast(str, client().create_experiment(name, artifact_location=where))
    except MlflowException:  # another task was first
        found = client().get_experiment_by_name(name)
        if not found:
            raise
        return cast(str, found.experiment_id)


def run_of(key: str, experiment_id: str) -> Run | None:
    """The newest run of a key, whatever its state."""
    runs = client().search_runs([experiment_id], f"tags.`clipft.key` = '{key}'", max_results=1)
    return runs[0] if runs else None


def begin(domain: str, key: str, name: str, tags: Mapping[str, str]) -> Run:
    """The run of a key: the one that there is, reopened, or a new one."""
    experiment_id = experiment(f"clipft-{domain}")
    found = run_of(key, experiment_id)
    if found:
        client().update_run(found.info.run_id, status="RUNNING")
        return found
    return client().create_run(experiment_id, run_name=name, tags={"clipft.key": key, **tags})


def finish(run_id: str, status: str = "FINISHED") -> None:
    client().set_terminated(run_id, status)


def log_params(run_id: str, params: Mapping[str, Any]) -> None:
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


CHECKPOINT = "clipft.checkpoint"


def keep_checkpoint(run_id: str, path: Path) -> None:
    """Put a checkpoint beside a run, so that another machine may go on from it; the ones before are removed.

    The run's tag that names it comes last: what it names is whole.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    there = client()
    before = there.get_run(run_id).data.tags.get(CHECKPOINT)
    name = f"checkpoints/{path.stem}-{digest[:12]}.pt"
    copy = path.with_name(name.rpartition("/")[2])
    copy.unlink(missing_ok=True)
    os.link(path, copy)
    try:
        there.log_artifact(run_id, str(copy), "checkpoints")
    finally:
        copy.unlink()
    there.set_tag(run_id, CHECKPOINT, json.dumps({"name": name, "sha256": digest, "file": path.name}))
    if before and (old := json.loads(before)["name"]) != name:
        _drop_artifact(run_id, old)


def fetch_checkpoint(run_id: str, folder: Path) -> Path | None:
    """The checkpoint that another machine left beside a run, put into `folder` unless one as new is there; else None.

    One that is not what its digest says is said and ignored.
    """
    tag = client().get_run(run_id).data.tags.get(CHECKPOINT)
    if not tag:
        return None
    about = json.loads(tag)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / about["file"]
    if any(p.name >= target.name for p in folder.glob("step-*.pt")):
        return None
    incoming = folder / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    try:
        with retryable():
            got = Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{about['name']}", dst_path=str(incoming)))
        with got.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
                raise OSError("its digest is another")
        os.replace(got, target)
    except (MlflowException, OSError) as error:
        say(f"Checkpoint {about['name']} of run {run_id} cannot be used ({error}): training begins again.")
        return None
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return target


def forget_checkpoint(run_id: str) -> None:
    """Remove a finished run's checkpoint."""
    tag = client().get_run(run_id).data.tags.get(CHECKPOINT)
    if tag:
        client().delete_tag(run_id, CHECKPOINT)
        _drop_artifact(run_id, json.loads(tag)["name"])


def _drop_artifact(run_id: str, name: str) -> None:
    """Remove one artifact of a run, where the store can do that; what stays takes space and nothing else."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        get_artifact_repository(client().get_run(run_id).info.artifact_uri).delete_artifacts(name)
    except Exception as error:  # stores raise what they like
        say(f"{name} of run {run_id} stays in MLflow: {str(error).splitlines()[0] if str(error) else type(error).__name__}")


def log_data_report(domain: str, card: Mapping[str, Any], checks: Sequence[Check], page: Path) -> str:
    """Keep a data report in MLflow; returns the address of the page."""
    experiment_id = experiment(f"clipft-{domain}-data")
    run = run_of(card["content"], experiment_id)
    if run is None:
        tags = {"clipft.key": card["content"], "clipft.source": card["source"]}
        run = client().create_run(experiment_id, run_name=f"data {card['source']}", tags=tags)
    for name in ("rows", "rejected"):
        client().log_metric(run.info.run_id, name, card[name])
    client().log_metric(run.info.run_id, "checks_failed", sum(not c.passed for c in checks))
    client().log_artifact(run.info.run_id, str(page))
    finish(run.info.run_id)
    return run_link(run, "artifacts/report.html")


def log_model(package: Path) -> str:
    """Log a model package to the active run as a pyfunc model (models from code, no pickles); returns its URI."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    code = Path(__file__).parents[1] / "model" / "pyfunc.py"
    columns: list[Any] = [ColSpec(DataType.string, "image", required=False), ColSpec(DataType.string, "text", required=False)]
    info = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(code),
        artifacts={"package": str(package)},
        signature=ModelSignature(inputs=Schema(columns)),
        pip_requirements=["open_clip_torch", "transformers", "timm", "torch", "pillow", "pandas", "mlflow"],
    )
    return cast(str, info.model_uri)


def run_link(run: Run, page: str = "") -> str:
    """The address of a run's page for a person."""
    return f"{settings().mlflow_ui}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" + (
        f"/{page}" if page else ""
    )


# Registry ------------------------------------------------------------------------------------------------------------


def model_name(domain: str) -> str:
    return f"clipft-{domain}"


def number(version: ModelVersion | None) -> str:
    """A version's number as text, whichever store answered (one gives integers); "" for none."""
    return str(version.version) if version else ""


def by_alias(domain: str, alias: str) -> ModelVersion | None:
    """The version that carries an alias, or None."""
    try:
        return client().get_model_version_by_alias(model_name(domain), alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def champion(domain: str) -> ModelVersion | None:
    with retryable():
        return by_alias(domain, CHAMPION)


def champions() -> dict[str, str]:
    """The champion's number by domain, for every model that clipft registered."""
    found = {}
    for model in client().search_registered_models("name LIKE 'clipft-%'"):
        if CHAMPION in model.aliases:
            found[model.name.removeprefix("clipft-")] = str(model.aliases[CHAMPION])
    return found


def version_of(uri: str) -> ModelVersion:
    """The version that `models:/name/3` or `models:/name@alias` names. Raises ClipftError when there is none."""
    body = uri.removeprefix("models:/")
    try:
        if "@" in body:
            name, alias = body.split("@", 1)
            return client().get_model_version_by_alias(name, alias)
        name, number = body.rsplit("/", 1)
        return client().get_model_version(name, number)
    except (MlflowException, ValueError) as error:
        if _away(error):
            raise Transient(f"MLflow at {settings().tracking_uri} does not answer: {error}") from error
        raise ClipftError(f"model {uri!r}", f"the registry does not know it ({error})", "See MLflow's models page.") from None


def fetch_package(version: ModelVersion) -> Path:
    """The package of a registered version, in this machine's cache."""
    return _fetch(f"models:/{version.name}/{version.version}", str(version.source), f"model {version.name}/{version.version}")


def fetch_candidate(run_id: str) -> Path:
    """The package that a run logged. Raises ClipftError when the run did not finish."""
    uri = client().get_run(run_id).data.tags.get("clipft.model_uri")
    if not uri:
        raise ClipftError(f"run {run_id}", "it has no model: training did not finish", "Run finetune again; it resumes.")
    return _fetch(uri, uri, f"the model of run {run_id}")


def _fetch(uri: str, identity: str, what: str) -> Path:
    client()
    folder = settings().folder("cache", "models") / hashlib.sha256(identity.encode()).hexdigest()[:24]
    with FileLock(str(folder) + ".lock"):
        if not folder.exists():
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                with retryable():
                    got = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(part))
            except (MlflowException, OSError) as error:
                raise ClipftError(what, f"its package cannot be fetched: {error}", "Was its run deleted?") from error
            os.replace(Path(got) / "artifacts" / "package", folder)
            shutil.rmtree(part, ignore_errors=True)
    return folder


def register(domain: str, run_id: str, tags: Mapping[str, str], description: str) -> tuple[ModelVersion, bool]:
    """The model version of a run: the one that there is, or a new one. Returns it and whether it is new."""
    name = model_name(domain)
    there = client()
    try:
        there.create_registered_model(name, description=f"CLIP models of the domain {domain}, made by clipft.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # One writer a model: two retries of one task must not both find nothing.
    with FileLock(str(settings().folder("cache") / f"register-{name}.lock")):
        found = there.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        if found:
            version, new = min(found, key=lambda v: int(v.version)), False
        else:
            source = there.get_run(run_id).data.tags["clipft.model_uri"]
            version = there.create_model_version(
                name, source, run_id, description=description, model_id=source.removeprefix("models:/")
            )
            new = True
    for key, value in tags.items():  # again after a kill: cheap, and whole at the end
        there.set_model_version_tag(name, version.version, key, str(value)[:4900])
    there.set_registered_model_alias(name, CHALLENGER, version.version)
    return version, new


def promote(domain: str, version: str) -> str | None:
    """Make a version champion and keep the one before as `previous`; returns the number of that one, if any.

    Safe to repeat at any point: `previous` is written before `champion`, and a version that already is champion is left.
    """
    name = model_name(domain)
    now = by_alias(domain, CHAMPION)
    if number(now) == version:
        return number(by_alias(domain, PREVIOUS)) or None
    if now:
        # What a retry of a rollback or `restore` needs, should this be cut between its writes or undone.
        client().set_registered_model_tag(name, "clipft.promoting", version)
        if (before := number(by_alias(domain, PREVIOUS))) != number(now):
            client().set_model_version_tag(name, version, "clipft.previous_was", before)
        client().set_registered_model_alias(name, PREVIOUS, number(now))
    client().set_registered_model_alias(name, CHAMPION, version)
    return number(now) or None


def restore(domain: str, version: str | None, failed: str) -> None:
    """Undo a promotion: `version` is champion again (or nobody is); `failed`, when given, says so in its tags."""
    name = model_name(domain)
    undone = by_alias(domain, CHAMPION)
    if version is None:
        client().delete_registered_model_alias(name, CHAMPION)
    else:
        client().set_registered_model_alias(name, CHAMPION, version)
        if number(by_alias(domain, PREVIOUS)) == version:
            older = undone.tags.get("clipft.previous_was") if undone else None
            if older:
                client().set_registered_model_alias(name, PREVIOUS, older)
            else:
                client().delete_registered_model_alias(name, PREVIOUS)
    if failed:
        client().set_model_version_tag(name, failed, "clipft.deploy", "failed")


def lineage(version: ModelVersion) -> dict[str, str]:
    """Where a version comes from: run, dataset, key, DAG run."""
    keys = ("clipft.dataset", "clipft.revision", "clipft.key", "clipft.dag_run")
    return {"run_id": str(version.run_id), **{k.removeprefix("clipft."): version.tags[k] for k in keys if k in version.tags}}


def card_of(run_id: str, name: str) -> dict[str, Any]:
    """A JSON artifact of a run, or {} when there is none."""
    client()
    try:
        return cast(dict[str, Any], json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{name}")))
    except (MlflowException, OSError):
        return {}


# Incidents -----------------------------------------------------------------------------------------------------------

INCIDENTS = "clipft.incidents"


def incidents(domain: str) -> incident_rules.State:
    """What is known of a domain's drift incidents."""
    with retryable():
        try:
            tags = client().get_registered_model(model_name(domain)).tags
        except MlflowException as error:
            if _away(error):
                raise
            return incident_rules.State()
    return incident_rules.settle(incident_rules.State.of(json.loads(tags.get(INCIDENTS, "{}"))), time.time())


def change_incidents(domain: str, change: Callable[[incident_rules.State], incident_rules.State]) -> incident_rules.State:
    """Read, change and write back, alone on this machine; nothing is written where nothing changed. Returns the new state."""
    with FileLock(str(settings().folder("cache") / f"incidents-{domain}.lock")):
        before = incidents(domain)
        after = change(before)
        if after != before:
            keep_incidents(domain, after)
        return after


def keep_incidents(domain: str, state: incident_rules.State) -> None:
    """Write it back; history first, then causes are cut to what a tag holds."""
    content = state.to_dict()
    while len(text := json.dumps(content)) > 4500:
        if content["history"]:
            content["history"] = content["history"][1:]
        else:
            content["incident"]["causes"].pop()  # worst first
    with retryable():
        client().set_registered_model_tag(model_name(domain), INCIDENTS, text)

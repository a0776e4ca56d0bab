"""The registry: versions of each domain's model, and the aliases champion, challenger and previous."""

from collections.abc import Mapping

from filelock import FileLock
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ..core.errors import ClipftError, Transient
from ..core.settings import settings
from .connection import client, is_unreachable, retryable

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"


def model_name(domain: str) -> str:
    return f"clipft-{domain}"


def version_number(version: ModelVersion | None) -> str:
    """A version's number as text, whichever store answered (one gives integers); "" for none."""
    return str(version.version) if version else ""


def version_by_alias(domain: str, alias: str) -> ModelVersion | None:
    """The version that carries an alias, or None."""
    try:
        return client().get_model_version_by_alias(model_name(domain), alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def champion(domain: str) -> ModelVersion | None:
    with retryable():
        return version_by_alias(domain, CHAMPION)


def champions() -> dict[str, str]:
    """The champion's number by domain, for every model that clipft registered."""
    found = {}
    for model in client().search_registered_models("name LIKE 'clipft-%'"):
        if CHAMPION in model.aliases:
            found[model.name.removeprefix("clipft-")] = str(model.aliases[CHAMPION])
    return found


def version_link(version: ModelVersion) -> str:
    """The address of a version's page for a person; "" where MLflow has no pages."""
    pages = settings().mlflow_pages
    return f"{pages}/#/models/{version.name}/versions/{version.version}" if pages else ""


def resolve_version(uri: str) -> ModelVersion:
    """The version that `models:/name/3` or `models:/name@alias` names. Raises ClipftError when there is none."""
    body = uri.removeprefix("models:/")
    try:
        if "@" in body:
            name, alias = body.split("@", 1)
            return client().get_model_version_by_alias(name, alias)
        name, number = body.rsplit("/", 1)
        return client().get_model_version(name, number)
    except (MlflowException, ValueError) as error:
        if is_unreachable(error):
            raise Transient(f"MLflow at {settings().tracking_uri} does not answer: {error}") from error
        raise ClipftError(
            f"model {uri!r}",
            f"the registry does not know it ({error})",
            "See MLflow's models page.",
            code="model.not_registered",
        ) from None


def register(domain: str, run_id: str, tags: Mapping[str, str], description: str) -> tuple[ModelVersion, bool]:
    """The model version of a run: the one that there is, or a new one. Returns it and whether it is new."""
    name = model_name(domain)
    store = client()
    try:
        store.create_registered_model(name, description=f"CLIP models of the domain {domain}, made by clipft.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # One writer a model: two retries of one task must not both find nothing.
    with FileLock(str(settings().folder("cache") / f"register-{name}.lock")):
        found = store.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        if found:
            version, new = min(found, key=lambda v: int(v.version)), False
        else:
            source = store.get_run(run_id).data.tags["clipft.model_uri"]
            version = store.create_model_version(
                name, source, run_id, description=description, model_id=source.removeprefix("models:/")
            )
            new = True
    for key, value in tags.items():  # again after a kill: cheap, and whole at the end
        store.set_model_version_tag(name, version.version, key, str(value)[:4900])
    store.set_registered_model_alias(name, CHALLENGER, version.version)
    return version, new


def promote(domain: str, version: str) -> str | None:
    """Make a version champion and keep the one before as `previous`; returns the number of that one, if any.

    Safe to repeat at any point: `previous` is written before `champion`, and a version that already is champion is left.
    """
    name = model_name(domain)
    now = version_by_alias(domain, CHAMPION)
    if version_number(now) == version:
        return version_number(version_by_alias(domain, PREVIOUS)) or None
    if now:
        # What a retry of a rollback or `restore` needs, should this be cut between its writes or undone.
        client().set_registered_model_tag(name, "clipft.promoting", version)
        if (before := version_number(version_by_alias(domain, PREVIOUS))) != version_number(now):
            client().set_model_version_tag(name, version, "clipft.previous_was", before)
        client().set_registered_model_alias(name, PREVIOUS, version_number(now))
    client().set_registered_model_alias(name, CHAMPION, version)
    return version_number(now) or None


def restore(domain: str, version: str | None, failed: str) -> None:
    """Undo a promotion: `version` is champion again (or nobody is); `failed`, when given, says so in its tags."""
    name = model_name(domain)
    undone = version_by_alias(domain, CHAMPION)
    if version is None:
        client().delete_registered_model_alias(name, CHAMPION)
    else:
        client().set_registered_model_alias(name, CHAMPION, version)
        if version_number(version_by_alias(domain, PREVIOUS)) == version:
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

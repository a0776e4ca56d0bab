"""The registry: versions of each domain's model, and the aliases champion, challenger and previous."""

import json
from collections.abc import Mapping

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ..core.errors import ClipftError, TransientError
from ..core.settings import settings
from .connection import client, is_unreachable, retryable
from .leases import exclusively
from .packages import DIGESTS

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
DEPLOY = "clipft.deploy"  # tag of a version: what became of it since it was promoted
PENDING, VERIFIED, FAILED = "pending", "verified", "failed"


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
    found: dict[str, str] = {}
    token: str | None = None
    while True:
        page = client().search_registered_models("name LIKE 'clipft-%'", page_token=token)
        for model in page:
            if CHAMPION in model.aliases:
                found[model.name.removeprefix("clipft-")] = str(model.aliases[CHAMPION])
        token = page.token
        if not token:
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
            raise TransientError(f"MLflow at {settings().tracking_uri} does not answer: {error}") from error
        raise ClipftError(
            f"model {uri!r}",
            f"the registry does not know it ({error})",
            "See MLflow's models page.",
            code="model.not_registered",
        ) from None


def register(
    domain: str, run_id: str, tags: Mapping[str, str], description: str, digests: Mapping[str, str] | None = None
) -> tuple[ModelVersion, bool]:
    """The model version of a run: the one that there is, or a new one. Returns it and whether it is new.

    Args:
        digests: sha256 of each file of its package; those of its first registration stay.

    It becomes challenger unless it was champion before, or is: a form that is sent again makes no challenger of an old version.
    """
    name = model_name(domain)
    store = client()
    try:
        store.create_registered_model(name, description=f"CLIP models of the domain {domain}, made by clipft.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with exclusively(f"register.{domain}"):  # two tries of one task, on two machines, must not both find nothing
        found = store.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        if found:
            version, new = min(found, key=lambda v: int(v.version)), False
        else:
            source = store.get_run(run_id).data.tags["clipft.model_uri"]
            version = store.create_model_version(
                name, source, run_id, description=description, model_id=source.removeprefix("models:/")
            )
            new = True
        newest = store.search_model_versions(f"name = '{name}'", max_results=1, order_by=["version_number DESC"])[0]
    if digests and DIGESTS not in version.tags:
        store.set_model_version_tag(name, version.version, DIGESTS, json.dumps(digests))
    for key, value in tags.items():  # again after a kill: cheap, and whole at the end
        store.set_model_version_tag(name, version.version, key, str(value)[:4900])
    were = {version_number(version_by_alias(domain, alias)) for alias in (CHAMPION, PREVIOUS)}
    if newest.version == version.version and not deploy_state(version) and version_number(version) not in were:
        store.set_registered_model_alias(name, CHALLENGER, version.version)
    return version, new


def promote(domain: str, version: str) -> str | None:
    """Make a version champion and keep the one before as `previous`; returns the number of that one, if any.

    Its tag `clipft.deploy` is `pending` until `confirm` or `restore`. Safe to repeat at any point: `previous` is written before
    `champion`, and a version that already is champion is left.
    """
    name, store = model_name(domain), client()
    now = version_by_alias(domain, CHAMPION)
    if version_number(now) == version:
        return version_number(version_by_alias(domain, PREVIOUS)) or None
    if now:
        # What a retry of a rollback or `restore` needs, should this be cut between its writes or undone.
        store.set_registered_model_tag(name, "clipft.promoting", version)
        if (before := version_number(version_by_alias(domain, PREVIOUS))) != version_number(now):
            store.set_model_version_tag(name, version, "clipft.previous_was", before)
        store.set_registered_model_alias(name, PREVIOUS, version_number(now))
    store.set_model_version_tag(name, version, "clipft.replaced", version_number(now))
    store.set_model_version_tag(name, version, DEPLOY, PENDING)
    store.set_registered_model_alias(name, CHAMPION, version)
    return version_number(now) or None


def confirm(domain: str, version: str) -> None:
    """The version is live and answers as recorded; it is challenger no longer."""
    _decide(domain, version, VERIFIED)


def restore(domain: str, undone: str, previous: str, failed: bool) -> str:
    """Undo the promotion of `undone`: `previous` is champion again, or the nearest before it that did not fail, or nobody.

    Where another version was promoted since, or this was done before, the champion is left.
    Args:
        failed: whether it is the version's fault, which its tags then say.
    Returns: the champion's number now; "" for nobody.
    """
    name, store = model_name(domain), client()
    if failed:
        _decide(domain, undone, FAILED)
    now = version_by_alias(domain, CHAMPION)
    if now is None or version_number(now) != undone:
        return version_number(now)
    if not failed:
        store.delete_model_version_tag(name, undone, DEPLOY)
    target = not_failed(domain, previous or now.tags.get("clipft.replaced", ""), undone)
    if version_number(version_by_alias(domain, PREVIOUS)) in (target or previous, previous):
        older = not_failed(domain, now.tags.get("clipft.previous_was", ""), target) if target else ""
        if older:
            store.set_registered_model_alias(name, PREVIOUS, older)
        elif version_by_alias(domain, PREVIOUS):
            store.delete_registered_model_alias(name, PREVIOUS)
    if target:
        store.set_registered_model_alias(name, CHAMPION, target)
    else:
        store.delete_registered_model_alias(name, CHAMPION)
    return target


def _decide(domain: str, version: str, state: str) -> None:
    client().set_model_version_tag(model_name(domain), version, DEPLOY, state)
    if version_number(version_by_alias(domain, CHALLENGER)) == version:
        client().delete_registered_model_alias(model_name(domain), CHALLENGER)


def deploy_state(version: ModelVersion) -> str:
    """What became of a version since it was promoted: pending, verified, failed; "" where it never was, or by an earlier release."""
    return str(version.tags.get(DEPLOY, ""))


def not_failed(domain: str, version: str, *passed_over: str) -> str:
    """The version, or the first that it replaced in turn, that did not fail; "" for none."""
    seen = {*passed_over, ""}
    while version not in seen:
        seen.add(version)
        try:
            found = client().get_model_version(model_name(domain), version)
        except MlflowException as error:
            if is_unreachable(error):
                raise
            return ""  # deleted
        if deploy_state(found) != FAILED:
            return version
        version = str(found.tags.get("clipft.replaced", ""))
    return ""


def lineage(version: ModelVersion) -> dict[str, str]:
    """Where a version comes from: run, dataset, key, DAG run."""
    keys = ("clipft.dataset", "clipft.revision", "clipft.key", "clipft.dag_run")
    return {"run_id": str(version.run_id), **{k.removeprefix("clipft."): version.tags[k] for k in keys if k in version.tags}}

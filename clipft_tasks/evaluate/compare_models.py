"""The models that a comparison names: what they are, which rows they are asked about, what they say, what their runs know."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from .. import tracking
from ..contracts.comparison import ModelComparison
from ..core.console import say
from ..core.errors import ClipftError
from ..data import versioning
from ..data.versioning import Dataset
from ..domains import domain_names
from ..model import build
from ..model.clip import Clip
from ..model.package import read_card
from ..spec import RunSpec
from ..spec.metric_catalog import INTERVALS, is_custom
from . import artifacts, cost, zero_shot
from .compare import Model, Origin, Question, RunFacts
from .compare_page import SHOWN_IMAGES, Change, ChangedImage
from .error_analysis import small_image

NEWEST = "newest"
RUN_ID = re.compile(r"[0-9a-f]{32}")
WAYS = "Name a domain (`industrial`), `industrial@champion`, `models:/clipft-industrial/3`, or an MLflow run id."


# Which models ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """A model that was asked for: what to call it, its run, and its package on this machine."""

    name: str
    run_id: str
    package: Path


def resolve(asked: Sequence[str]) -> list[Named]:
    """The models of a list of names, each once, in the order given. Raises ClipftError for a name that is no model."""
    if not asked:
        raise ClipftError("the comparison", "no model is named", WAYS, code="compare.no_models")
    found: dict[str, Named] = {}
    for text in asked:
        for model in _named(text.strip()):
            found.setdefault(model.run_id, model)
    return list(found.values())


def _named(text: str) -> list[Named]:
    if text.startswith("models:/"):
        return [_version(tracking.resolve_version(text))]
    domain, at, alias = text.partition("@")
    if at and domain in domain_names():
        return [_version(tracking.resolve_version(f"models:/{tracking.model_name(domain)}@{alias}"), alias)]
    if domain in domain_names():
        with tracking.retryable():
            both = {a: tracking.version_by_alias(domain, a) for a in (tracking.CHAMPION, tracking.CHALLENGER)}
        if not any(both.values()):
            raise ClipftError(
                f"domain {domain}",
                "it has neither champion nor challenger",
                "Run clipft_finetune first.",
                code="compare.no_models",
            )
        return [_version(version, alias) for alias, version in both.items() if version]
    if RUN_ID.fullmatch(text):
        return [_run(text)]
    raise ClipftError(f"model {text!r}", "this names no model", WAYS, code="compare.unknown_model")


def _version(version: ModelVersion, alias: str = "") -> Named:
    name = f"{version.name.removeprefix('clipft-')} {version.version}" + (f" ({alias})" if alias else "")
    return Named(name, str(version.run_id), tracking.fetch_package(version))


def _run(run_id: str) -> Named:
    try:
        with tracking.retryable():
            found = tracking.client().get_run(run_id)
    except MlflowException as error:
        raise ClipftError(
            f"run {run_id}", f"MLflow does not know it ({error})", "Was it deleted?", code="compare.unknown_run"
        ) from None
    if found.info.lifecycle_stage == "deleted":
        restore = f"`mlflow runs restore --run-id {run_id}` brings it back."
        raise ClipftError(f"run {run_id}", "it was deleted in MLflow", f"Leave it out; {restore}", code="compare.deleted_run")
    return Named(f"run {run_id[:8]}", run_id, tracking.fetch_candidate(run_id))


# Which rows -----------------------------------------------------------------------------------------------------------


def members(named: Sequence[Named], dataset: str) -> list[Model]:
    """The models with where they come from and the identity of their test rows; nothing is computed yet.

    Args:
        dataset: whose test rows: of one version, of the `newest` that a model was trained on, or "": each model's own.
    """
    origins = {model.run_id: _origin(model) for model in named}
    newest: dict[str, int] = {}
    for origin in origins.values():
        number = versioning.find(origin.dataset, origin.domain).number
        newest[origin.domain] = max(number, newest.get(origin.domain, 0))
    if dataset not in ("", NEWEST) and versioning.find(dataset, "").domain not in newest:
        raise ClipftError(
            f"dataset {dataset}",
            "none of the models is of its domain",
            f"They are of {', '.join(newest)}.",
            code="compare.other_domain",
        )
    out = []
    for model in named:
        origin = origins[model.run_id]
        tag = origin.dataset
        if dataset == NEWEST:
            tag = f"{origin.domain}/v{newest[origin.domain]}"
        elif dataset.startswith(f"{origin.domain}/"):
            tag = dataset
        if doubt := versioning.not_comparable(tag, origin.dataset):
            say(f"{model.name} cannot be compared on these rows: {doubt}.")
        opened = versioning.fetch(versioning.find(tag, origin.domain))
        digest = hashlib.sha256("\n".join([*opened.classes, *sorted(_row_keys(opened))]).encode()).hexdigest()[:16]
        out.append(Model(model.name, origin, model.package, tag, digest, opened.classes))
    return out


def _origin(model: Named) -> Origin:
    card = read_card(model.package)
    return Origin(
        domain=card.domain,
        dataset=card.dataset,
        revision=card.revision,
        start=card.start,
        objective=str(card.objective.get("name", "")),
        license=card.license,
        run_id=model.run_id,
        size=card.resolutions.serve,
        evaluated=tuple(card.resolutions.evaluated),
    )


def _test_rows(model: Model) -> Dataset:
    return versioning.fetch(versioning.find(model.dataset, model.domain))


def _row_keys(dataset: Dataset) -> list[str]:
    """What a test row is: its key, image, caption and label."""
    frame = dataset.split("test")[["key", "sha256", "caption", "label"]]
    return ["\t".join(map(str, row)) for row in frame.itertuples(index=False)]


def refuse_different_rows(models: Sequence[Model]) -> None:
    """Raises ClipftError where two models of a domain have different test rows, with how many they share."""
    for i, a in enumerate(models):
        for b in models[i + 1 :]:
            if a.domain == b.domain and a.rows != b.rows:
                rows = [set(_row_keys(_test_rows(model))) for model in (a, b)]
                raise ClipftError(
                    f"a paired test of {a.name} and {b.name}",
                    f"they have different test rows: {a.dataset} has {len(rows[0])}, {b.dataset} {len(rows[1])}, "
                    f"{len(rows[0] & rows[1])} of them in common",
                    f"Set dataset to `{NEWEST}` or to one version to ask all models about the same rows, "
                    "or unpaired to see their metrics without a test.",
                    code="compare.different_rows",
                )


# What they say --------------------------------------------------------------------------------------------------------


def questions(models: Sequence[Model], metric: str) -> dict[str, Question]:
    """What is asked, by domain. `metric` is the one that is tested; "" for the `gate.metric` of each domain."""
    if metric and metric not in INTERVALS and not is_custom(metric):
        raise ClipftError(
            f"metric {metric!r}", "it has no interval", f"Choose one of {', '.join(INTERVALS)}.", code="metric.no_interval"
        )
    asked: dict[str, Question] = {}
    for model in models:
        if model.domain not in asked:
            names = zero_shot.headlines(_test_rows(model))
            usual = RunSpec.from_flat({"domain": model.domain}).gate.metric
            deciding = metric or (usual if usual in names else names[0])
            asked[model.domain] = Question(deciding, list(dict.fromkeys([deciding, *names])))
    return asked


def predict(models: Sequence[Model], sizes: Sequence[int], batch: int, prepare: Callable[[Clip], Clip]) -> None:
    """Fill `predictions` of each model, one model at a time in memory.

    Args:
        sizes: of the images; none: those that every model of a domain was evaluated at.
        prepare: moves a model to where it runs.
    """
    for model in models:
        opened = _test_rows(model)
        clip = prepare(build.from_folder(model.package, source=model.name))
        # The same rows in the same order, whichever dataset version they come from.
        order = np.argsort(opened.split("test")["key"].to_numpy(dtype=str), kind="stable")
        for size in sorted(set(sizes)) or _common_sizes([other for other in models if other.domain == model.domain]):
            say(f"{model.name} on the {len(order)} test rows of {model.dataset} at {size} px")
            task = zero_shot.Task(opened, size, batch)
            model.predictions[size] = zero_shot.predict(clip, task).take(order)


def _common_sizes(models: Sequence[Model]) -> list[int]:
    """The sizes that every model was evaluated at; the first one's own where there is none."""
    return sorted(set.intersection(*(set(model.origin.evaluated) for model in models))) or [models[0].origin.size]


# What their runs know -------------------------------------------------------------------------------------------------


def add_run_facts(models: Sequence[Model]) -> list[str]:
    """Fill `facts` of each model; returns what is wrong with their runs."""
    problems = []
    for model in models:
        model.facts, problem = _run_facts(model)
        problems += [problem] if problem else []
    return problems


def _run_facts(model: Model) -> tuple[RunFacts, str]:
    """What MLflow knows of a model's run by now, and what is wrong with that run ("" for nothing)."""
    run_id, client, problem = model.origin.run_id, tracking.client(), ""
    try:
        with tracking.retryable():
            found = client.get_run(run_id)
            if found.info.lifecycle_stage == "deleted":
                problem = f"{model.name}: its run {run_id} is deleted in MLflow, and its link will end to work."
            peak, watts = cost.measured(found)
    except MlflowException:
        gone = "was deleted in MLflow; parameters, cost and gain over the start are missing."
        return RunFacts(), f"{model.name}: its run {run_id} {gone}"
    tags = {k.removeprefix("clipft."): v for k, v in found.data.tags.items() if k.startswith("clipft.")}
    evaluations = {size: result for size in model.origin.evaluated if (result := artifacts.load(run_id, size))}
    link = tracking.run_link(found)
    return RunFacts(found.data.params, found.data.metrics, tags, evaluations, peak, watts, link), problem


def save(key: str, models: Sequence[Model], comparison: ModelComparison, page: str) -> tuple[str, str]:
    """Keep the page and its content in a run of the experiment clipft-compare; returns the page's address and the run's id."""
    what = ", ".join(model.name for model in models)
    tags = {
        "clipft.compared": what,
        "clipft.runs": ",".join(model.origin.run_id for model in models),
        "clipft.datasets": ",".join(sorted({model.dataset for model in models})),
    }
    with tracking.retryable():
        run = tracking.get_or_create_run("compare", key, what[:200], tags)
        run_id = str(run.info.run_id)
        tracking.client().log_text(run_id, page, "comparison.html")
        tracking.client().log_dict(run_id, comparison.to_json(), "comparison.json")
        tracking.finish_run(run_id)
    return tracking.run_link(run, "artifacts/comparison.html"), run_id


def changed_images(models: Sequence[Model], comparison: ModelComparison) -> Mapping[Change, Sequence[ChangedImage]]:
    """The changed images that the page shows."""
    by_name = {model.name: model for model in models}
    out: dict[Change, list[ChangedImage]] = {}
    for change in (each for group in comparison.groups for each in group.changes):
        opened = _test_rows(by_name[change.new])
        rows = opened.split("test").sort_values("key", kind="stable")
        out[change.old, change.new, "fixed"] = [
            ChangedImage(small_image(opened, rows.iloc[i]), change.rows[i]) for i in change.fixed[:SHOWN_IMAGES]
        ]
        out[change.old, change.new, "broken"] = [
            ChangedImage(small_image(opened, rows.iloc[i]), change.rows[i]) for i in change.broken[:SHOWN_IMAGES]
        ]
    return out

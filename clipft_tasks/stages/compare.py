"""compare: any set of runs, versions or domains beside one another, in one page."""

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.console import say
from ..core.errors import ClipftError
from ..domains import domain_names
from ..spec import RunSpec

RUN_ID = re.compile(r"[0-9a-f]{32}")
NEWEST = "newest"
WATTS = re.compile(r"system/gpu_\d+_power_usage_watts")  # MLflow's own, where the driver tells
WAYS = "Name a domain (`industrial`), `industrial@champion`, `models:/clipft-industrial/3`, or an MLflow run id."


@dataclass(frozen=True)
class _Named:
    """A model that was asked for: what to call it, its run, and its package's address."""

    name: str
    run_id: str
    package: Path


def run(
    spec: RunSpec,
    models: Sequence[str],
    *,
    sizes: Sequence[int] = (),
    dataset: str = "",
    metric: str = "",
    unpaired: bool = False,
    watts: float | None = None,
) -> dict[str, Any]:
    """Score the models on their test rows, test their differences, and log page and JSON to the experiment clipft-compare.

    Args:
        spec: its evaluation (`evaluate.*`) and device (`memory.device`) are used.
        models: domains (champion and challenger), `domain@alias`, `models:/name/version`, MLflow run ids.
        sizes: image sides; empty: all that every model of a domain was evaluated at.
        dataset: whose test rows: of one version (`industrial/v2`), of the `newest` that a model was trained on, or empty: each
            model's own.
        metric: the metric that is tested; empty: the `gate.metric` of each domain.
        unpaired: go on where models of a domain have different test rows, without a test between them.
        watts: power of the training device, for the energy estimate; None: its own meter, or an assumption by its kind.
    Returns: run_id, names, said (the sentences to read first), tests, problems, links.
    Raises: ClipftError: a name that is no model, a model that is not there, or test rows that differ.
    """
    from .. import tracking
    from ..evaluate import compare

    named = _resolve(models)
    members = _members(named, dataset)
    if not unpaired:
        _refuse_different_rows(members)
    metrics, names = _metrics(members, metric)
    _score(spec, members, sizes)
    problems: list[str] = []
    for model in members:
        model.facts = _facts(model, problems)
    found = compare.content(members, metrics, names, spec.evaluate.bootstrap, watts)
    page = compare.page(found, _images(members, found), problems)

    what = ", ".join(m.name for m in members)
    asked = [[m.card["run_id"], m.rows, sorted(m.scored)] for m in members]
    key = hashlib.sha256(json.dumps([asked, metrics, spec.evaluate.bootstrap, watts]).encode()).hexdigest()[:16]
    tags = {
        "clipft.compared": what,
        "clipft.runs": ",".join(str(m.card["run_id"]) for m in members),
        "clipft.datasets": ",".join(sorted({m.dataset for m in members})),
    }
    with tracking.retryable(), tempfile.TemporaryDirectory() as folder:
        mlflow_run = tracking.get_or_create_run("compare", key, what[:200], tags)
        run_id = mlflow_run.info.run_id
        path = Path(folder, "comparison.html")
        path.write_text(page, "utf-8")
        tracking.client().log_artifact(run_id, str(path))
        plain = json.loads(json.dumps(found | {"problems": problems}), parse_constant=lambda _: None)  # JSON knows no NaN
        tracking.client().log_dict(run_id, plain, "comparison.json")
        tracking.finish_run(run_id)
    for line in (*found["said"], *problems):
        say(line)
    return {
        "run_id": run_id,
        "names": [m.name for m in members],
        "said": found["said"],
        "tests": found["tests"],
        "problems": problems,
        "links": {"Comparison": tracking.run_link(mlflow_run, "artifacts/comparison.html")},
    }


# Which models --------------------------------------------------------------------------------------------------------


def _resolve(asked: Sequence[str]) -> list[_Named]:
    """The models of a list of names, each once, in the order given."""
    if not asked:
        raise ClipftError("the comparison", "no model is named", WAYS)
    found: dict[str, _Named] = {}
    for text in asked:
        for model in _of(text.strip()):
            found.setdefault(model.run_id, model)
    return list(found.values())


def _of(text: str) -> list[_Named]:
    from .. import tracking

    if text.startswith("models:/"):
        return [_version(tracking.resolve_version(text))]
    domain, at, alias = text.partition("@")
    if at and domain in domain_names():
        return [_version(tracking.resolve_version(f"models:/{tracking.model_name(domain)}@{alias}"), alias)]
    if domain in domain_names():
        with tracking.retryable():
            both = {a: tracking.version_by_alias(domain, a) for a in (tracking.CHAMPION, tracking.CHALLENGER)}
        if not any(both.values()):
            raise ClipftError(f"domain {domain}", "it has neither champion nor challenger", "Run clipft_finetune first.")
        return [_version(version, alias) for alias, version in both.items() if version]
    if RUN_ID.fullmatch(text):
        return [_run(text)]
    raise ClipftError(f"model {text!r}", "this names no model", WAYS)


def _version(version: Any, alias: str = "") -> _Named:
    from .. import tracking

    name = f"{version.name.removeprefix('clipft-')} {version.version}" + (f" ({alias})" if alias else "")
    return _Named(name, str(version.run_id), tracking.fetch_package(version))


def _run(run_id: str) -> _Named:
    from mlflow.exceptions import MlflowException

    from .. import tracking

    try:
        with tracking.retryable():
            found = tracking.client().get_run(run_id)
    except MlflowException as error:
        raise ClipftError(f"run {run_id}", f"MLflow does not know it ({error})", "Was it deleted?") from None
    if found.info.lifecycle_stage == "deleted":
        restore = f"`mlflow runs restore --run-id {run_id}` brings it back."
        raise ClipftError(f"run {run_id}", "it was deleted in MLflow", f"Leave it out; {restore}")
    return _Named(f"run {run_id[:8]}", run_id, tracking.fetch_candidate(run_id))


def _members(named: Sequence[_Named], dataset: str) -> list[Any]:
    """The models with their cards and the identity of their test rows; nothing is computed yet."""
    from ..data import versioning
    from ..evaluate.compare import Model
    from ..model.package import read_card

    cards = {m.run_id: read_card(m.package).to_json() for m in named}
    newest: dict[str, int] = {}
    for card in cards.values():
        number = versioning.find(card["dataset"], card["domain"]).number
        newest[card["domain"]] = max(number, newest.get(card["domain"], 0))
    if dataset not in ("", NEWEST) and versioning.find(dataset, "").domain not in newest:
        raise ClipftError(f"dataset {dataset}", "none of the models is of its domain", f"They are of {', '.join(newest)}.")
    out = []
    for m in named:
        card = cards[m.run_id] | {"run_id": m.run_id}
        domain, tag = card["domain"], card["dataset"]
        if dataset == NEWEST:
            tag = f"{domain}/v{newest[domain]}"
        elif dataset.startswith(f"{domain}/"):
            tag = dataset
        opened = versioning.fetch(versioning.find(tag, domain))
        digest = hashlib.sha256("\n".join([*opened.classes, *sorted(_keys(opened))]).encode()).hexdigest()[:16]
        out.append(Model(m.name, card, m.package, tag, digest, opened.classes))
    return out


def _keys(dataset: Any) -> list[str]:
    """What a test row is: its key, image, caption and label."""
    frame = dataset.split("test")[["key", "sha256", "caption", "label"]]
    return ["\t".join(map(str, row)) for row in frame.itertuples(index=False)]


def _refuse_different_rows(members: Sequence[Any]) -> None:
    from ..data import versioning

    for i, a in enumerate(members):
        for b in members[i + 1 :]:
            if a.domain == b.domain and a.rows != b.rows:
                rows = [set(_keys(versioning.fetch(versioning.find(m.dataset, m.domain)))) for m in (a, b)]
                raise ClipftError(
                    f"a paired test of {a.name} and {b.name}",
                    f"they have different test rows: {a.dataset} has {len(rows[0])}, {b.dataset} {len(rows[1])}, "
                    f"{len(rows[0] & rows[1])} of them in common",
                    f"Set dataset to `{NEWEST}` or to one version to ask all models about the same rows, "
                    "or unpaired to see their metrics without a test.",
                )


# What they say -------------------------------------------------------------------------------------------------------


def _score(spec: RunSpec, members: list[Any], sizes: Sequence[int]) -> None:
    """Fill `scored` of each model, one model at a time in memory."""
    import numpy as np

    from ..data import versioning
    from ..devices import hardware
    from ..evaluate import zero_shot
    from ..model import build
    from ..train import microbenchmarks, plan

    machine = hardware.probe(spec.memory.device)
    hardware.use_threads(machine.cores)
    hardware.keep_freed_memory()
    for model in members:
        opened = versioning.fetch(versioning.find(model.dataset, model.domain))
        clip = build.from_folder(model.package, source=model.name).to(machine.device)
        clip.model.to(memory_format=microbenchmarks.MEMORY_FORMATS[plan.layout_of(machine.device, clip).value])
        # The same rows in the same order, whichever dataset version they come from.
        order = np.argsort(opened.split("test")["key"].to_numpy(dtype=str), kind="stable")
        for side in sorted(set(sizes)) or _sides([m for m in members if m.domain == model.domain]):
            say(f"{model.name} on the {len(order)} test rows of {model.dataset} at {side} px")
            scored = zero_shot.score(clip, opened, "test", side, spec.evaluate.batch)
            model.scored[side] = zero_shot.only(scored, order)


def _sides(members: Sequence[Any]) -> list[int]:
    """The sides that every model of a domain was evaluated at; the first one's own side where there is none."""
    every = [set(m.card["resolutions"]["evaluated"]) for m in members]
    return sorted(set.intersection(*every)) or [int(members[0].card["resolutions"]["serve"])]


def _metrics(members: Sequence[Any], metric: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """By domain: the metric that is tested, and every metric that gets an interval."""
    from ..data import versioning
    from ..evaluate import zero_shot

    if metric and metric not in zero_shot.SUMMED:
        raise ClipftError(f"metric {metric!r}", "it has no interval", f"Choose one of {', '.join(zero_shot.SUMMED)}.")
    deciding: dict[str, str] = {}
    every: dict[str, list[str]] = {}
    for model in members:
        if model.domain not in deciding:
            names = zero_shot.metrics(versioning.fetch(versioning.find(model.dataset, model.domain)))
            usual = RunSpec.from_flat({"domain": model.domain}).gate.metric
            deciding[model.domain] = metric or (usual if usual in names else names[0])
            every[model.domain] = list(dict.fromkeys([deciding[model.domain], *names]))
    return deciding, every


def _facts(model: Any, problems: list[str]) -> dict[str, Any]:
    """What MLflow knows of a model's run by now; {} and a line in `problems` where the run is gone."""
    from mlflow.exceptions import MlflowException

    from .. import tracking

    run_id, client = str(model.card["run_id"]), tracking.client()
    try:
        with tracking.retryable():
            found = client.get_run(run_id)
            if found.info.lifecycle_stage == "deleted":
                problems.append(f"{model.name}: its run {run_id} is deleted in MLflow, and its link will end to work.")
            history = client.get_metric_history(run_id, "train.memory_gb")
            watts = [_mean(client.get_metric_history(run_id, name)) for name in found.data.metrics if WATTS.fullmatch(name)]
    except MlflowException:
        problems.append(
            f"{model.name}: its run {run_id} was deleted in MLflow; parameters, cost and gain over the start are missing."
        )
        return {}
    sides = model.card["resolutions"]["evaluated"]
    recorded = {str(side): tracking.load_json_artifact(run_id, f"evaluation/{side}.json") for side in sides}
    return {
        "params": dict(found.data.params),
        "metrics": dict(found.data.metrics),
        "tags": {k: v for k, v in found.data.tags.items() if k.startswith("clipft.")},
        "recorded": {side: r for side, r in recorded.items() if r},
        "peak_gb": max((m.value for m in history), default=None),
        "watts": sum(watts) or None,
        "link": tracking.run_link(found),
    }


def _mean(history: Sequence[Any]) -> float:
    return sum(m.value for m in history) / max(1, len(history))


def _images(members: Sequence[Any], found: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """The changed images that the page shows, as small JPEGs."""
    from ..data import versioning
    from ..evaluate.compare import SHOWN_IMAGES
    from ..evaluate.error_analysis import small_image

    by_name = {m.name: m for m in members}
    out: dict[str, list[dict[str, str]]] = {}
    for change in (c for group in found["groups"] for c in group["changes"]):
        model = by_name[change["to"]]
        opened = versioning.fetch(versioning.find(model.dataset, model.domain))
        rows = opened.split("test").sort_values("key", kind="stable")
        for kind in ("mended", "broken"):
            out[f"{change['from']}→{change['to']}→{kind}"] = [
                {"src": small_image(opened, rows.iloc[i]), **change["rows"][str(i)]} for i in change[kind][:SHOWN_IMAGES]
            ]
    return out

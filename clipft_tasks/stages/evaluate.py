"""evaluate: the candidate, the start model and the champion on the same test rows, at one picture size."""

from typing import Any

from ..progress import say
from ..spec import RunSpec


def run(spec: RunSpec, run_id: str, resolution: int) -> dict[str, Any]:
    """Score all models at one resolution; figures go to the candidate's MLflow run with the resolution as step.

    Returns: resolution, rows, and by model (`before`, `after`, `champion`) each metric's value and 95% interval;
        `gain_over_before` and `gain_over_champion` in the gate's metric, paired; `opponent` (version number or "");
        `slices`, when the data set grew by captures: the same for its `old` and its `new` rows.
    Raises: ClipftError when the run has no model.
    """
    import mlflow

    from .. import tracking
    from ..data import versioning
    from ..domains import get_domain
    from ..evaluate import zero_shot
    from ..model import build
    from ..train import hardware, plan, probes

    domain = get_domain(spec.domain)
    client = tracking.client()
    mlflow_run = client.get_run(run_id)
    package = tracking.fetch_candidate(run_id)
    dataset = versioning.fetch(versioning.find(mlflow_run.data.tags["clipft.dataset"], spec.domain))
    champion = tracking.champion(spec.domain)
    if champion and champion.run_id == run_id:
        champion = tracking.by_alias(spec.domain, tracking.PREVIOUS)  # a second look at what already won
    candidate = build.from_folder(package, source="candidate")
    key = spec.identity(
        "evaluate", "evaluate", "gate", model=candidate.digest, dataset=dataset.version.revision, resolution=resolution,
        start=mlflow_run.data.tags["clipft.start"], champion=champion.run_id if champion else "",
    )  # fmt: skip
    name = f"evaluation/{resolution}.json"
    done = tracking.card_of(run_id, name)
    if done.get("key") == key:
        say(f"Evaluated before at {resolution} px with the same rows and models.")
        return done

    machine = hardware.probe(spec.memory.device)
    hardware.use_threads(machine.cores)
    hardware.keep_freed_memory()
    models = {"after": candidate, "before": build.load(mlflow_run.data.tags["clipft.start"], domain=spec.domain)}
    if champion:
        models["champion"] = build.from_folder(tracking.fetch_package(champion), source=f"version {champion.version}")
    for clip in models.values():
        clip.to(machine.device)  # any side as it comes: the weights stay as they are stored
        clip.model.to(memory_format=probes.MEMORY_FORMATS[plan.layout_of(machine.device, clip).value])
    scored = {
        who: zero_shot.score(clip, dataset, domain, "test", resolution, spec.evaluate.batch) for who, clip in models.items()
    }
    names = zero_shot.metrics(dataset)
    metric: str = spec.gate.metric
    if metric not in names:
        metric = names[0]
        say(
            f"{spec.gate.metric} needs two classes and {dataset.version.tag} has none to tell apart: the gate looks at {metric}."
        )
    result: dict[str, Any] = {
        "key": key,
        "resolution": resolution,
        "rows": len(scored["after"].truth),
        "metric": metric,
        "opponent": tracking.number(champion),
        **{who: zero_shot.summary(s, names, spec.evaluate.bootstrap) for who, s in scored.items()},
    }
    for who in models.keys() - {"after"}:
        result[f"gain_over_{who}"] = zero_shot.difference(scored["after"], scored[who], metric, spec.evaluate.bootstrap)
    result["slices"] = _slices(dataset, scored, metric, spec.evaluate.bootstrap)
    with tracking.neighbour():
        for who in models:
            for figure, value in result[who].items():
                client.log_metric(run_id, f"test.{who}.{figure}", value["value"], step=resolution)
        mlflow.MlflowClient().log_dict(run_id, result, name)
    before, after = result["before"][metric], result["after"][metric]
    say(
        f"{resolution} px, {result['rows']} rows, {metric}: {before['value']:.3f} before, {after['value']:.3f} after "
        f"[{after['low']:.3f}, {after['high']:.3f}]"
    )
    return result


def _slices(dataset: Any, scored: dict[str, Any], metric: str, resamples: int) -> dict[str, Any]:
    """Old and new test rows apart, where captures made the data set grow: better on the new must not mean worse on the old."""
    from ..evaluate import zero_shot

    is_new = dataset.added(dataset.split("test"))
    if not dataset.version.card.get("parents"):
        return {}
    opponent = "champion" if "champion" in scored else "before"
    out: dict[str, Any] = {}
    for name, rows in (("old", (~is_new).nonzero()[0]), ("new", is_new.nonzero()[0])):
        if not len(rows):
            continue
        part = {who: zero_shot.only(s, rows) for who, s in scored.items()}
        out[name] = {"rows": len(rows), **{who: zero_shot.summary(s, [metric], resamples) for who, s in part.items()}}
        out[name]["gain"] = zero_shot.difference(part["after"], part[opponent], metric, resamples)
    return out

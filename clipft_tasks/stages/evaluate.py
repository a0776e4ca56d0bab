"""evaluate: the candidate, the start model and the champion on the same test rows, at one image size."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.console import say
from ..spec import RunSpec

RECIPE = 3  # raise when the same models and rows give another result, so that an old one is not taken for it


def run(spec: RunSpec, run_id: str, resolution: int) -> dict[str, Any]:
    """Score all models at one resolution; metrics go to the candidate's MLflow run with the resolution as step.

    Returns, small enough for XCom (who is `before`, `after`, `champion`):
        resolution, rows, metric (the gate's), opponent (version number or "");
        by who: the headline metrics, each value and 95% interval;
        gain_over_before, gain_over_champion: in the gate's metric, paired, with p;
        comparisons: the same for every headline metric and opponent, with p after Holm's correction;
        slices: by name rows, by who the gate's metric, gain over the opponent;
        metrics: by who every other metric; absent: why one is missing;
        general_score, robustness: at the size nearest to the training size only, else {}.
    What fills a page (classes, confusion, reliability, worst mistakes) is in the run's `evaluation/<size>-details.json`, what
    each model said of each row in `evaluation/<size>-rows.parquet`.
    Raises: ClipftError when the run has no model, or the test rows nothing to tell apart.
    """
    import mlflow

    from .. import tracking
    from ..data import versioning
    from ..devices import hardware
    from ..domains import get_domain
    from ..evaluate import evaluator, zero_shot
    from ..model import build
    from ..train import microbenchmarks, plan

    domain = get_domain(spec.domain)
    client = tracking.client()
    mlflow_run = client.get_run(run_id)
    package = tracking.fetch_candidate(run_id)
    dataset = versioning.fetch(versioning.find(mlflow_run.data.tags["clipft.dataset"], spec.domain))
    champion = tracking.champion(spec.domain)
    if champion and champion.run_id == run_id:
        champion = tracking.version_by_alias(spec.domain, tracking.PREVIOUS)  # a second look at what already won
    candidate = build.from_folder(package, source="candidate")
    key = spec.identity(
        "evaluate", "evaluate", metric=spec.gate.metric, model=candidate.digest, dataset=dataset.version.revision, resolution=resolution,
        start=mlflow_run.data.tags["clipft.start"], champion=champion.run_id if champion else "", recipe=RECIPE,
        domain=[domain.prompts, domain.slices, domain.corruptions, domain.general_set], train=spec.resolution.train,
    )  # fmt: skip
    name = f"evaluation/{resolution}.json"
    done = tracking.load_json_artifact(run_id, name)
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
        clip.model.to(memory_format=microbenchmarks.MEMORY_FORMATS[plan.layout_of(machine.device, clip).value])
    names = zero_shot.metrics(dataset)
    metric: str = spec.gate.metric
    if metric not in names:
        metric = names[0]
        say(f"{spec.gate.metric} cannot be told from the test rows of {dataset.version.tag}: the gate looks at {metric}.")
    found = evaluator.evaluate(models, dataset, domain, spec, resolution, metric, names)
    result = {"key": key, "opponent": tracking.version_number(champion), **found.result}
    now = int(time.time() * 1000)
    with tracking.retryable():
        client.log_batch(run_id, metrics=[mlflow.entities.Metric(f"test.{n}", v, now, resolution) for n, v in _flat(result)])
        mlflow.MlflowClient().log_dict(run_id, found.details, f"evaluation/{resolution}-details.json")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{resolution}-rows.parquet")
            found.rows.to_parquet(path, index=False)
            client.log_artifact(run_id, str(path), "evaluation")
        mlflow.MlflowClient().log_dict(run_id, result, name)  # last: its key says that all of it is there
    before, after = result["before"][metric], result["after"][metric]
    say(
        f"{resolution} px, {result['rows']} rows, {metric}: {before['value']:.3f} before, {after['value']:.3f} after "
        f"[{after['low']:.3f}, {after['high']:.3f}]"
    )
    return result


def _flat(result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Each model's metrics by name, for MLflow."""
    for who, metrics in result["metrics"].items():
        for name, value in metrics.items():
            yield f"{who}.{name}", value
        if result["general_score"]:
            yield f"{who}.general_score", result["general_score"][who]["general_score"]["value"]
        if result["robustness"]:
            yield f"{who}.mean_corruption_score", result["robustness"][who]["mean_corruption_score"]

"""finetune: a start model and a dataset version become a candidate, in an MLflow run of its own."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..contracts.model_card import Blend, ModelCard, Resolutions, Tokenizer
from ..core.console import say
from ..core.settings import settings
from ..spec import RunSpec

RECIPE = 5  # raise when training gives other results for the same spec, so that old runs are not taken for new ones


def run(spec: RunSpec, planned: dict[str, Any], tuned: dict[str, Any] | None = None, dag_run: str = "") -> dict[str, Any]:
    """Train, or resume, or find the finished run of the same work.

    Args:
        planned: result of the plan stage.
        tuned: result of the tune stage; its values enter the spec, so that the run's spec.json says everything.
        dag_run: the Airflow run that asked, for lineage.
    Returns: run_id, key, dataset, done_before (bool), steps, pairs_per_second, links.
    Raises: ClipftError (spec, data, NaN, full disk); Transient (MLflow or the data remote is away).
    """
    import mlflow

    from .. import objectives, tracking
    from ..data import versioning
    from ..devices.hardware import probe
    from ..model import build
    from ..train import launch as jobs
    from ..train.checkpoint_sync import Patient

    tuned = tuned or {"values": {}}
    # What is logged, hashed and packed is the whole truth: run again, it gives this run.
    spec = spec.changed(tuned["values"] | {"tune.trials": 0, "dataset": planned["dataset"], "model.start": planned["start"]})
    version = versioning.find(planned["dataset"], spec.domain)
    clip = build.load(planned["start"], domain=spec.domain)
    key = spec.identity(
        "finetune", "domain", "objective", "train", "memory", resolution=spec.resolution.model_dump(exclude={"evaluate"}),
        model=spec.model.model_dump(exclude={"start"}), dataset=version.revision, start=clip.digest, recipe=RECIPE,
        code=objectives.source_digests(spec.objective), metric=spec.gate.metric,
    )  # fmt: skip
    tags = {"clipft.domain": spec.domain, "clipft.dataset": version.tag, "clipft.revision": version.revision,
            "clipft.start": clip.source, "clipft.dag_run": dag_run}  # fmt: skip
    with tracking.retryable():
        mlflow_run = tracking.get_or_create_run(spec.domain, key, f"{version.tag} from {clip.source}", tags)
    run_id = mlflow_run.info.run_id
    result = {"run_id": run_id, "key": key, "dataset": version.tag, "links": {"MLflow run": tracking.run_link(mlflow_run)}}
    if "clipft.model_uri" in mlflow_run.data.tags:
        tracking.finish_run(run_id)
        say(f"This work was done before: run {run_id} (same spec, data and start model). Nothing to train.")
        return result | {"done_before": True, "steps": int(mlflow_run.data.metrics.get("steps", 0)), "pairs_per_second": 0.0}

    work = settings().folder("work", key)
    build.prepare(clip, spec)
    rows = version.card["counts"]["train"]
    with tracking.retryable():
        before = tracking.load_json_artifact(run_id, "handover.json")  # where another machine began this run
        if settings().upload_seconds and (got := tracking.fetch_checkpoint(run_id, work / "checkpoints")):
            say(f"Checkpoint {got.name} came from MLflow: another machine got that far.")
    decided = plan_of(spec, clip, [before, planned], work / "plan.json", rows)
    for line in decided.lines():
        say(line)
    if rows < spec.train.batch:
        say(f"The training split has {rows} rows, fewer than train.batch = {spec.train.batch}: batches are that small.")
    dataset = versioning.fetch(version)

    tracking.log_params(run_id, spec.flat() | {f"plan.{k}": v["value"] for k, v in decided.to_dict().items()})
    job = jobs.Job(spec, decided, planned["start"], version.tag, key, run_id, work)
    with tracking.retryable(), mlflow.start_run(run_id=run_id, log_system_metrics=True):
        mlflow.log_dict(decided.to_dict(), "plan.json")
        mlflow.log_dict({"plan": decided.to_dict(), "hardware": probe(spec.memory.device).likeness()}, "handover.json")
        mlflow.log_dict(spec.model_dump(mode="json"), "spec.json")
        if tuned["values"]:
            mlflow.log_dict(tuned, "tuning.json")

        def send(rows: list[tuple[int, dict[str, float]]]) -> None:
            with tracking.retryable():
                tracking.log_steps(run_id, rows)

        log = Patient(send)
        trained = jobs.train(job, clip, log)
        log.flush()
        mlflow.log_metrics({k: v for k, v in trained.items() if k != "pairs_per_second" or v})
        package = package_of(spec, clip, dataset, work / "package", run_id, key)
        uri = tracking.log_model(package)
        mlflow.set_tag("clipft.model_uri", uri)  # last: a run with this tag is whole
        tracking.delete_checkpoint(run_id)
    shutil.rmtree(work, ignore_errors=True)
    say(f"Candidate in run {run_id}: {trained['pairs']} pairs at {trained['pairs_per_second']:.1f}/s.")
    return result | {"done_before": False, "steps": trained["steps"], "pairs_per_second": trained["pairs_per_second"]}


def plan_of(spec: RunSpec, clip: Any, given: Sequence[Mapping[str, Any]], path: Path, rows: int) -> Any:
    """The plan of this piece of work. Probes are measurements and may differ next time, so a resumed run keeps its first.

    Args:
        given: plans that were made elsewhere, each with the hardware that it is for; they hold on a machine that is alike.
        path: of the plan that this machine used before.
    """
    from ..devices.hardware import probe
    from ..train import plan as plans

    hardware = probe(spec.memory.device)
    alike = [g["plan"] for g in given if g.get("hardware") == hardware.likeness()]
    for source in ([json.loads(path.read_text())] if path.exists() else []) + alike:
        if source["device"]["value"] == hardware.device:
            decided = plans.Plan.from_dict(source)
            break
    else:
        decided = plans.make(spec, clip, rows)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(decided.to_dict()))
    os.replace(part, path)
    return decided


def package_of(spec: RunSpec, clip: Any, dataset: Any, folder: Path, run_id: str, key: str, blend: Blend | None = None) -> Path:
    """Write a candidate's package."""
    import numpy as np

    from ..data.decoded_cache import decoded
    from ..domains import get_domain
    from ..drift.build_reference import take
    from ..model import recorded_answers
    from ..model.package import write_package
    from ..train.schedule import sides

    clip.to("cpu")
    side = spec.resolution.train
    held_out = dataset.split("val")
    images = decoded(dataset, held_out, side, "val", gray_bits=clip.prepared().gray_bits, aspect=clip.aspect)
    spread = np.linspace(0, len(held_out) - 1, min(4, len(held_out))).astype(int)
    texts = sorted(held_out["caption"].unique())[:4]
    card = ModelCard(
        domain=spec.domain,
        dataset=dataset.version.tag,
        revision=dataset.version.revision,
        license=dataset.version.card.get("license", ""),
        classes=dataset.classes,
        start=clip.source,
        objective=spec.objective.model_dump(mode="json"),
        spec=spec.model_dump(mode="json"),
        resolutions=Resolutions(train=list(sides(spec.resolution)), serve=side, evaluated=spec.resolution.evaluate),
        tokenizer=Tokenizer(name=type(clip.tokenizer).__name__, context_length=clip.context_length),
        embed_dim=clip.embed_dim,
        similarity=clip.similarity.name,
        dimensions=spec.objective.dimensions,
        run_id=run_id,
        key=key,
        blend=blend,
    )
    return write_package(
        folder,
        clip,
        card,
        recorded_answers.record(clip, images.take(spread).numpy(), texts),
        lambda place, weights: take(clip, dataset, get_domain(spec.domain), side, weights).save(place),
    )

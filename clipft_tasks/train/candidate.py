"""A candidate: a model trained in its MLflow run, and the package that the run holds in the end."""

import shutil
from dataclasses import asdict
from pathlib import Path

import mlflow
import numpy as np

from .. import tracking
from ..contracts.comparison import TrainingCost
from ..contracts.few_shot import FewShot
from ..contracts.model_card import Blend, ModelCard, Resolutions, Tokenizer
from ..contracts.stages import TuneResult
from ..data.decoded_cache import decoded
from ..data.versioning import Dataset
from ..domains import get_domain
from ..drift.build_reference import build_reference
from ..evaluate import cost
from ..evaluate.calibration import calibrate
from ..model import recorded_answers
from ..model.clip import Clip
from ..model.held_out import HeldOut
from ..model.package import write_package
from ..spec import RunSpec
from . import few_shot as few_shot_fit
from . import launch
from .launch import Job
from .schedule import sides

COUNTS = ("resumed_at", "overflows", "out_of_memory")  # what happened on the way: of use in a run's tags, not among its charts


def train_candidate(
    job: Job, clip: Clip, dataset: Dataset, tuned: TuneResult | None = None
) -> tuple[dict[str, float], TrainingCost]:  # fmt: skip
    """Train `clip` in place and leave its package in the job's MLflow run. The job's folder is gone afterwards.

    Args:
        tuned: where the spec's values come from, to be kept with the run.
    Returns: the training's metrics, and what it took.
    Raises: what training raises; TransientError where MLflow is away.
    """
    spec, plan, run_id = job.spec, job.plan.to_json(), job.run_id
    tracking.log_params(run_id, spec.flat() | {f"plan.{name}": plan[name]["value"] for name in job.plan.decisions})
    with tracking.retryable(), mlflow.start_run(run_id=run_id, log_system_metrics=True):
        mlflow.log_dict(plan, "plan.json")
        mlflow.log_dict(spec.model_dump(mode="json"), "spec.json")
        if tuned and tuned.values:
            mlflow.log_dict(tuned.to_json(), "tuning.json")
        log = launch.run_logger(run_id)
        fitted = None
        if spec.train.method == "few_shot":
            metrics, fitted = few_shot_fit.fit(job, clip, dataset)
            mlflow.log_dict(fitted.to_json(), "few_shot.json")
        else:
            metrics = launch.train(job, clip, log)
        log.flush()
        mlflow.log_metrics({k: v for k, v in metrics.items() if k not in COUNTS and (k != "pairs_per_second" or v)})
        mlflow.set_tags({f"clipft.{k}": f"{metrics[k]:g}" for k in COUNTS if k in metrics})
        took = cost.of_run(tracking.client().get_run(run_id))
        if took.energy_wh is not None:
            mlflow.log_metric("energy_wh", took.energy_wh)
            mlflow.set_tag("clipft.cost", took.sentence)
        package = write_candidate(spec, clip, dataset, job.folder / "package", run_id, job.key, few_shot=fitted)
        if clip.adapter:
            mlflow.log_artifacts(str(clip.adapter.write(job.folder / "adapter", package)), "adapter")
        mlflow.set_tag("clipft.model_uri", tracking.log_model(package))  # last: a run with this tag is whole
        tracking.delete_checkpoint(run_id)
    shutil.rmtree(job.folder, ignore_errors=True)
    return metrics, took


def write_candidate(
    spec: RunSpec, clip: Clip, dataset: Dataset, folder: Path, run_id: str, key: str, blend: Blend | None = None,
    few_shot: FewShot | None = None,
) -> Path:  # fmt: skip
    """Write a candidate's package."""
    clip.to("cpu")
    side = spec.resolution.side
    rows = dataset.split("val")
    images = decoded(dataset, rows, side, "val", gray_bits=clip.prepared().gray_bits, aspect=clip.aspect)
    spread = np.linspace(0, len(rows) - 1, min(4, len(rows))).astype(int)
    texts = sorted(rows["caption"].unique())[:4]
    held_out = HeldOut.of(clip, dataset, side)
    card = ModelCard(
        domain=spec.domain,
        dataset=dataset.version.tag,
        revision=dataset.version.revision,
        license=dataset.version.card.license,
        classes=dataset.classes,
        start=clip.source,
        augment=asdict(get_domain(spec.domain).augment),
        objective=spec.objective.model_dump(mode="json"),
        spec=spec.model_dump(mode="json"),
        resolutions=Resolutions(
            train=list(sides(spec.resolution, clip.tower.multiple)), serve=side, evaluated=spec.resolution.evaluated
        ),
        tokenizer=Tokenizer(name=type(clip.tokenizer).__name__, context_length=clip.context_length),
        embed_dim=clip.embed_dim,
        similarity=clip.similarity.name,
        dimensions=spec.objective.dimensions,
        run_id=run_id,
        key=key,
        blend=blend,
        few_shot=few_shot,
    )
    return write_package(
        folder,
        clip,
        card,
        recorded_answers.record(clip, images.take(spread).numpy(), texts),
        lambda place, weights: build_reference(clip, dataset, get_domain(spec.domain), side, weights, held_out).save(place),
        calibrate(held_out, dataset.classes, list(clip.prepared().prompts), float(clip.model.logit_scale.detach().exp())),
    )

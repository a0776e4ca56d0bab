"""Blending a candidate: points on the line from its start model are scored, and one of them becomes the candidate (WiSE-FT)."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow

from .. import tracking
from ..contracts.interpolation import BlendResult, CurvePoint
from ..contracts.model_card import Blend
from ..core.console import progress
from ..core.decision import Decision
from ..core.settings import settings
from ..data.versioning import Dataset
from ..domains import get_domain
from ..evaluate import interpolation as line
from ..model import interpolation
from ..model.clip import Clip
from ..spec import RunSpec
from . import validation
from .candidate import write_candidate

INHERITED = ("clipft.domain", "clipft.dataset", "clipft.revision", "clipft.start", "clipft.dag_run")


@dataclass(frozen=True)
class Blender:
    """A model whose weights can be put anywhere between a start model's and a candidate's. Both ends are kept on the CPU."""

    clip: Clip
    start: interpolation.State
    end: interpolation.State

    @classmethod
    def of(cls, start: Clip, candidate: Clip) -> "Blender":
        """`start` as it was prepared for the candidate's training. The candidate's weights are those that move."""
        first, last = (
            {name: w.detach().cpu().clone() for name, w in state.items()}
            for state in (interpolation.starting_point(start, candidate), candidate.state())
        )
        return cls(candidate, first, last)

    def at(self, alpha: float) -> Clip:
        """The model, a share `alpha` of the way. Raises ClipftError when the two are not of one architecture."""
        self.clip.load_state(interpolation.between(self.start, self.end, alpha))
        return self.clip


def score_line(blender: Blender, dataset: Dataset, spec: RunSpec, size: int) -> tuple[list[CurvePoint], str]:
    """Score `blend.points` even steps of the way on the validation split and the general set; returns them and the metric.

    Args:
        size: that the model was trained for, pixels.
    """
    points, metric, domain = [], "", get_domain(spec.domain)
    for i in progress(range(spec.blend.points + 1), "points", spec.blend.points + 1):
        alpha = i / spec.blend.points
        clip = blender.at(alpha)
        scored = validation.evaluate_on_validation(clip, dataset, size, spec.evaluate.batch, metric=spec.gate.metric)
        points.append(line.Point(alpha, scored.score, validation.general_score(clip, domain, size)))
        metric = scored.rows.metric
    return line.curve(points), metric


def save_candidate(spec: RunSpec, clip: Clip, dataset: Dataset, decided: Decision[float], *, key: str, parent: str) -> str:
    """The id of a run of its own with the blended package, below the run of the candidate that it was made from.

    Args:
        spec: that the candidate was trained with.
        key: of the blending; the run that already has it is returned.
    """
    before = tracking.client().get_run(parent)
    tags = {name: before.data.tags[name] for name in INHERITED if name in before.data.tags}
    tags |= {"mlflow.parentRunId": parent, "clipft.alpha": f"{decided.value:g}"}
    with tracking.retryable():
        own = tracking.get_or_create_run(spec.domain, key, f"{before.info.run_name}, alpha {decided.value:g}", tags)
    run_id = str(own.info.run_id)
    if "clipft.model_uri" in own.data.tags:
        tracking.finish_run(run_id)
        return run_id
    work = settings().folder("work", key)
    with tracking.retryable(), mlflow.start_run(run_id=run_id):
        mlflow.log_dict(spec.model_dump(mode="json"), "spec.json")
        mlflow.log_metrics({k: v for k, v in before.data.metrics.items() if "." not in k and "/" not in k})  # cost of training
        made = Blend(alpha=decided.value, reason=decided.reason, parents=[clip.source, f"run {parent}"])
        package = write_candidate(spec, clip, dataset, work / "package", run_id, key, blend=made)
        mlflow.set_tag("clipft.model_uri", tracking.log_model(package))  # last: a run with this tag is whole
    shutil.rmtree(work, ignore_errors=True)
    return run_id


def load_result(run_id: str, key: str) -> BlendResult | None:
    """What an earlier blending of the same work left in the candidate's run, by this release or one before."""
    found = tracking.load_json_artifact(run_id, "blend.json")
    return BlendResult.from_json(found, f"blend.json of run {run_id}") if found.get("key") == key else None


def save_result(run_id: str, result: BlendResult) -> None:
    """Log the curve to the candidate's run and to that of the blended one, and to the former the result, as the last thing."""
    client, curve, alpha = tracking.client(), result.curve, result.alpha
    table = line.table(curve, result.metric, alpha)
    with tempfile.TemporaryDirectory() as folder, tracking.retryable():
        for form in ("png", "svg"):
            Path(folder, f"curve.{form}").write_bytes(line.plot(curve, result.metric, alpha, form))
        for each in {result.run_id, run_id}:
            client.log_artifacts(each, folder, "blend")
            client.log_text(each, f"{table}\n\nalpha {alpha} ({result.reason})\n", "blend/table.md")
            for point in curve:
                client.log_metric(each, "blend.score", point.score, step=round(100 * point.alpha))
                client.log_metric(each, "blend.general_score", point.general_score, step=round(100 * point.alpha))
        client.log_dict(run_id, result.to_json(), "blend.json")

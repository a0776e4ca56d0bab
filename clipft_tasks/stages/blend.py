"""blend: a point on the way from the start model to the candidate that forgot less, if it is nearly as good (WiSE-FT)."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..contracts.interpolation import BlendResult
from ..contracts.model_card import Blend
from ..core.console import progress, say
from ..core.decision import Decision
from ..core.settings import settings
from ..spec import RunSpec

if TYPE_CHECKING:
    from ..data.versioning import Dataset
    from ..model.clip import Clip


def run(spec: RunSpec, run_id: str) -> BlendResult:
    """Score points of the path on the validation split and the general set, and make the best one the candidate.

    Args:
        run_id: MLflow run of the candidate, from the finetune stage.
    Raises: ClipftError when the general set is not installed, or start and candidate are not of one architecture.
    """
    if not spec.blend.points:
        return BlendResult(run_id=run_id, alpha=1.0, reason="blending is off (blend.points = 0)", metric="", curve=[])

    from .. import tracking
    from ..data import versioning
    from ..domains import get_domain
    from ..evaluate import interpolation as paths
    from ..model import build, interpolation
    from ..model.layout import prepare_for_inference
    from ..train import validation

    client = tracking.client()
    package = tracking.fetch_candidate(run_id)
    tags = client.get_run(run_id).data.tags
    trained = RunSpec.model_validate(
        tracking.load_json_artifact(run_id, "spec.json")
    )  # as the candidate was, tuned values and all
    dataset = versioning.fetch(versioning.find(tags["clipft.dataset"], spec.domain))
    candidate = build.from_folder(package, source=tags["clipft.start"])
    start = build.load(tags["clipft.start"], domain=spec.domain)
    key = spec.identity(
        "blend", "blend", start=start.digest, model=candidate.digest, dataset=dataset.version.revision, rows=validation.ROWS,
        metric=spec.gate.metric,
    )  # fmt: skip
    found = tracking.load_json_artifact(run_id, "blend.json")
    if found.get("key") == key:
        done = BlendResult.from_json(found, f"blend.json of run {run_id}")
        say(f"Blended before with the same models and rows: alpha {done.alpha:g}.")
        return done

    build.prepare(start, trained)
    first, last = (
        {name: w.detach().cpu().clone() for name, w in state.items()}
        for state in (interpolation.starting_point(start, candidate), candidate.state())
    )
    prepare_for_inference(candidate, spec.memory.device)
    domain, side = get_domain(spec.domain), trained.resolution.train
    points, metric = [], ""
    for i in progress(range(spec.blend.points + 1), "points", spec.blend.points + 1):
        alpha = i / spec.blend.points
        candidate.load_state(interpolation.between(first, last, alpha))
        scored = validation.evaluate_on_validation(candidate, dataset, side, spec.evaluate.batch, metric=spec.gate.metric)
        points.append(paths.Point(alpha, scored.score, validation.general_score(candidate, domain, side)))
        metric = scored.rows.metric
    curve = paths.curve(points)
    decided = paths.choose(curve, spec.blend.min_gain, spec.blend.max_forgetting)
    say(f"alpha {decided}")

    taken = run_id
    if decided.value < 1:
        candidate.load_state(interpolation.between(first, last, decided.value))
        taken = _candidate(trained.model_copy(update={"blend": spec.blend}), candidate, dataset, decided, key, run_id)
    table = paths.table(curve, metric, decided.value)
    say(table)
    link = tracking.run_link(client.get_run(taken), "artifacts/blend/curve.png")
    result = BlendResult(
        key=key, run_id=taken, alpha=decided.value, reason=decided.reason, metric=metric, curve=curve, links={"Blending": link}
    )
    with tempfile.TemporaryDirectory() as folder, tracking.retryable():
        for form in ("png", "svg"):
            Path(folder, f"curve.{form}").write_bytes(paths.plot(curve, metric, decided.value, form))
        for each in {taken, run_id}:
            client.log_artifacts(each, folder, "blend")
            client.log_text(each, f"{table}\n\nalpha {decided}\n", "blend/table.md")
            for point in curve:
                client.log_metric(each, "blend.score", point.score, step=round(100 * point.alpha))
                client.log_metric(each, "blend.general_score", point.general_score, step=round(100 * point.alpha))
        client.log_dict(run_id, result.to_json(), "blend.json")  # last: a run with this file is whole
    return result


def _candidate(spec: RunSpec, clip: "Clip", dataset: "Dataset", decided: "Decision[float]", key: str, parent: str) -> str:
    """A run of its own with the blended package, below the run of the candidate that it was made from; the one that there is."""
    import mlflow

    from .. import tracking
    from ..train.candidate import write_candidate

    before = tracking.client().get_run(parent)
    inherited = ("clipft.domain", "clipft.dataset", "clipft.revision", "clipft.start", "clipft.dag_run")
    tags = {name: before.data.tags[name] for name in inherited if name in before.data.tags}
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

"""blend: a point on the way from the start model to the candidate that forgot less, if it is nearly as good (WiSE-FT)."""

from ..contracts.interpolation import BlendResult
from ..core.console import say
from ..spec import RunSpec


def run(spec: RunSpec, run_id: str) -> BlendResult:
    """Score points of the way on the validation split and the general set, and make the best one the candidate.

    Args:
        run_id: MLflow run of the candidate, from the finetune stage.
    Raises: ClipftError when the general set is not installed, or start and candidate are not of one architecture.
    """
    if not spec.blend.points:
        return BlendResult(run_id=run_id, alpha=1.0, reason="blending is off (blend.points = 0)", metric="", curve=[])

    from .. import tracking
    from ..data import versioning
    from ..evaluate import interpolation
    from ..model import build
    from ..model.layout import prepare_for_inference
    from ..train import blend, recipe, validation

    tags = tracking.client().get_run(run_id).data.tags
    trained = RunSpec.model_validate(tracking.load_json_artifact(run_id, "spec.json"))  # tuned values and all
    dataset = versioning.fetch(versioning.find(tags["clipft.dataset"], spec.domain))
    candidate = build.from_folder(tracking.fetch_candidate(run_id), source=tags["clipft.start"])
    start = build.load(tags["clipft.start"], domain=spec.domain)
    key = spec.identity(
        "blend", "blend", start=start.digest, model=candidate.digest, dataset=dataset.version.revision, rows=validation.ROWS,
        metric=spec.gate.metric, profile=recipe.profile_of(spec), general="selection half",
    )  # fmt: skip
    if done := blend.load_result(run_id, key):
        say(f"Blended before with the same models and rows: alpha {done.alpha:g}.")
        return done

    build.prepare(start, trained)
    blender = blend.Blender.of(start, candidate)
    prepare_for_inference(candidate, spec.memory.device)
    curve, metric = blend.score_line(blender, dataset, spec, trained.resolution.side)
    decided = interpolation.choose(curve, spec.blend.min_gain, spec.blend.max_forgetting)
    say(f"alpha {decided}")
    taken, alpha = run_id, decided.value
    if alpha < 1:
        as_trained = trained.model_copy(update={"blend": spec.blend})
        taken = blend.save_candidate(as_trained, blender.at(alpha), dataset, decided, key=key, parent=run_id)
    say(interpolation.table(curve, metric, alpha))
    links = {"Blending": tracking.run_link(tracking.client().get_run(taken), "artifacts/blend/curve.png")}
    result = BlendResult(key=key, run_id=taken, alpha=alpha, reason=decided.reason, metric=metric, curve=curve, links=links)
    blend.save_result(run_id, result)
    return result

"""evaluate: the candidate, the start model and the champion on the same test rows, at one image size."""

from ..contracts.evaluation import EvaluationResult, Role
from ..core.console import say
from ..spec import RunSpec
from .gate import deciding_metric

RECIPE = 6  # raise when the same models and rows give another result, so that an old one is not taken for it


def run(spec: RunSpec, run_id: str, size: int) -> EvaluationResult:
    """Score all models at one image size.

    Metrics go to the candidate's MLflow run with the size as step, the result and what fills a page into its artifacts
    (`clipft_tasks.evaluate.artifacts`). The same work again is found there.
    Raises: ClipftError when the run has no model, or the test rows nothing to tell apart.
    """
    from .. import tracking
    from ..data import versioning
    from ..domains import get_domain
    from ..evaluate import artifacts, custom_metric, evaluator, zero_shot
    from ..model import build
    from ..model.clip import Clip
    from ..model.layout import prepare_for_inference

    domain = get_domain(spec.domain)
    tags = tracking.client().get_run(run_id).data.tags
    candidate = build.from_folder(tracking.fetch_candidate(run_id), source="candidate")
    dataset = versioning.fetch(versioning.find(tags["clipft.dataset"], spec.domain))
    champion = tracking.champion(spec.domain)
    if champion and champion.run_id == run_id:
        champion = tracking.version_by_alias(spec.domain, tracking.PREVIOUS)  # a second look at what already won
    key = spec.identity(
        "evaluate", "evaluate", metric=spec.gate.metric, model=candidate.digest, dataset=dataset.version.revision, resolution=size,
        start=tags["clipft.start"], champion=champion.run_id if champion else "", recipe=RECIPE,
        domain=[domain.prompts, domain.slices, domain.corruptions, domain.general_set, spec.chooses_by_forgetting], train=spec.resolution.side,
        code=custom_metric.code_of(evaluator.custom_metrics(spec)),
    )  # fmt: skip
    done = artifacts.load(run_id, size)
    if done and done.key == key:
        say(f"Evaluated before at {size} px with the same rows and models.")
        return done

    models: dict[Role, Clip] = {"candidate": candidate, "start": build.load(tags["clipft.start"], domain=spec.domain)}
    if champion:
        models["champion"] = build.from_folder(tracking.fetch_package(champion), source=f"version {champion.version}")
    for clip in models.values():
        prepare_for_inference(clip, spec.memory.device)
    task = zero_shot.Task(dataset, size, spec.evaluate.batch)
    names = zero_shot.headlines(dataset)
    metric = deciding_metric(spec, names, dataset.version.tag)
    found = evaluator.evaluate(
        models, task, spec, domain=domain, metric=metric, names=names, opponent=tracking.version_number(champion), key=key
    )
    artifacts.save(run_id, found)
    start, now = (found.result.models[role].intervals[metric] for role in ("start", "candidate"))
    values = f"{start.value:.3f} start model, {now.value:.3f} candidate {now.ends()}"
    say(f"{size} px, {found.result.rows} rows, {metric}: {values}")
    return found.result

"""A search: opened for what it tunes, and decided once its trials have ended."""

from ..contracts.stages import PlanResult, StudyResult, TuneResult
from ..core.console import say
from ..data import versioning
from ..spec import RunSpec
from ..train.recipe import code_versions, profile_of
from ..train.validation import ValidationRows
from . import mlflow_runs, search_space, stopping
from . import study as studies
from .study import Study
from .trials import State


def open_search(spec: RunSpec, planned: PlanResult, dag_run: str = "") -> StudyResult:
    """Open the study of this work, or find it. Raises as the tune stage does."""
    space = search_space.search_space_of(spec, planned.temperature)
    if space.points <= 1:
        reason = "the search space has one point, the template's values: there is nothing to tune"
        say(reason[0].upper() + reason[1:] + ".")
        return StudyResult(reason=reason)
    version = versioning.find(planned.dataset, spec.domain)
    subject = spec.identity(
        "tune", "domain", "objective", "train", "memory", tune={"epochs": spec.tune.epochs, "seed": spec.tune.seed},
        resolution=spec.resolution.model_dump(exclude={"evaluate"}), model=spec.model.model_dump(exclude={"start"}),
        dataset=version.revision, start=planned.digest, metric=spec.gate.metric,
        profile=profile_of(spec),
    )  # fmt: skip
    code = code_versions(spec)
    key = spec.identity("tune", subject=subject, space=space.to_dict(), code=code)
    name = f"clipft-{spec.domain}-{key}"
    run_id, link = mlflow_runs.open_run(spec, planned, version, name, key, space, dag_run)
    reason = studies.open_study(name, subject, space, code, spec.tune.trials)
    say(f"{reason[0].upper()}{reason[1:]}. {len(space)} fields vary:")
    for field, dimension in space.items():
        say(f"  {field:40} {dimension}")
    return StudyResult(
        study=name,
        key=key,
        points=None if space.points == float("inf") else int(space.points),
        trials=tuple(range(spec.tune.trials)),
        reason=reason,
        run_id=run_id,
        links={"MLflow run": link},
    )


def decide(spec: RunSpec, planned: PlanResult, begun: StudyResult) -> TuneResult:
    """Take the best trial's values when they are surely better than the template's; otherwise leave those.

    Raises: ClipftError when every trial failed.
    """
    study = Study(begun.study, spec.tune.seed)
    tried = study.trials()
    version = versioning.find(planned.dataset, spec.domain)
    rows = ValidationRows.of(versioning.read_manifest(version), metric=spec.gate.metric)
    decision = stopping.decide(tried, rows, spec.tune.min_gain)
    stopped = stopping.reason_to_stop(tried, spec.tune, begun.points or float("inf"))
    if all(t.ended for t in tried):
        stopped = f"all {len(tried)} trials ended"
    result = TuneResult(
        study=study.name,
        values=decision.value,
        reason=decision.reason,
        measured=decision.measured,
        stopped=stopped,
        metric=rows.metric,
        importance={field: round(share, 4) for field, share in study.importance().items()},
        tried=tuple(t.summary() for t in tried if t.state != State.WAITING),
    )
    run_id, link = mlflow_runs.log_decision(spec, begun, tried, result)
    if stopped:
        say(f"No more trials: {stopped}.")
    say(f"{decision.reason[0].upper()}{decision.reason[1:]}.")
    for field, value in decision.value.items():
        say(f"  {field} = {search_space.shown(value)}")
    return result.model_copy(update={"run_id": run_id, "links": {"Tuning": link}})

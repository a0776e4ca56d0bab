"""tune: short trainings with other values than the template's; the best are taken when they are surely better.

In Airflow `begin`, `trial` (mapped, one task each) and `decide` are tasks of their own; `run` does all of them. Every one
may be killed and run again: a trial keeps its number and goes on from its checkpoint.
"""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.console import say
from ..core.errors import ClipftError
from ..core.settings import settings
from ..spec import RunSpec


def run(spec: RunSpec, planned: dict[str, Any], dag_run: str = "") -> dict[str, Any]:
    """Begin or go on with the study, run its trials one after the other, decide. Returns what `decide` does."""
    begun = begin(spec, planned, dag_run)
    for number in begun["trials"]:
        if trial(spec, planned, begun, number)["state"] == "skipped":
            break
    return decide(spec, planned, begun)


def begin(spec: RunSpec, planned: dict[str, Any], dag_run: str = "") -> dict[str, Any]:
    """Open the study of this work, or find it.

    Args:
        planned: result of the plan stage.
        dag_run: the Airflow run that asked, for lineage.
    Returns: study (name; empty where there is nothing to tune, with the reason), key, points (sets of values; None for
        endless), trials (their numbers), reason, run_id and links of the MLflow run.
    Raises: ClipftError when the objective or its space is wrong; Transient (MLflow or the database is away).
    """
    nothing = {"study": "", "key": "", "points": 0, "trials": [], "run_id": ""}
    if not spec.tune.trials:
        return nothing | {"reason": "tuning is off (tune.trials = 0)"}

    from .. import objectives, tracking
    from ..data import versioning
    from ..tuning import search_space as spaces
    from ..tuning import study as studies
    from .finetune import RECIPE

    space = spaces.search_space_of(spec, planned["temperature"])
    if space.points <= 1:
        reason = "the search space has one point, the template's values: there is nothing to tune"
        say(reason[0].upper() + reason[1:] + ".")
        return nothing | {"reason": reason}
    version = versioning.find(planned["dataset"], spec.domain)
    subject = spec.identity(
        "tune", "domain", "objective", "train", "memory", tune={"epochs": spec.tune.epochs, "seed": spec.tune.seed},
        resolution=spec.resolution.model_dump(exclude={"evaluate"}), model=spec.model.model_dump(exclude={"start"}),
        dataset=version.revision, start=planned["digest"], metric=spec.gate.metric,
    )  # fmt: skip
    code: dict[str, str | int] = {"clipft": RECIPE, **objectives.source_digests(spec.objective)}
    key = spec.identity("tune", subject=subject, space=space.to_dict(), code=code)
    name = f"clipft-{spec.domain}-{key}"
    tags = {"clipft.domain": spec.domain, "clipft.dataset": version.tag, "clipft.revision": version.revision,
            "clipft.start": planned["start"], "clipft.dag_run": dag_run, "clipft.study": name}  # fmt: skip
    with tracking.retryable():
        mlflow_run = tracking.get_or_create_run(spec.domain, key, f"tuning {spec.objective.name} on {version.tag}", tags)
        tracking.log_params(mlflow_run.info.run_id, {f"space.{field}": _shown(d) for field, d in space.items()})
    reason = studies.open_study(name, subject, space, code, spec.tune.trials)
    say(f"{reason[0].upper()}{reason[1:]}. {len(space)} fields vary:")
    for field, dimension in space.items():
        say(f"  {field:40} {_shown(dimension)}")
    return {
        "study": name,
        "key": key,
        "points": None if space.points == float("inf") else int(space.points),
        "trials": list(range(spec.tune.trials)),
        "reason": reason,
        "run_id": mlflow_run.info.run_id,
        "links": {"MLflow run": tracking.run_link(mlflow_run)},
    }


def trial(spec: RunSpec, planned: dict[str, Any], begun: dict[str, Any], number: int) -> dict[str, Any]:
    """Run one trial, resume it, or find that it ended or is no longer needed.

    Args:
        begun: result of `begin`.
        number: of the trial; number 0 has the template's values.
    Returns: number, state (complete, pruned, failed, running where the budget ended, skipped), values, score, seconds, reason.
    Raises: Transient (MLflow or the database is away, or SIGTERM); what is wrong with the values fails the trial alone.
    """
    from ..tuning import stopping
    from ..tuning.study import Study

    study = Study(begun["study"], spec.tune.seed)
    points = begun["points"] or float("inf")
    with study.exclusive(number):
        tried = study.trials()
        if not tried[number].ended:
            if reason := stopping.reason_to_stop(tried, spec.tune, points):
                say(f"Trial {number} is not run: {reason}.")
                return tried[number].to_dict() | {"state": "skipped", "reason": reason}
            _try(spec, planned, begun, study, number)
        _record(spec, begun, study, number)
        done = study.trials()[number]
    score = f"{done.score:.4f}" if done.score is not None else "no score"
    shown = ", ".join(f"{field.rsplit('.', 1)[-1]} {_number(value)}" for field, value in done.values.items())
    say(f"Trial {number}: {done.state}, {score}, {done.seconds:.0f} s ({shown}){f'; {done.reason}' if done.reason else ''}")
    return done.to_dict()


def decide(spec: RunSpec, planned: dict[str, Any], begun: dict[str, Any]) -> dict[str, Any]:
    """Take the best trial's values when they are surely better than the template's; otherwise leave those.

    Returns: values (by dotted field; {} for the template's), reason, measured (metrics), stopped (why there were no more
        trials), importance, tried (each trial), and run_id and links of the MLflow run.
    Raises: ClipftError when every trial failed.
    """
    if not begun["study"]:
        return {"values": {}, "reason": begun["reason"], "measured": {}, "stopped": "", "tried": []}

    from ..data import versioning
    from ..train.validation import Rows
    from ..tuning import stopping
    from ..tuning.study import Study
    from ..tuning.trials import State

    study = Study(begun["study"], spec.tune.seed)
    tried = study.trials()
    version = versioning.find(planned["dataset"], spec.domain)
    rows = Rows.of(versioning.read_manifest(version), metric=spec.gate.metric)
    decision = stopping.decide(tried, rows, spec.tune.min_gain)
    stopped = stopping.reason_to_stop(tried, spec.tune, begun["points"] or float("inf"))
    if all(t.ended for t in tried):
        stopped = f"all {len(tried)} trials ended"
    result: dict[str, Any] = {
        "study": study.name,
        "values": decision.value,
        "reason": decision.reason,
        "measured": decision.measured,
        "stopped": stopped,
        "metric": rows.metric,
        "importance": {field: round(share, 4) for field, share in study.importance().items()},
        "tried": [t.to_dict() for t in tried if t.state != State.WAITING],
    }
    run_id, link = _draw(spec, begun, tried, result)
    if stopped:
        say(f"No more trials: {stopped}.")
    say(f"{decision.reason[0].upper()}{decision.reason[1:]}.")
    for field, value in decision.value.items():
        say(f"  {field} = {_number(value)}")
    return result | {"run_id": run_id, "links": {"Tuning": link}}


class _Pruned(Exception):
    """The trial is not worth going on with."""


class _OutOfTime(Exception):
    """The budget ended in the middle of a trial."""


def _try(spec: RunSpec, planned: dict[str, Any], begun: dict[str, Any], study: Any, number: int) -> None:
    """Train with the values of a trial, and write down what came of it."""
    from ..train import launch as jobs
    from ..train import validation
    from ..tuning import stopping
    from ..tuning.trials import TEMPLATE, State

    values = study.begin(number)
    others = [t for t in study.trials() if t.number != number]
    twin = next((t for t in others if t.state in (State.COMPLETE, State.FAILED) and t.values == values), None)
    if twin:
        reason = f"the same values as trial {twin.number}"
        study.end(number, twin.state, score=twin.score, right=twin.right, reason=twin.reason or reason)
        return

    epochs = spec.tune.epochs or spec.train.epochs
    changes = {} if number == TEMPLATE else values
    folder = settings().folder("work", f"{begun['key']}-{number}")

    def after_epoch(epoch: int, judged: Any) -> None:
        beat()
        hopeless = study.report(number, epoch, judged.score)
        say(f"Trial {number}, epoch {epoch} of {epochs}: {judged.rows.metric} {judged.score:.4f}")
        _record(spec, begun, study, number)
        if epoch < epochs and hopeless:
            raise _Pruned(f"below the median of the other trials after {epoch} of {epochs} epochs")
        if epoch < epochs and stopping.minutes_spent(study.trials()) >= spec.tune.minutes:
            raise _OutOfTime

    outcome: dict[str, Any] = {}
    with study.heartbeat(number) as beat:
        clip, dataset, job = _job(spec.changed(changes | {"train.epochs": epochs, "tune.trials": 0}), planned, folder)
        try:
            jobs.train(job, clip, lambda steps: None, after_epoch)
            judged = validation.judge(clip, dataset, spec.resolution.train, spec.evaluate.batch, metric=spec.gate.metric)
            outcome = {"state": State.COMPLETE, "score": judged.score, "right": validation.pack(judged.right)}
        except _Pruned as why:
            outcome = {"state": State.PRUNED, "reason": str(why)}
        except _OutOfTime:
            say(f"The {spec.tune.minutes:g} minutes ended in trial {number}; with more it goes on from its checkpoint.")
            return
        except ClipftError as error:
            outcome = {"state": State.FAILED, "reason": str(error)}
    study.end(number, **outcome)
    shutil.rmtree(folder, ignore_errors=True)


def _job(spec: RunSpec, planned: dict[str, Any], folder: Path) -> tuple[Any, Any, Any]:
    """Start model, data set and job of a trial. What is wrong with these is wrong for all trials, and fails none of them."""
    from ..core.decision import Decision
    from ..data import versioning
    from ..model import build
    from ..train.launch import Job
    from .finetune import plan_of

    version = versioning.find(planned["dataset"], spec.domain)
    clip = build.prepare(build.load(planned["start"], domain=spec.domain), spec)
    decided = replace(
        plan_of(spec, clip, [planned], folder / "plan.json", version.card["counts"]["train"]),
        processes=Decision(1, "a trial runs in one process; the batch that the objective sees is the same"),
        compile=Decision(False, "a trial is too short for it to pay"),
    )
    return clip, versioning.fetch(version), Job(spec, decided, planned["start"], version.tag, folder.name, "", folder)


def _record(spec: RunSpec, begun: dict[str, Any], study: Any, number: int) -> None:
    """Show the trial in MLflow, as a run inside the study's. The study is what counts: runs may be deleted there."""
    from mlflow.exceptions import MlflowException

    from .. import tracking

    tried = study.trials()[number]
    tags = {"mlflow.parentRunId": begun["run_id"], "clipft.study": study.name, "clipft.domain": spec.domain}
    try:
        with tracking.retryable():
            run_id = tracking.get_or_create_run(spec.domain, f"{begun['key']}-{number}", f"trial {number}", tags).info.run_id
            tracking.log_params(run_id, tried.values)
            client = tracking.client()
            logged = {m.step for m in client.get_metric_history(run_id, "validation_score")}
            for epoch, score in tried.epochs.items():
                if epoch not in logged:
                    client.log_metric(run_id, "validation_score", score, step=epoch)
            if tried.ended:
                if tried.score is not None:
                    client.log_metric(run_id, "score", tried.score)
                client.set_tag(run_id, "clipft.trial", tried.state.value)
                client.set_tag(run_id, "clipft.reason", tried.reason)
                tracking.finish_run(run_id, "FAILED" if tried.state == "failed" else "FINISHED")
    except MlflowException as error:
        say(f"Trial {number} cannot be shown in MLflow ({error}); the study has it.")


def _draw(spec: RunSpec, begun: dict[str, Any], tried: Any, result: dict[str, Any]) -> tuple[str, str]:
    """Log the decision and the plots to the study's MLflow run, which is made anew if somebody deleted it."""
    from .. import tracking
    from ..tuning import plots
    from ..tuning.trials import TEMPLATE

    measured = result["measured"]
    winner = int(measured["trial"]) if result["values"] else TEMPLATE
    with tempfile.TemporaryDirectory() as folder, tracking.retryable():
        mlflow_run = tracking.get_or_create_run(
            spec.domain, begun["key"], f"tuning {spec.objective.name}", {"clipft.study": begun["study"]}
        )
        run_id, client = mlflow_run.info.run_id, tracking.client()
        Path(folder, "history.png").write_bytes(plots.history(tried, result["metric"], winner))
        if result["importance"]:
            Path(folder, "importance.png").write_bytes(plots.importance(result["importance"]))
        Path(folder, "decision.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
        client.log_artifacts(run_id, folder)
        for name, value in measured.items():
            client.log_metric(run_id, f"tuning.{name}", value)
        client.set_tag(run_id, "clipft.decision", result["reason"][:4900])
        tracking.finish_run(run_id)
    return run_id, tracking.run_link(mlflow_run, "artifacts/history.png")


def _shown(dimension: Any) -> str:
    return f"{dimension.range} (template: {'its own' if dimension.template is None else _number(dimension.template)})"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

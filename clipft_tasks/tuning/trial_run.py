"""One trial: a short training with its values, which may be killed and goes on from its checkpoint."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..contracts.stages import PlanResult, StudyResult, TrialSummary
from ..core.console import say
from ..core.decision import Decision
from ..core.errors import ClipftError
from ..core.settings import settings
from ..data import versioning
from ..data.versioning import Dataset
from ..model import build
from ..model.clip import Clip
from ..spec import RunSpec
from ..train import launch, plan, validation
from ..train.launch import Job
from ..train.validation import ValidationResult
from . import mlflow_runs, search_space, stopping
from .study import Study
from .trials import TEMPLATE, State


def run_trial(spec: RunSpec, planned: PlanResult, begun: StudyResult, number: int) -> TrialSummary:
    """Run one trial, resume it, or find that it ended or is no longer needed. Raises as the tune stage does."""
    study = Study(begun.study, spec.tune.seed)
    points = begun.points or float("inf")
    with study.exclusive(number):
        tried = study.trials()
        if not tried[number].ended:
            if reason := stopping.reason_to_stop(tried, spec.tune, points):
                say(f"Trial {number} is not run: {reason}.")
                return tried[number].summary().model_copy(update={"state": "skipped", "reason": reason})
            _train(spec, planned, begun, study, number)
        mlflow_runs.log_trial(spec, begun, study, number)
        done = study.trials()[number].summary()
    score = f"{done.score:.4f}" if done.score is not None else "no score"
    values = ", ".join(f"{field.rsplit('.', 1)[-1]} {search_space.shown(value)}" for field, value in done.values.items())
    say(f"Trial {number}: {done.state}, {score}, {done.seconds:.0f} s ({values}){f'; {done.reason}' if done.reason else ''}")
    return done


@dataclass(frozen=True)
class _Outcome:
    """How a trial ended; see `Trial`."""

    state: State
    score: float | None = None
    right: str = ""
    reason: str = ""


class _PrunedError(Exception):
    """The trial is not worth going on with."""


class _OutOfTimeError(Exception):
    """The budget ended in the middle of a trial."""


def _train(spec: RunSpec, planned: PlanResult, begun: StudyResult, study: Study, number: int) -> None:
    """Train with the values of a trial, and write down what came of it."""
    values = study.begin(number)
    others = [t for t in study.trials() if t.number != number]
    twin = next((t for t in others if t.state in (State.COMPLETE, State.FAILED) and t.values == values), None)
    if twin:
        reason = f"the same values as trial {twin.number}"
        study.end(number, twin.state, score=twin.score, right=twin.right, reason=twin.reason or reason)
        return

    epochs = spec.tune.epochs or spec.train.epochs
    changes = {} if number == TEMPLATE else values
    folder = settings().folder("work", f"{begun.key}-{number}")

    def after_epoch(epoch: int, result: ValidationResult) -> None:
        beat()
        hopeless = study.report(number, epoch, result.score)
        say(f"Trial {number}, epoch {epoch} of {epochs}: {result.rows.metric} {result.score:.4f}")
        mlflow_runs.log_trial(spec, begun, study, number)
        if epoch < epochs and hopeless:
            raise _PrunedError(f"below the median of the other trials after {epoch} of {epochs} epochs")
        if epoch < epochs and stopping.minutes_spent(study.trials()) >= spec.tune.minutes:
            raise _OutOfTimeError

    def attempt() -> _Outcome | None:
        clip, dataset, job = _job(spec.changed(changes | {"train.epochs": epochs, "tune.trials": 0}), planned, folder)
        try:
            launch.train(job, clip, lambda rows: None, after_epoch)
            side, batch = spec.resolution.side, spec.evaluate.batch
            result = validation.evaluate_on_validation(clip, dataset, side, batch, metric=spec.gate.metric)
            return _Outcome(State.COMPLETE, score=result.score, right=validation.pack(result.right))
        except _PrunedError as why:
            return _Outcome(State.PRUNED, reason=str(why))
        except _OutOfTimeError:
            say(f"The {spec.tune.minutes:g} minutes ended in trial {number}; with more it goes on from its checkpoint.")
            return None
        except ClipftError as error:
            return _Outcome(State.FAILED, reason=str(error))

    with study.heartbeat(number) as beat:
        outcome = attempt()
    if outcome is None:
        return
    study.end(number, outcome.state, score=outcome.score, right=outcome.right, reason=outcome.reason)
    shutil.rmtree(folder, ignore_errors=True)


def _job(spec: RunSpec, planned: PlanResult, folder: Path) -> tuple[Clip, Dataset, Job]:
    """Start model, data set and job of a trial. What is wrong with these is wrong for all trials, and fails none of them."""
    version = versioning.find(planned.dataset, spec.domain)
    clip = build.prepare(build.load(planned.start, domain=spec.domain), spec)
    rows = version.card.counts["train"]
    texts = plan.longest(versioning.read_manifest(version)["caption"])
    made = plan.reuse_or_make(spec, clip, rows, launch.plan_begun_with(folder), [planned.plan], texts)
    short = made.model_copy(update={
        "processes": Decision(1, "a trial runs in one process; the batch that the objective sees is the same"),
        "compile": Decision(False, "a trial is too short for it to pay"),
    })  # fmt: skip
    job = Job(spec=spec, plan=short, start=planned.start, dataset=version.tag, key=folder.name, folder=folder)
    return clip, versioning.fetch(version), job

"""tune: short trainings with other values than the template's; the best are taken when they are surely better.

In Airflow `begin`, `trial` (mapped, one task each) and `decide` are tasks of their own; `run` does all of them. Every one
may be killed and run again: a trial keeps its number and goes on from its checkpoint.
"""

from ..contracts.stages import PlanResult, StudyResult, TrialResult, TuneResult
from ..spec import RunSpec


def run(spec: RunSpec, planned: PlanResult, dag_run: str = "") -> TuneResult:
    """Begin or go on with the study, run its trials one after the other, decide."""
    begun = begin(spec, planned, dag_run)
    for number in begun.trials:
        if trial(spec, planned, begun, number).trial.state == "skipped":
            break
    return decide(spec, planned, begun)


def begin(spec: RunSpec, planned: PlanResult, dag_run: str = "") -> StudyResult:
    """Open the study of this work, or find it.

    Args:
        dag_run: the Airflow run that asked, for lineage.
    Raises: ClipftError when the objective or its space is wrong; TransientError (MLflow or the database is away).
    """
    if not spec.tune.trials:
        return StudyResult(reason="tuning is off (tune.trials = 0)")
    from ..tuning.search import open_search

    return open_search(spec, planned, dag_run)


def trial(spec: RunSpec, planned: PlanResult, begun: StudyResult, number: int) -> TrialResult:
    """Run one trial, resume it, or find that it ended or is no longer needed.

    Args:
        number: of the trial; number 0 has the template's values.
    Raises: TransientError (MLflow or the database is away, or SIGTERM); what is wrong with the values fails the trial alone.
    """
    from ..tuning.trial_run import run_trial

    return TrialResult(trial=run_trial(spec, planned, begun, number))


def decide(spec: RunSpec, planned: PlanResult, begun: StudyResult) -> TuneResult:
    """Take the best trial's values when they are surely better than the template's; otherwise leave those.

    Raises: ClipftError when every trial failed.
    """
    if not begun.study:
        return TuneResult(reason=begun.reason)
    from ..tuning import search

    return search.decide(spec, planned, begun)

"""A search in MLflow: a run for the study, with one inside it for each trial. The study is what counts: runs may be deleted."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow.exceptions import MlflowException

from .. import tracking
from ..contracts.stages import PlanResult, StudyResult, TuneResult
from ..core.console import say
from ..data.versioning import Version
from ..spec import RunSpec
from . import plots
from .search_space import SearchSpace
from .study import Study
from .trials import TEMPLATE, State, Trial


def open_run(
    spec: RunSpec, planned: PlanResult, version: Version, study: str, key: str, space: SearchSpace, dag_run: str
) -> tuple[str, str]:  # fmt: skip
    """The study's run, found or made, with the space as its parameters: its id and address."""
    tags = {"clipft.domain": spec.domain, "clipft.dataset": version.tag, "clipft.revision": version.revision,
            "clipft.start": planned.start, "clipft.dag_run": dag_run, "clipft.study": study}  # fmt: skip
    with tracking.retryable():
        name = f"tuning {spec.objective.name} on {version.tag}"
        mlflow_run = tracking.get_or_create_run(spec.domain, key, name, tags)
        tracking.log_params(mlflow_run.info.run_id, {f"space.{field}": str(d) for field, d in space.items()})
    return mlflow_run.info.run_id, tracking.run_link(mlflow_run)


def log_trial(spec: RunSpec, begun: StudyResult, study: Study, number: int) -> None:
    """Show the trial in MLflow as far as it got."""
    tried = study.trials()[number]
    tags = {"mlflow.parentRunId": begun.run_id, "clipft.study": study.name, "clipft.domain": spec.domain}
    try:
        with tracking.retryable():
            found = tracking.get_or_create_run(spec.domain, f"{begun.key}-{number}", f"trial {number}", tags)
            run_id, client = found.info.run_id, tracking.client()
            tracking.log_params(run_id, tried.values)
            logged = {m.step for m in client.get_metric_history(run_id, "validation_score")}
            for epoch, score in tried.epochs.items():
                if epoch not in logged:
                    client.log_metric(run_id, "validation_score", score, step=epoch)
            if tried.ended:
                if tried.score is not None:
                    client.log_metric(run_id, "score", tried.score)
                client.set_tag(run_id, "clipft.trial", tried.state.value)
                client.set_tag(run_id, "clipft.reason", tried.reason)
                tracking.finish_run(run_id, "FAILED" if tried.state == State.FAILED else "FINISHED")
    except MlflowException as error:
        say(f"Trial {number} cannot be shown in MLflow ({error}); the study has it.")


def log_decision(spec: RunSpec, begun: StudyResult, tried: Sequence[Trial], result: TuneResult) -> tuple[str, str]:
    """Log the decision and the plots to the study's run, which is made anew if somebody deleted it: its id and their address."""
    winner = int(result.measured["trial"]) if result.values else TEMPLATE
    with tempfile.TemporaryDirectory() as folder, tracking.retryable():
        name, tags = f"tuning {spec.objective.name}", {"clipft.study": begun.study}
        mlflow_run = tracking.get_or_create_run(spec.domain, begun.key, name, tags)
        run_id, client = mlflow_run.info.run_id, tracking.client()
        Path(folder, "history.png").write_bytes(plots.history(tried, result.metric, winner))
        if result.importance:
            Path(folder, "importance.png").write_bytes(plots.importance(result.importance))
        decision = result.model_dump(mode="json", exclude={"run_id", "links", "seconds"})
        Path(folder, "decision.json").write_text(json.dumps(decision, indent=1, sort_keys=True) + "\n")
        client.log_artifacts(run_id, folder)
        for metric, value in result.measured.items():
            client.log_metric(run_id, f"tuning.{metric}", value)
        client.set_tag(run_id, "clipft.decision", result.reason[:4900])
        tracking.finish_run(run_id)
    return run_id, tracking.run_link(mlflow_run, "artifacts/history.png")

"""An evaluation in the candidate's MLflow run: metrics, and by image size the files

evaluation/<size>.json                  EvaluationResult
evaluation/<size>-error-analysis.json   ErrorAnalysis
evaluation/<size>-rows.parquet          what each model said of each row
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .. import tracking
from ..contracts.evaluation import ErrorAnalysis, EvaluationResult

if TYPE_CHECKING:
    from .evaluator import Evaluation

FOLDER = "evaluation"


def load(run_id: str, size: int) -> EvaluationResult | None:
    """The evaluation at a size, by this release or one before; None where there is none."""
    name = f"{FOLDER}/{size}.json"
    found = tracking.load_json_artifact(run_id, name)
    return EvaluationResult.from_json(found, f"{name} of run {run_id}") if found else None


def load_errors(run_id: str, size: int) -> ErrorAnalysis | None:
    """What fills the page of an evaluation; None where there is none."""
    name = f"{FOLDER}/{size}-error-analysis.json"
    found = tracking.load_json_artifact(run_id, name)
    return ErrorAnalysis.from_json(found, f"{name} of run {run_id}") if found else None


def save(run_id: str, evaluation: "Evaluation") -> None:
    """Log an evaluation; its result comes last: where it is, all of it is there."""
    from mlflow.entities import Metric

    result, client = evaluation.result, tracking.client()
    now = int(time.time() * 1000)
    with tracking.retryable(), tempfile.TemporaryDirectory() as folder:
        metrics = [Metric(f"test.{name}", value, now, result.size) for name, value in _logged(result)]
        client.log_batch(run_id, metrics=metrics)
        client.log_dict(run_id, evaluation.errors.to_json(), f"{FOLDER}/{result.size}-error-analysis.json")
        path = Path(folder, f"{result.size}-rows.parquet")
        evaluation.rows.to_parquet(path, index=False)
        client.log_artifact(run_id, str(path), FOLDER)
        client.log_dict(run_id, result.to_json(), f"{FOLDER}/{result.size}.json")


def _logged(result: EvaluationResult) -> Iterator[tuple[str, float]]:
    """Each model's metrics by name, for MLflow."""
    for role, scores in result.models.items():
        for name, value in scores.metrics.items():
            yield f"{role}.{name}", value
        if scores.general_score:
            yield f"{role}.general_score", scores.general_score.value
        if scores.robustness:
            yield f"{role}.mean_corruption_score", scores.robustness.mean_corruption_score

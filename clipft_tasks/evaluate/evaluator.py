"""The candidate alongside the start model and the champion on one data set at one size: everything that a result holds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..contracts.evaluation import ErrorAnalysis, EvaluationResult, ModelScores, Opponent, PairedGain, Role, SliceScores
from ..domains import Domain
from ..model.clip import Clip
from ..spec import RunSpec
from ..spec.gate_rules import SCORE
from ..spec.metric_catalog import METRICS
from . import custom_metric, error_analysis, forgetting, linear_probe, predictions, robustness
from .predictions import Predictions
from .slices import slices
from .zero_shot import Task, predict

CALIBRATION_ROWS = 1000  # of the validation split; one number is fitted


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Args:
        result: small, as the stage evaluate returns it.
        errors: what fills a page.
        rows: what each model said of each row (error_analysis.rows).
    """

    result: EvaluationResult
    errors: ErrorAnalysis
    rows: pd.DataFrame


def custom_metrics(spec: RunSpec) -> list[str]:
    """Names of the metrics from outside that a run asks for: those of `evaluate.metrics`, and those of its gate rules."""
    named = [*spec.evaluate.metrics, *(rule.metric for rule in spec.gate.rules)]
    return [name for name in dict.fromkeys(named) if name not in METRICS and name != SCORE]


def evaluate(
    models: Mapping[Role, Clip],
    task: Task,
    spec: RunSpec,
    *,
    domain: Domain,
    metric: str,
    names: Sequence[str],
    opponent: str = "",
    key: str = "",
) -> Evaluation:
    """Look at the test rows with every model, and compare.

    Args:
        models: the candidate, the start model, and the champion if there is one.
        task: at the evaluated size nearest to the training size, also calibration, linear probe, robustness and the general score
            are measured, as far as the spec asks for them.
        domain: says which slices, corruptions and general set.
        metric: the deciding one.
        names: of the headline metrics (zero_shot.headlines).
        opponent, key: see `EvaluationResult`.
    Raises: ClipftError for a metric of the spec that there is not.
    """
    is_main = task.size == min(spec.resolution.evaluated, key=lambda size: abs(size - spec.resolution.side))
    own = custom_metric.load(custom_metrics(spec))
    names = [*names, *(name for name, each in own.items() if each.info.interval)]
    resamples = spec.evaluate.bootstrap
    found = {role: predict(clip, task) for role, clip in models.items()}
    part: forgetting.Part = "report" if spec.chooses_by_forgetting else "all"
    general = forgetting.compare(models, task.size, domain.general_set, part) if is_main else {}

    def scores(role: Role) -> ModelScores:
        clip, mine = models[role], found[role]
        values, absent = predictions.all_metrics(mine)
        if is_main and (task.dataset.split("val")["label"] != "").any():
            values |= predictions.calibration(mine, predict(clip, task, "val", CALIBRATION_ROWS))
        if is_main and spec.evaluate.linear_probe:
            probed, why = linear_probe.fit(predict(clip, task, "train"), mine)
            values |= probed
            absent |= {"linear_probe": why, "nearest_neighbors": why} if why else {}
        more, why_not = custom_metric.measure(own, mine)
        severities = spec.evaluate.robustness if is_main else 0
        return ModelScores(
            intervals=predictions.intervals(mine, names, resamples),
            metrics=values | more,
            absent=absent | why_not,
            general_score=general.get(role),
            answers=predictions.answer_shares(mine, task.dataset.classes),
            robustness=robustness.score(clip, task, metric, names=domain.corruptions, severities=severities)
            if severities
            else None,
        )

    others: dict[Opponent, Predictions] = {who: found[who] for who in ("champion", "start") if who in models}
    compared = predictions.comparisons(found["candidate"], others, names, resamples)
    result = EvaluationResult(
        key=key,
        size=task.size,
        rows=len(found["candidate"].truth),
        metric=metric,
        opponent=opponent,
        models={role: scores(role) for role in models},
        gains={
            c.against: PairedGain(**{field: getattr(c, field) for field in PairedGain.model_fields})
            for c in compared
            if c.metric == metric
        },
        comparisons=compared,
        slices=dict(_by_slice(slices(task.dataset, domain), found, next(iter(others)), metric, resamples)),
        described={name: each.info for name, each in own.items()},
        labels=predictions.doubted_labels(found["candidate"], next(iter(others.values()))),
    )
    looked = error_analysis.looked_by(models["candidate"], task.dataset.classes, task.size) if is_main else None
    errors = error_analysis.analyze(task.dataset, found, images=is_main, looked=looked)
    return Evaluation(result, errors, error_analysis.rows(found))


def _by_slice(
    parts: Mapping[str, np.ndarray], found: Mapping[Role, Predictions], opponent: Role, metric: str, resamples: int
) -> Iterator[tuple[str, SliceScores]]:
    """Each part of the test rows by itself; one where the metric cannot be computed (no labels, say) is left out."""
    for name, rows in parts.items():
        part = {role: all_rows.take(rows) for role, all_rows in found.items()}
        if math.isnan(part["candidate"].sums(metric).value):
            continue
        yield (
            name,
            SliceScores(
                rows=len(rows),
                models={role: predictions.intervals(each, [metric], resamples)[metric] for role, each in part.items()},
                gain=predictions.paired_gain(part["candidate"], part[opponent], metric, resamples),
            ),
        )

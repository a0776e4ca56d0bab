"""The candidate beside others on one data set at one size: everything that a result holds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..data.versioning import Dataset
from ..domains import Domain
from ..model.clip import Clip
from ..spec import RunSpec
from . import error_analysis, forgetting, linear_probe, robustness, zero_shot
from .slices import slices

CALIBRATION_ROWS = 1000  # of the validation split; one number is fitted


@dataclass(frozen=True)
class Together:
    """What was found.

    Args:
        result: small, as the stage evaluate returns it.
        details: what fills a page (error_analysis.of).
        rows: what each model said of each row (error_analysis.rows).
    """

    result: dict[str, Any]
    details: dict[str, Any]
    rows: pd.DataFrame


def evaluate(
    models: Mapping[str, Clip], dataset: Dataset, domain: Domain, spec: RunSpec, side: int, metric: str, names: list[str]
) -> Together:
    """Look at the test rows with every model, and compare.

    Args:
        models: `after`, the candidate; `before`, the start model; `champion`, if there is one.
        side: of the images. At the evaluated one nearest to the training size, also calibration, probes, robustness and
            the general score, as far as the spec asks for them.
        metric: the gate's.
        names: of the headline metrics (zero_shot.metrics).
    """
    batch, resamples = spec.evaluate.batch, spec.evaluate.bootstrap
    is_main = side == min(spec.resolution.evaluate, key=lambda size: abs(size - spec.resolution.train))

    def look(clip: Clip, split: str, limit: int = 0) -> zero_shot.Scored:
        return zero_shot.score(clip, dataset, split, side, batch, limit)

    scored = {who: look(clip, "test") for who, clip in models.items()}
    opponents = [who for who in ("champion", "before") if who in models]
    metrics, absent = {}, {}
    for who, s in scored.items():
        metrics[who], absent[who] = zero_shot.all_metrics(s)
        if is_main and (dataset.split("val")["label"] != "").any():
            metrics[who] |= zero_shot.calibrated(s, look(models[who], "val", CALIBRATION_ROWS))
        if is_main and spec.evaluate.probe:
            found, why = linear_probe.probe(look(models[who], "train"), s)
            metrics[who] |= found
            absent[who] |= {"linear_probe": why, "nearest_neighbors": why} if why else {}
    compared = zero_shot.comparisons(scored["after"], {who: scored[who] for who in opponents}, names, resamples)
    gains = {c["against"]: {k: c[k] for k in ("value", "low", "high", "p")} for c in compared if c["metric"] == metric}
    tried = {}
    if is_main and spec.evaluate.robustness:
        tried = {
            who: robustness.score(clip, dataset, domain, side, batch, metric, spec.evaluate.robustness)
            for who, clip in models.items()
        }
    result = {
        "resolution": side,
        "rows": len(scored["after"].truth),
        "metric": metric,
        **{who: zero_shot.summary(s, names, resamples) for who, s in scored.items()},
        **{f"gain_over_{who}": gain for who, gain in gains.items()},
        "comparisons": compared,
        "slices": _by_slice(slices(dataset, domain), scored, opponents[0], metric, resamples),
        "metrics": metrics,
        "absent": absent,
        "general_score": forgetting.of(models, side, domain.general_set) if is_main else {},
        "robustness": tried,
    }
    return Together(result, error_analysis.of(dataset, scored, images=is_main), error_analysis.rows(scored))


def _by_slice(
    parts: Mapping[str, np.ndarray], scored: Mapping[str, zero_shot.Scored], opponent: str, metric: str, resamples: int
) -> dict[str, dict[str, Any]]:
    """Each part of the test rows by itself; one where the metric cannot be computed (no labels, say) is left out."""
    out: dict[str, dict[str, Any]] = {}
    for name, rows in parts.items():
        part = {who: zero_shot.only(s, rows) for who, s in scored.items()}
        if math.isnan(part["after"].sums(metric).value):
            continue
        out[name] = {"rows": len(rows), **{who: zero_shot.summary(s, [metric], resamples) for who, s in part.items()}}
        out[name]["gain"] = zero_shot.difference(part["after"], part[opponent], metric, resamples)
    return out

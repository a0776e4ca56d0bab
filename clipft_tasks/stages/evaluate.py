"""evaluate: the candidate, the start model and the champion on the same test rows, at one picture size."""

import math
import tempfile
from pathlib import Path
from typing import Any

from ..progress import say
from ..spec import RunSpec

RECIPE = 2  # raise when the same models and rows give another result, so that an old one is not taken for it
CALIBRATION_ROWS = 1000  # of the validation split; one number is fitted


def run(spec: RunSpec, run_id: str, resolution: int) -> dict[str, Any]:
    """Score all models at one resolution; figures go to the candidate's MLflow run with the resolution as step.

    Returns, small enough for XCom (who is `before`, `after`, `champion`):
        resolution, rows, metric (the gate's), opponent (version number or "");
        by who: the headline metrics, each value and 95% interval;
        gain_over_before, gain_over_champion: in the gate's metric, paired, with p;
        comparisons: the same for every headline metric and opponent, with p after Holm's correction;
        slices: by name rows, by who the gate's metric, gain over the opponent;
        figures: by who every other figure; absent: why one is missing;
        retention, robustness: at the size nearest to the training size only, else {}.
    What fills a page (classes, confusion, reliability, worst mistakes) is in the run's `evaluation/<size>-details.json`, what
    each model said of each row in `evaluation/<size>-rows.parquet`.
    Raises: ClipftError when the run has no model, or the test rows nothing to tell apart.
    """
    import mlflow

    from .. import tracking
    from ..data import versioning
    from ..domains import get_domain
    from ..evaluate import details, frozen, retention, robustness, zero_shot
    from ..evaluate.slices import slices
    from ..model import build
    from ..train import hardware, plan, probes

    domain = get_domain(spec.domain)
    client = tracking.client()
    mlflow_run = client.get_run(run_id)
    package = tracking.fetch_candidate(run_id)
    dataset = versioning.fetch(versioning.find(mlflow_run.data.tags["clipft.dataset"], spec.domain))
    champion = tracking.champion(spec.domain)
    if champion and champion.run_id == run_id:
        champion = tracking.by_alias(spec.domain, tracking.PREVIOUS)  # a second look at what already won
    candidate = build.from_folder(package, source="candidate")
    key = spec.identity(
        "evaluate", "evaluate", "gate", model=candidate.digest, dataset=dataset.version.revision, resolution=resolution,
        start=mlflow_run.data.tags["clipft.start"], champion=champion.run_id if champion else "", recipe=RECIPE,
        domain=[domain.prompts, domain.slices, domain.corruptions, domain.retention], train=spec.resolution.train,
    )  # fmt: skip
    name = f"evaluation/{resolution}.json"
    done = tracking.card_of(run_id, name)
    if done.get("key") == key:
        say(f"Evaluated before at {resolution} px with the same rows and models.")
        return done

    machine = hardware.probe(spec.memory.device)
    hardware.use_threads(machine.cores)
    hardware.keep_freed_memory()
    models = {"after": candidate, "before": build.load(mlflow_run.data.tags["clipft.start"], domain=spec.domain)}
    if champion:
        models["champion"] = build.from_folder(tracking.fetch_package(champion), source=f"version {champion.version}")
    for clip in models.values():
        clip.to(machine.device)  # any side as it comes: the weights stay as they are stored
        clip.model.to(memory_format=probes.MEMORY_FORMATS[plan.layout_of(machine.device, clip).value])
    names = zero_shot.metrics(dataset)
    metric: str = spec.gate.metric
    if metric not in names:
        metric = names[0]
        say(f"{spec.gate.metric} cannot be told from the test rows of {dataset.version.tag}: the gate looks at {metric}.")
    batch, resamples = spec.evaluate.batch, spec.evaluate.bootstrap
    is_main = resolution == min(spec.resolution.evaluate, key=lambda size: abs(size - spec.resolution.train))

    def look(clip: Any, split: str, limit: int = 0) -> zero_shot.Scored:
        return zero_shot.score(clip, dataset, domain, split, resolution, batch, limit)

    scored = {who: look(clip, "test") for who, clip in models.items()}
    opponents = [who for who in ("champion", "before") if who in models]
    figures, absent = {}, {}
    for who, s in scored.items():
        figures[who], absent[who] = zero_shot.figures(s)
        if is_main:
            figures[who] |= zero_shot.calibrated(s, look(models[who], "val", CALIBRATION_ROWS))
        if is_main and spec.evaluate.probe:
            found, why = frozen.probe(look(models[who], "train"), s)
            figures[who] |= found
            absent[who] |= {"linear_probe": why, "nearest_neighbours": why} if why else {}
    comparisons = zero_shot.comparisons(scored["after"], {who: scored[who] for who in opponents}, names, resamples)
    result: dict[str, Any] = {
        "key": key,
        "resolution": resolution,
        "rows": len(scored["after"].truth),
        "metric": metric,
        "opponent": tracking.number(champion),
        **{who: zero_shot.summary(s, names, resamples) for who, s in scored.items()},
        **{f"gain_over_{c['against']}": {k: c[k] for k in ("value", "low", "high", "p")}
           for c in comparisons if c["metric"] == metric},
        "comparisons": comparisons,
        "slices": _slices(slices(dataset, domain), scored, opponents[0], metric, resamples),
        "figures": figures,
        "absent": absent,
        "retention": retention.of(models, resolution, domain.retention) if is_main else {},
        "robustness": {},
    }  # fmt: skip
    if is_main and spec.evaluate.robustness:
        result["robustness"] = {
            who: robustness.score(clip, dataset, domain, resolution, batch, metric, spec.evaluate.robustness)
            for who, clip in models.items()
        }
    with tracking.neighbour():
        for who in models:
            values = {name: value["value"] for name, value in result[who].items()} | figures[who]
            if result["retention"]:
                values["retention"] = result["retention"][who]["retention"]["value"]
            for figure, value in values.items():
                client.log_metric(run_id, f"test.{who}.{figure}", value, step=resolution)
        page = details.of(dataset, scored, pictures=is_main)
        mlflow.MlflowClient().log_dict(run_id, page, f"evaluation/{resolution}-details.json")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{resolution}-rows.parquet")
            details.rows(scored).to_parquet(path, index=False)
            client.log_artifact(run_id, str(path), "evaluation")
        mlflow.MlflowClient().log_dict(run_id, result, name)  # last: its key says that all of it is there
    before, after = result["before"][metric], result["after"][metric]
    say(
        f"{resolution} px, {result['rows']} rows, {metric}: {before['value']:.3f} before, {after['value']:.3f} after "
        f"[{after['low']:.3f}, {after['high']:.3f}]"
    )
    return result


def _slices(
    parts: dict[str, Any], scored: dict[str, Any], opponent: str, metric: str, resamples: int
) -> dict[str, dict[str, Any]]:
    """Each part of the test rows by itself; one where the metric cannot be computed (no labels, say) is left out."""
    from ..evaluate import zero_shot

    out: dict[str, dict[str, Any]] = {}
    for name, rows in parts.items():
        part = {who: zero_shot.only(s, rows) for who, s in scored.items()}
        if math.isnan(part["after"].sums(metric).value):
            continue
        out[name] = {"rows": len(rows), **{who: zero_shot.summary(s, [metric], resamples) for who, s in part.items()}}
        out[name]["gain"] = zero_shot.difference(part["after"], part[opponent], metric, resamples)
    return out

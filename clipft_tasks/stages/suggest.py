"""suggest: what drifted, what it most likely is, and what should be done about it. Nothing is changed by it."""

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.console import say
from ..core.errors import ClipftError, Transient
from ..drift.image_statistics import STATISTICS
from ..drift.incidents import Watch
from ..server.client import ServerClient, ServerRefusalError
from ..spec import RunSpec

SHOWN = 8  # images of a kind in the report


def run(spec: RunSpec, causes: list[str] | None = None, incident: str = "") -> dict[str, Any]:
    """Compare the server's window with the champion's reference, and other models and words with it on what was captured.

    Args:
        causes: the signals of the alarm, for the record.
        incident: which one is answered. When its version on watch is worse, the answer is to go back.
    Returns: kind, action (nothing, camera, label, rollback, recalibrate, readapt), version (to go back to, or ""), why, expected_gain,
        minutes (what training would take), labels by class, live (accuracy and judged, so far), table (Markdown), links.
    Raises: Transient when the server or MLflow is away; ClipftError when nothing of the domain is live, its version is no longer
        registered, or its reference belongs to other weights.
    """
    import mlflow
    import numpy as np

    from .. import tracking
    from ..drift import diagnosis, model_search, report
    from ..drift.reference import Reference
    from ..model.package import WEIGHTS, read_preprocessing, weights_digest

    server = ServerClient()
    seen, window = server.drift(spec.domain).to_json(), server.window(spec.domain).to_json()
    captures = [capture.to_json() for capture in server.captures(spec.domain)]
    champion = tracking.resolve_version(f"models:/{tracking.model_name(spec.domain)}/{seen['version']}")
    package = tracking.fetch_package(champion)
    reference = Reference.load(package, weights_digest(package / WEIGHTS))

    moved = report.class_shares(reference, window)
    found = diagnosis.diagnose(seen["drift"], max((abs(now - before) for before, now in moved.values()), default=0.0))
    labels = Counter(c["label"] for c in captures if c["label"])
    judged = sum(labels.values())
    live = seen["values"].get("accuracy")
    losing = seen["drift"].get("performance", 0.0) > 1
    bits, compared = read_preprocessing(package).gray_bits, model_search.Comparison()
    taken, data, images = _images(spec.domain, captures, bits)
    if (watch := _worse(spec, incident)) is not None:
        advice = diagnosis.Advice("rollback", watch.worse, watch.before)
    else:
        looks = np.array(window["appearance"], dtype=float).reshape(-1, len(STATISTICS))
        compared = model_search.compare(spec.domain, champion, images, [c["label"] for c in taken], looks)
        advice = diagnosis.advise(
            found, labels, compared.others, seen["baseline"]["value"], live, losing, compared.templates, compared.calibration
        )
        if advice.action in ("label", "camera") and (
            hint := model_search.known_elsewhere(compared, spec.domain, seen["version"])
        ):
            advice = replace(advice, why=f"{advice.why}; {hint}")
    examples = _examples(champion, taken, data, compared.nearest or [""] * len(taken))
    with tracking.retryable():
        minutes = _minutes(tracking.client().get_run(str(champion.run_id)).data.metrics, spec, judged)

    lines = report.lines(spec.domain, seen, found, advice, compared, labels, minutes, _recipe(spec))
    page = report.page(spec.domain, seen, found, advice, compared, minutes, moved, examples, reference, window, bits)
    with tempfile.TemporaryDirectory() as folder, tracking.retryable():
        path = Path(folder, "drift.html")
        path.write_text(page, "utf-8")
        run_ = tracking.client().create_run(
            tracking.get_or_create_experiment(f"clipft-{spec.domain}-drift"),
            run_name=f"version {seen['version']}: {found.kind}",
            tags={"clipft.domain": spec.domain, "clipft.version": seen["version"], "clipft.causes": ", ".join(causes or [])},
        )
        tracking.client().log_artifact(run_.info.run_id, str(path))
        mlflow.MlflowClient().log_dict(run_.info.run_id, seen, "metrics.json")
        for name, ratio in seen["drift"].items():
            tracking.client().log_metric(run_.info.run_id, f"drift.{name}", ratio)
        tracking.finish_run(run_.info.run_id)
    link = tracking.run_link(run_, "artifacts/drift.html")
    table = "\n".join([*lines, "", f"[Drift report]({link})"])
    say(table)
    return {
        "kind": found.kind,
        "action": advice.action,
        "version": advice.version,
        "why": advice.why,
        "expected_gain": advice.expected_gain,
        "minutes": minutes,
        "labels": dict(labels),
        "live": {"accuracy": live, "judged": seen["feedback"]},
        "champion": seen["version"],
        "table": table,
        "links": {"Drift report": link},
    }


def _worse(spec: RunSpec, incident: str) -> Watch | None:
    """The watch of this incident, if the version that came of it turned out worse."""
    from ..drift import incident_store

    found = incident_store.load(spec.domain).incident
    return found.watch if found and found.id == incident and not found.quiet else None


def _images(domain: str, captures: list[dict[str, Any]], bits: int) -> tuple[list[dict[str, Any]], list[bytes], list[Any]]:
    """The captures that are looked at (the newest, those that somebody judged first), with their bytes and as images."""
    from ..data.images import BadImage, open_image
    from ..drift.model_search import MOST

    taken, data, images = [], [], []
    for capture in sorted(captures, key=lambda c: (not c["label"], -c["time"]))[:MOST]:
        try:
            content = ServerClient().captured_image(domain, capture["id"])
            images.append(open_image(content, gray_bits=bits).rgb)
        except (BadImage, ServerRefusalError):  # damaged, or deleted since it was listed
            continue
        taken.append(capture)
        data.append(content)
    return taken, data, images


def _minutes(metrics: dict[str, float], spec: RunSpec, more: int) -> float | None:
    """What training would take, from the pace of the champion's own run."""
    pace, pairs = metrics.get("pairs_per_second"), metrics.get("pairs")
    if not pace or not pairs:
        return None
    return round((pairs + more * spec.train.epochs) / pace / 60, 1)


def _recipe(spec: RunSpec) -> str:
    """How the training that follows would go about it."""
    beside = "".join(f" and {loss}" for loss in spec.objective.auxiliary)
    return (
        f"{spec.objective.name}{beside}, {spec.train.epochs} epochs at {spec.resolution.train} px, from the champion, gate "
        + "; ".join(spec.gate.rules)
    )


def _examples(
    champion: Any, captures: list[dict[str, Any]], data: list[bytes], nearest: list[str]
) -> list[tuple[dict[str, Any], bytes, bytes]]:
    """The captured images that look newest, with their bytes and those of the old image most like each (b"" for none)."""
    newest = sorted(range(len(captures)), key=lambda i: -captures[i]["novelty"])[:SHOWN]
    old = _old(champion, {nearest[i] for i in newest} - {""}) if newest else {}
    return [(captures[i], data[i], old.get(nearest[i], b"")) for i in newest]


def _old(champion: Any, wanted: set[str]) -> dict[str, bytes]:
    """Images of the champion's data set by sha256; none where the data set cannot be had, which a report can do without."""
    from ..data import versioning

    tag = champion.tags.get("clipft.dataset", "")
    if not wanted or not tag:
        return {}
    try:
        data = versioning.fetch(versioning.find(tag, tag.partition("/")[0]))
        rows = data.frame[data.frame["sha256"].isin(wanted)].drop_duplicates("sha256")
        return {str(row.sha256): data.image_bytes(row) for row in rows.itertuples()}
    except (ClipftError, Transient, OSError) as error:
        say(f"The report shows no old images: {error}")
        return {}

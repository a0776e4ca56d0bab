"""suggest: what drifted, what it most likely is, and what should be done about it. Nothing is changed by it."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from ..drift.incidents import Watch
from ..progress import say
from ..server_client import Refusal, call
from ..spec import RunSpec

COMPARED = 4  # other registered versions that are tried on judged captures
SHOWN = 8  # pictures of a kind in the report


def run(spec: RunSpec, causes: list[str] | None = None, incident: str = "") -> dict[str, Any]:
    """Compare the server's window with the champion's reference, and other versions on what was captured and judged.

    Args:
        causes: the signals of the alarm, for the record.
        incident: which one is answered. When its version on watch is worse, the answer is to go back.
    Returns: kind, action (nothing, camera, label, rollback, readapt), version (to go back to, or ""), why, expected_gain,
        minutes (what training would take), labels by class, live (accuracy and judged, so far), table (Markdown), links.
    Raises: Transient when the server or MLflow is away; ClipftError when nothing of the domain is live, its version is no longer
        registered, or its reference belongs to other weights.
    """
    import mlflow

    from .. import tracking
    from ..domains import get_domain
    from ..drift import diagnosis, report
    from ..drift.reference import Reference
    from ..model.package import WEIGHTS, weights_digest

    seen = call("GET", f"/v1/drift/{spec.domain}").json()
    window = call("GET", f"/v1/windows/{spec.domain}").json()
    captures = call("GET", f"/v1/captures/{spec.domain}").json()
    champion = tracking.version_of(f"models:/{tracking.model_name(spec.domain)}/{seen['version']}")
    package = tracking.fetch_package(champion)
    reference = Reference.load(package, weights_digest(package / WEIGHTS))

    moved = report.class_shares(reference, window)
    found = diagnosis.diagnose(seen["drift"], max((abs(now - before) for before, now in moved.values()), default=0.0))
    labels = Counter(c["label"] for c in captures if c["label"])
    judged = [c for c in captures if c["label"]]
    live = seen["values"].get("accuracy")
    losing = seen["drift"].get("performance", 0.0) > 1
    others: list[Any] = []
    if (watch := _worse(spec, incident)) is not None:
        advice = diagnosis.Advice("rollback", watch.worse, watch.before)
    else:
        if sum(labels.values()) >= diagnosis.LABELS_NEEDED:
            others = _others(spec, seen["version"], judged)
        advice = diagnosis.advise(found, labels, others, seen["promised"]["value"], live, losing)
    with tracking.neighbour():
        minutes = _minutes(tracking.client().get_run(str(champion.run_id)).data.metrics, spec, len(judged))

    lines = report.lines(spec.domain, seen, found, advice, others, labels, minutes)
    table = "\n".join(lines)
    say(table)
    examples, bits = _examples(spec.domain, captures), get_domain(spec.domain).grey_bits
    page = report.page(spec.domain, seen, found, advice, others, minutes, moved, examples, reference, window, bits)
    with tempfile.TemporaryDirectory() as folder, tracking.neighbour():
        path = Path(folder, "drift.html")
        path.write_text(page, "utf-8")
        run_ = tracking.client().create_run(
            tracking.experiment(f"clipft-{spec.domain}-drift"),
            run_name=f"version {seen['version']}: {found.kind}",
            tags={"clipft.domain": spec.domain, "clipft.version": seen["version"], "clipft.causes": ", ".join(causes or [])},
        )
        tracking.client().log_artifact(run_.info.run_id, str(path))
        mlflow.MlflowClient().log_dict(run_.info.run_id, seen, "figures.json")
        for name, ratio in seen["drift"].items():
            tracking.client().log_metric(run_.info.run_id, f"drift.{name}", ratio)
        tracking.finish(run_.info.run_id)
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
        "links": {"Drift report": tracking.run_link(run_, "artifacts/drift.html")},
    }


def _worse(spec: RunSpec, incident: str) -> Watch | None:
    """The watch of this incident, if the version that came of it turned out worse."""
    from .. import tracking

    found = tracking.incidents(spec.domain).incident
    return found.watch if found and found.id == incident and not found.quiet else None


def _others(spec: RunSpec, champion: str, judged: list[dict[str, Any]]) -> list[Any]:
    """The newest other versions, each asked about the judged captures beside the champion."""
    import numpy as np
    import torch

    from .. import tracking
    from ..data.pictures import BadPicture, open_picture, square
    from ..domains import get_domain
    from ..drift.diagnosis import Candidate
    from ..model import build

    domain = get_domain(spec.domain)
    pictures, truth = [], []
    for capture in judged[-200:]:
        try:
            data = call("GET", f"/v1/captures/{spec.domain}/{capture['id']}").content
            pictures.append(open_picture(data, grey_bits=domain.grey_bits).rgb)
            truth.append(capture["label"])
        except (BadPicture, Refusal):  # damaged, or deleted since it was listed
            continue
    name = tracking.model_name(spec.domain)
    with tracking.neighbour():
        versions = sorted(tracking.client().search_model_versions(f"name = '{name}'"), key=lambda v: -int(v.version))
    rest = [v for v in versions if str(v.version) != champion and v.tags.get("clipft.deploy") != "failed"][:COMPARED]
    right: dict[str, Any] = {}
    for version in [v for v in versions if str(v.version) == champion] + rest:
        clip = build.from_folder(tracking.fetch_package(version), source=f"version {version.version}")
        classes = sorted(set(truth))
        with torch.inference_mode():
            of_classes = clip.class_embeddings(classes, domain.prompts)
            squares = np.stack([square(p, clip.side, clip.aspect) for p in pictures])
            image = torch.cat([clip.encode_images(torch.from_numpy(squares[i : i + 64])) for i in range(0, len(squares), 64)])
        said = clip.similarity(image, of_classes).argmax(dim=1).numpy()
        right[str(version.version)] = np.array([classes[i] == t for i, t in zip(said, truth, strict=True)], dtype=float)
    out = []
    for number in [str(v.version) for v in rest]:
        gain = right[number] - right[champion]
        low = gain.mean() - 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))
        out.append(Candidate(number, float(right[number].mean()), float(gain.mean()), float(low)))
    return out


def _minutes(metrics: dict[str, float], spec: RunSpec, more: int) -> float | None:
    """What training would take, from the pace of the champion's own run."""
    pace, pairs = metrics.get("pairs_per_second"), metrics.get("pairs")
    if not pace or not pairs:
        return None
    return round((pairs + more * spec.train.epochs) / pace / 60, 1)


def _examples(domain: str, captures: list[dict[str, Any]]) -> list[tuple[dict[str, Any], bytes]]:
    """The captured pictures that look newest, with their bytes."""
    newest = sorted(captures, key=lambda c: -c["novelty"])[:SHOWN]
    found = []
    for capture in newest:
        try:
            found.append((capture, call("GET", f"/v1/captures/{domain}/{capture['id']}").content))
        except Refusal:  # deleted since it was listed
            continue
    return found

"""The drift report: one self-contained page, and the few lines of it that an approval shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import BadImage, open_image, thumbnail
from .diagnosis import Advice, Diagnosis
from .image_statistics import STATISTICS
from .model_search import Comparison
from .reference import Reference

HEADINGS = {
    "nothing": "Nothing needs to be done",
    "camera": "Look at the camera",
    "label": "Label images first",
    "rollback": "Go back to another version",
    "recalibrate": "Read the model otherwise",
    "readapt": "Re-adapt the model",
}
SIDE = 120  # of the images shown


def class_shares(reference: Reference, window: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The share of each class among predictions: (in the reference, in the window)."""
    similarity = np.array(window["similarity"])
    if similarity.ndim != 2 or similarity.shape[1] < 2 or not len(similarity):
        return {}
    before = np.bincount(reference.rows.ranked[2], minlength=similarity.shape[1]) / len(reference.rows)
    now = np.bincount(similarity.argmax(axis=1), minlength=similarity.shape[1]) / len(similarity)
    return {name: (float(b), float(n)) for name, b, n in zip(reference.classes, before, now, strict=True)}


def lines(
    domain: str, seen: Mapping[str, Any], found: Diagnosis, advice: Advice, compared: Comparison,
    labels: Mapping[str, int], minutes: float | None, recipe: str = "",
) -> list[str]:  # fmt: skip
    """Markdown for the approval form and the task's log."""
    out = [f"**{HEADINGS[advice.action]}**: {advice.why}.", "", f"Drift of {domain} version {seen['version']}: {found.kind}."]
    out += [f"* {reason}" for reason in found.reasons]
    values = seen["values"]
    if "accuracy" in values:
        interval = f"[{values['accuracy_low']:.2f}, {values['accuracy_high']:.2f}]"
        out.append(
            f"* Judged answers: {values['accuracy']:.2f} right {interval} of {seen['feedback']}; promised {seen['baseline']['value']:.2f}."
        )
    elif "accuracy_estimate" in values:
        out.append(f"* No judged answers. Estimated accuracy {values['accuracy_estimate']:.2f} (from confidence, an estimate).")
    for c in compared.others:
        out.append(
            f"* Version {c.version}: {c.accuracy:.2f} right on judged captures, {100 * c.gain:+.0f} points beside the champion."
        )
    for c in compared.templates:
        out.append(f"* The champion in the words of {c.version}: {c.accuracy:.2f} right, {100 * c.gain:+.0f} points.")
    for f in compared.fits:
        how = "" if f.embedded else ", by looks alone"
        out.append(
            f"* Beside the reference of {f.domain} version {f.version}: {f.signal} at {f.ratio:.1f} times its limit{how}."
        )
    if labels:
        out.append("* Judged captures: " + ", ".join(f"{n} {name}" for name, n in sorted(labels.items())) + ".")
    if advice.expected_gain is not None:
        out.append(f"* Expected gain: up to {100 * advice.expected_gain:.0f} points on today's traffic.")
    if advice.action == "readapt" and minutes:
        out.append(f"* Cost: about {minutes:.0f} minutes of training, from the champion, on its data and the judged captures.")
    if advice.action == "readapt" and recipe:
        out.append(f"* Recipe: {recipe}.")
    return out


def page(
    domain: str, seen: Mapping[str, Any], found: Diagnosis, advice: Advice, compared: Comparison,
    minutes: float | None, moved: Mapping[str, tuple[float, float]], examples: Sequence[tuple[Mapping[str, Any], bytes, bytes]],
    reference: Reference, window: Mapping[str, Any], gray_bits: int,
) -> str:  # fmt: skip
    """The page, HTML with everything inside.

    Args:
        examples: captures with their image, and the reference's image most like it (b"" for none).
    """
    import jinja2

    template = Path(__file__).with_name("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        domain=domain, seen=seen, found=found, advice=advice, heading=HEADINGS[advice.action], compared=compared,
        minutes=minutes, moved=moved, signals=sorted(seen["drift"].items(), key=lambda kv: -kv[1]),
        histograms=[_histogram(name, reference.rows.appearance[:, i], _column(window, i)) for i, name in enumerate(STATISTICS)],
        images=[(c, new, _thumbnail(old, gray_bits)) for c, data, old in examples if (new := _thumbnail(data, gray_bits))],
    )  # fmt: skip


def _column(window: Mapping[str, Any], i: int) -> np.ndarray:
    rows = np.array(window["appearance"], dtype=float).reshape(-1, len(STATISTICS))
    return rows[:, i]


def _histogram(name: str, before: np.ndarray, now: np.ndarray, bins: int = 24) -> dict[str, Any]:
    """Bars of two samples on one axis, as heights from 0 to 1."""
    both = np.concatenate([before, now])
    low, high = float(both.min()), float(both.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    old, new = (np.histogram(x, edges)[0] / max(1, len(x)) for x in (before, now))
    top = max(old.max(), new.max(), 1e-9)
    return {"name": name, "low": low, "high": high, "bars": list(zip((old / top).round(3), (new / top).round(3), strict=True))}


def _thumbnail(data: bytes, gray_bits: int) -> str:
    try:
        return thumbnail(open_image(data, gray_bits=gray_bits).rgb, SIDE)
    except BadImage:
        return ""

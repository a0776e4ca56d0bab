"""The drift report: one self-contained page, and the few lines of it that an approval shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..contracts.drift import Capture, WindowRows
from ..contracts.stages import Action
from ..data.images import BadImageError, open_image, thumbnail
from .case import DriftCase
from .image_statistics import STATISTICS
from .reference import Reference
from .signals import describe
from .statistics import Array

HEADINGS: dict[Action, str] = {
    "nothing": "Nothing needs to be done",
    "camera": "Look at the camera",
    "label": "Label images first",
    "rollback": "Go back to another version",
    "recalibrate": "Recalibrate the model",
    "readapt": "Re-adapt the model",
}
SIDE = 120  # of the images shown


@dataclass(frozen=True)
class Example:
    """A captured image to show, the reference's image most like it (b"" for none), and where the champion looked for its answer."""

    capture: Capture
    image: bytes
    nearest: bytes
    looked: Image.Image | None = None


@dataclass(frozen=True)
class Histogram:
    """Two samples on one axis: `bars` are pairs of heights from 0 to 1, of the reference and of now."""

    name: str
    low: float
    high: float
    bars: list[tuple[float, float]]


def class_shares(reference: Reference, window: WindowRows) -> dict[str, tuple[float, float]]:
    """The share of each class among predictions: (in the reference, in the window)."""
    similarity = np.array(window.similarity)
    if similarity.ndim != 2 or similarity.shape[1] < 2 or not len(similarity):
        return {}
    before = np.bincount(reference.rows.ranked[2], minlength=similarity.shape[1]) / len(reference.rows)
    now = np.bincount(similarity.argmax(axis=1), minlength=similarity.shape[1]) / len(similarity)
    return {name: (float(b), float(n)) for name, b, n in zip(reference.classes, before, now, strict=True)}


def approval_text(case: DriftCase) -> list[str]:
    """Lines of Markdown for the approval form and the task's log."""
    snapshot, advice, comparison = case.snapshot, case.advice, case.comparison
    values = snapshot.values
    out = [f"**{HEADINGS[advice.action]}**: {advice.why}.", ""]
    out.append(f"Drift of {snapshot.domain} version {snapshot.version}: {case.diagnosis.kind}.")
    out += [f"* {reason}" for reason in case.diagnosis.reasons]
    if "accuracy" in values:
        interval = f"[{values['accuracy_low']:.2f}, {values['accuracy_high']:.2f}]"
        out.append(
            f"* Answers with feedback: {values['accuracy']:.2f} right {interval} of {snapshot.feedback}; "
            f"{snapshot.baseline.value:.2f} at training."
        )
    elif "accuracy_estimate" in values:
        estimate = values["accuracy_estimate"]
        out.append(f"* No answer has feedback. Estimated accuracy {estimate:.2f} (from confidence, an estimate).")
    for c in comparison.versions:
        compared = f"{100 * c.gain:+.0f} points compared with the champion"
        out.append(f"* Version {c.name}: {c.accuracy:.2f} right on labeled captures, {compared}.")
    for c in comparison.prompts:
        out.append(f"* The champion with the prompts of {c.name}: {c.accuracy:.2f} right, {100 * c.gain:+.0f} points.")
    for f in comparison.fits:
        how = "" if f.embedded else ", by image statistics alone"
        out.append(f"* Reference of {f.domain} version {f.version}: {f.signal} at {f.ratio:.1f} times its limit{how}.")
    if case.labels:
        out.append("* Labeled captures: " + ", ".join(f"{n} {name}" for name, n in sorted(case.labels.items())) + ".")
    if advice.expected_gain is not None:
        out.append(f"* Expected gain: up to {100 * advice.expected_gain:.0f} points on today's traffic.")
    if advice.action == "readapt" and case.minutes:
        how = "from the champion, on its data and the labeled captures"
        out.append(f"* Cost: about {case.minutes:.0f} minutes of training, {how}.")
    if advice.action == "readapt" and case.recipe:
        out.append(f"* Recipe: {case.recipe}.")
    return out


def page(case: DriftCase, reference: Reference, window: WindowRows, examples: Sequence[Example], gray_bits: int) -> str:
    """The page, HTML with everything inside."""
    import jinja2

    template = Path(__file__).with_name("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    now = np.array(window.appearance, dtype=float).reshape(-1, len(STATISTICS))
    shown = [
        (
            e.capture,
            _thumbnail(e.image, gray_bits),
            _thumbnail(e.nearest, gray_bits),
            thumbnail(e.looked, SIDE) if e.looked else "",
        )
        for e in examples
    ]
    return environment.from_string(template).render(
        case=case,
        heading=HEADINGS[case.advice.action],
        signals=[(name, ratio, describe(name)) for name, ratio in sorted(case.snapshot.drift.items(), key=lambda kv: -kv[1])],
        histograms=[_histogram(name, reference.rows.appearance[:, i], now[:, i]) for i, name in enumerate(STATISTICS)],
        images=[(capture, new, old, looked) for capture, new, old, looked in shown if new],
    )


def _histogram(name: str, before: Array, now: Array, bins: int = 24) -> Histogram:
    both = np.concatenate([before, now])
    low, high = float(both.min()), float(both.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    old, new = (np.histogram(x, edges)[0] / max(1, len(x)) for x in (before, now))
    top = max(old.max(), new.max(), 1e-9)
    return Histogram(name, low, high, list(zip((old / top).round(3), (new / top).round(3), strict=True)))


def _thumbnail(data: bytes, gray_bits: int) -> str:
    try:
        return thumbnail(open_image(data, gray_bits=gray_bits).rgb, SIDE)
    except BadImageError:
        return ""

"""What a drift most likely is, from which signals moved together, and which answer fits it."""

import math
from collections.abc import Mapping
from dataclasses import replace

from ..contracts.drift import DriftSnapshot
from .case import Advice, Comparison, Diagnosis
from .signals import Cause, cause_of
from .signals.base import CAMERA, NEW_IMAGES

LABELS_NEEDED = 40  # labeled images before any training or comparison on them is worth a word
PER_CLASS = 5


def diagnose(drift: Mapping[str, float], classes_moved: float = 0.0) -> Diagnosis:
    """Name the kind of drift: what the signals over their limits speak for; of several, the cause of the lowest rank.

    Args:
        drift: signal -> statistic over its limit.
        classes_moved: largest change of a class's share among predictions.
    """
    over = sorted(((name, ratio) for name, ratio in drift.items() if ratio > 1), key=lambda kv: -kv[1])
    if not over:
        return Diagnosis("noise", ["No signal is over its limit now."])
    reasons = [f"{name} is {ratio:.1f} times its limit" for name, ratio in over]
    worst: dict[Cause, float] = {}
    for name, ratio in over:
        worst.setdefault(cause_of(name), ratio)
    if worst.get(CAMERA, 0.0) > 3 * worst.get(NEW_IMAGES, math.inf):  # embeddings follow what images look like
        del worst[NEW_IMAGES]
    cause = min(worst, key=lambda c: c.rank)
    return Diagnosis(cause.kind, [*reasons, cause.reason.replace("{points}", f"{100 * classes_moved:.0f}")])


def advise(diagnosis: Diagnosis, snapshot: DriftSnapshot, labels: Mapping[str, int], comparison: Comparison) -> Advice:
    """What to do.

    Args:
        labels: labeled captures by class.
        comparison: of other versions and prompts on them; empty where there were too few.
    """
    advice = _advice(diagnosis.kind, snapshot, labels, comparison)
    if advice.action in ("label", "camera") and (hint := fitting_model(comparison, snapshot.domain, snapshot.version)):
        return replace(advice, why=f"{advice.why}; {hint}")
    return advice


def _advice(kind: str, snapshot: DriftSnapshot, labels: Mapping[str, int], comparison: Comparison) -> Advice:
    better = max((c for c in comparison.versions if c.gain_low > 0), key=lambda c: c.gain, default=None)
    if better:
        why = f"version {better.name} is right {100 * better.gain:.0f} points more often on the labeled images of today"
        return Advice("rollback", why, better.name, better.gain)
    prompts = max((c for c in comparison.prompts if c.gain_low > 0), key=lambda c: c.gain, default=None)
    if prompts:
        why = (
            f"with the prompts of the domain {prompts.name} this very model is right {100 * prompts.gain:.0f} points more often on the "
            "labeled images of today: take its `prompts` over, nothing need be trained"
        )
        return Advice("recalibrate", why, "", prompts.gain)
    live, dropped, calibration = snapshot.live_accuracy.accuracy, snapshot.accuracy_dropped, comparison.calibration
    gain = max(0.0, snapshot.baseline.value - live) if live is not None else None
    enough = sum(labels.values()) >= LABELS_NEEDED and sum(n >= PER_CLASS for n in labels.values()) >= 2
    if kind == "noise":
        return Advice("nothing", "nothing is over its limit any more")
    if kind == "prior" and not dropped:
        return Advice("nothing", "the mix of classes moved, which zero-shot classes do not depend on; watch the accuracy")
    if kind == "certainty" and not dropped and calibration:
        why = (
            f"the model is as right as it was and expects {calibration.confidence:.0%} of its answers to be right where "
            f"{calibration.accuracy:.0%} of {calibration.judged} are; a softmax of its `scores` at a temperature of {calibration.temperature:.3g} is right about itself"
        )
        return Advice("recalibrate", why)
    if kind == "certainty" and not dropped:
        return Advice(
            "nothing",
            "only how sure the model is moved, and no answer with feedback says that it errs more; watch the accuracy",
        )
    if kind == "camera" and not dropped:
        return Advice("camera", "look at the camera and the export first; train only if that is how images are from now on")
    if not enough:
        missing = max(0, LABELS_NEEDED - sum(labels.values()))
        why = f"{missing or 'more'} labeled images of at least two classes are missing; the report names those that help most"
        return Advice("label", why, "", gain)
    return Advice(
        "readapt", "there are labeled images of the new kind, and no registered version does better on them", "", gain
    )


def fitting_model(comparison: Comparison, domain: str, champion: str) -> str:
    """A hint, where another model's reference shows images like today's and the champion's does not; "" for none."""
    asked = [f for f in comparison.fits if f.embedded]
    if any((f.domain, f.version) == (domain, champion) and f.ratio <= 1 for f in asked):
        return ""
    fitting = next((f for f in asked if f.ratio <= 1), None)
    if fitting is None:
        return ""
    if fitting.domain == domain:
        return f"version {fitting.version} was made for images like these, and labeled ones would tell whether it does better"
    return f"the model of {fitting.domain} was made for images like these: is the traffic sent to the right domain?"

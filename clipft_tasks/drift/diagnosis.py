"""What a drift most likely is, from which signals moved together, and which answer fits it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .image_statistics import STATISTICS

LABELS_NEEDED = 40  # judged images before any training or comparison on them is worth a word
PER_CLASS = 5


@dataclass(frozen=True)
class Diagnosis:
    """Attributes:
    kind: noise, camera, new_images, concept, prior, certainty, alignment or texts.
    reasons: what speaks for it, in sentences.
    """

    kind: str
    reasons: list[str]


@dataclass(frozen=True)
class Candidate:
    """A registered version, or the champion in the words of another domain: how it does on judged images of today.

    Attributes:
        version: its number, or the domain whose words those are.
        accuracy, gain, gain_low: of it, beside the champion's as it is (paired), and the lower end of that.
    """

    version: str
    accuracy: float
    gain: float
    gain_low: float


@dataclass(frozen=True)
class Calibration:
    """Attributes:
    confidence: that the champion has in its answers, on average; accuracy: of them, over `judged` images.
    temperature: of similarities, under which its confidence would be right.
    """

    confidence: float
    accuracy: float
    judged: int
    temperature: float


@dataclass(frozen=True)
class Advice:
    """Attributes:
    action: nothing, camera, label, rollback (to `version`), recalibrate (other words or another temperature, by a person) or readapt.
    why: in one sentence. expected_gain: of accuracy on today's traffic, None where nothing is known.
    """

    action: str
    why: str
    version: str = ""
    expected_gain: float | None = None


def diagnose(drift: Mapping[str, float], classes_moved: float = 0.0) -> Diagnosis:
    """Name the kind of drift.

    Args:
        drift: signal -> metric over its limit.
        classes_moved: largest change of a class's share among predictions.
    """
    over = {name: ratio for name, ratio in drift.items() if ratio > 1}
    if not over:
        return Diagnosis("noise", ["No signal is over its limit now."])
    said = [f"{name} is {ratio:.1f} times its limit" for name, ratio in sorted(over.items(), key=lambda kv: -kv[1])]
    looks = max((over.get(name, 0.0) for name in STATISTICS), default=0.0)
    image = over.get("image", 0.0)
    if image and looks <= 3 * image:
        return Diagnosis("new_images", [*said, "Embeddings left what the reference shows: images of another kind."])
    if looks:
        return Diagnosis(
            "camera", [*said, "Images look different, while what they show moved little: light, focus, size or export."]
        )
    if "performance" in over:
        return Diagnosis(
            "concept", [*said, "The images look as before and are judged wrong more often: their meaning changed."]
        )
    if "prediction" in over:
        mix = f"their mix changed (a class by {100 * classes_moved:.0f} points)"
        return Diagnosis("prior", [*said, f"The images look as before; {mix}."])
    if "alignment" in over:
        said.append("Images look as before, and agree otherwise with the texts that belong to them.")
        return Diagnosis("alignment", said)
    if "similarity" in over or "margin" in over:
        return Diagnosis(
            "certainty",
            [*said, "The images look as before and fall into the same classes; how sure the model is of them changed."],
        )
    return Diagnosis("texts", [*said, "Only the texts differ: another language, or other words."])


def advise(
    diagnosis: Diagnosis,
    labels: Mapping[str, int],
    others: list[Candidate],
    promised: float,
    live: float | None,
    losing: bool,
    templates: Sequence[Candidate] = (),
    calibration: Calibration | None = None,
) -> Advice:
    """What to do.

    Args:
        labels: judged captures by class.
        others: other registered versions on the same judged images, if there were enough.
        promised, live: accuracy at training, and now (None without judgments).
        losing: whether live accuracy is below the promise beyond its interval.
        templates: the champion in the words of other domains, on the same images.
        calibration: of its confidence, where that misses.
    """
    better = max((c for c in others if c.gain_low > 0), key=lambda c: c.gain, default=None)
    if better:
        why = f"version {better.version} is right {100 * better.gain:.0f} points more often on the judged images of today"
        return Advice("rollback", why, better.version, better.gain)
    words = max((c for c in templates if c.gain_low > 0), key=lambda c: c.gain, default=None)
    if words:
        why = (
            f"in the words of the domain {words.version} this very model is right {100 * words.gain:.0f} points more often on the "
            "judged images of today: take its `prompts` over, nothing need be trained"
        )
        return Advice("recalibrate", why, "", words.gain)
    gain = max(0.0, promised - live) if live is not None else None
    enough = sum(labels.values()) >= LABELS_NEEDED and sum(n >= PER_CLASS for n in labels.values()) >= 2
    if diagnosis.kind == "noise":
        return Advice("nothing", "nothing is over its limit any more")
    if diagnosis.kind == "prior" and not losing:
        return Advice("nothing", "the mix of classes moved, which zero-shot classes do not depend on; watch the accuracy")
    if diagnosis.kind == "certainty" and not losing and calibration:
        why = (
            f"the model is as right as it was and expects {calibration.confidence:.0%} of its answers to be right where "
            f"{calibration.accuracy:.0%} of {calibration.judged} are; a softmax of its `scores` at a temperature of {calibration.temperature:.3g} is right about itself"
        )
        return Advice("recalibrate", why)
    if diagnosis.kind == "certainty" and not losing:
        return Advice(
            "nothing", "only how sure the model is moved, and no judged answer says that it errs more; watch the accuracy"
        )
    if diagnosis.kind == "camera" and not losing:
        return Advice("camera", "look at the camera and the export first; train only if that is how images are from now on")
    if not enough:
        missing = max(0, LABELS_NEEDED - sum(labels.values()))
        return Advice(
            "label",
            f"{missing or 'more'} judged images of at least two classes are missing; the report names those that help most",
            "",
            gain,
        )
    return Advice("readapt", "there are judged images of the new kind, and no registered version does better on them", "", gain)

"""One case of drift: what was measured, what it most likely is, what else was tried on it, and what should be done."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..contracts.drift import DriftSnapshot
from ..contracts.stages import Action

if TYPE_CHECKING:
    from PIL import Image


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
    """A registered version, or the champion with the prompts of another domain: how it does on labeled images of today.

    Attributes:
        name: the version's number, or the domain whose prompts those are.
        accuracy, gain, gain_low: of it, compared with the champion's as it is (paired), and the lower end of that.
    """

    name: str
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
class Fit:
    """How far today's images are from what a registered model was made for.

    Attributes:
        signal, ratio: the worst one, over its limit in that model's own reference.
        embedded: whether the model embedded them; else only their image statistics are compared.
    """

    domain: str
    version: str
    signal: str
    ratio: float
    embedded: bool


@dataclass(frozen=True)
class Comparison:
    """Attributes:
    versions: other versions of the domain, and prompts: the champion with those of other domains, on the labeled images.
    fits: of every model that was asked, the best one first.
    calibration: of the champion's confidence on the labeled images, where it misses.
    nearest: for each image, the sha256 of the reference's image that is most like it; "" where that is not known.
    looked: small copies of images, by their numbers, colored where they speak for the champion's answer.
    """

    versions: list[Candidate] = field(default_factory=list)
    prompts: list[Candidate] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    calibration: Calibration | None = None
    nearest: list[str] = field(default_factory=list)
    looked: "Mapping[int, Image.Image]" = field(default_factory=dict)


@dataclass(frozen=True)
class Advice:
    """Attributes:
    action: nothing, camera, label, rollback (to `version`), recalibrate (other prompts or another temperature, by a person) or readapt.
    why: in one sentence. expected_gain: of accuracy on today's traffic, None where nothing is known.
    """

    action: Action
    why: str
    version: str = ""
    expected_gain: float | None = None


@dataclass(frozen=True)
class DriftCase:
    """Attributes:
    labels: labeled captures by class.
    class_shares: the share of each class among predictions, in the reference and in the window.
    minutes: that training would take, None where nothing is known; recipe: how it would go about it.
    """

    snapshot: DriftSnapshot
    diagnosis: Diagnosis
    advice: Advice
    comparison: Comparison
    labels: Mapping[str, int]
    class_shares: Mapping[str, tuple[float, float]]
    minutes: float | None = None
    recipe: str = ""

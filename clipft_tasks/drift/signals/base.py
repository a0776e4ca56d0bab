"""What a drift signal is, and what it is measured on."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from ..reference import Reference, Sample

RowKind = Literal["images", "texts", "pairs", "feedback"]
ROW_KINDS: tuple[RowKind, ...] = get_args(RowKind)
FEWEST_REFERENCE_ROWS = 4  # of a kind, to compare anything with


@dataclass(frozen=True)
class WindowMetric:
    """A number that a window publishes beside its ratios, in a unit of its own.

    Attributes:
        name: its key in `values` of `GET /v1/drift`.
        prometheus: name of its gauge, after `clipft_`.
        description: one sentence.
        pooled_by: whose rows it is a mean over, so that several replicas' weigh by them; None: it belongs to one window and
            several have none.
    """

    name: str
    prometheus: str
    description: str
    pooled_by: RowKind | None


@dataclass(frozen=True)
class Cause:
    """What a signal over its limit speaks for.

    Attributes:
        kind: of the diagnosis.
        reason: one sentence; `{points}` in it is the largest change of a class's share among predictions.
        rank: of several, the lowest is the diagnosis.
    """

    kind: str
    reason: str
    rank: float = 6


NEW_IMAGES = Cause("new_images", "Embeddings left what the reference shows: images of another kind.", 0)
CAMERA = Cause("camera", "Images look different, while what they show moved little: light, focus, size or export.", 1)
CONCEPT = Cause("concept", "The images look as before and are named wrongly more often: their meaning changed.", 2)
PRIOR = Cause("prior", "The images look as before; their mix changed (a class by {points} points).", 3)
ALIGNMENT = Cause("alignment", "Images look as before, and agree otherwise with the texts that belong to them.", 4)
CERTAINTY = Cause(
    "certainty",
    "The images look as before and fall into the same classes; how sure the model is of them changed.",
    5,
)
UNKNOWN = Cause("other", "This release does not know the signal.", 7)
TEXTS = Cause("texts", "Only the texts differ: another language, or other words.", 8)


@dataclass(frozen=True)
class SampleComparison:
    """A window, and what it is compared with.

    Attributes:
        base: the reference's own rows (`reference.sample`), or the rest of them while limits are simulated.
        min_rows: of a kind, below which no signal is measured on it.
        permutations: of a permutation test, at most; 0: none is asked for.
        tested_above: what a statistic must exceed to be tested.
    """

    reference: Reference
    base: Sample
    window: Sample
    min_rows: int = 1
    permutations: int = 0
    tested_above: float = float("-inf")

    def enough(self, kind: RowKind) -> bool:
        """Whether the window holds rows enough of a kind to say anything of it."""
        return self.window.count(kind) >= self.min_rows

    @cached_property
    def none_of_these(self) -> int:
        """How many of the window's images are of another kind than the reference's."""
        return int((self.reference.novelty(self.window.images.image) > 1).sum())


@dataclass(frozen=True)
class Statistic:
    """What a signal found. p_value: that chance reaches as much; 0 where nobody tested that."""

    value: float
    p_value: float = 0.0


class MetricSource:
    """Something that publishes metrics of a window."""

    metrics: tuple[WindowMetric, ...] = ()

    def values(self, samples: SampleComparison, found: Statistic | None) -> Mapping[str, float]:
        """The metrics by name, those that can be measured now.

        Args:
            found: what the signal itself found in the window; None where it found nothing.
        """
        return {}


class Signal(MetricSource, ABC):
    """One way in which traffic may differ from a reference. Its ratio is a statistic over its limit; above 1 is drift.

    Subclass it, give it these attributes and `measure`, and offer it as an entry point of the group `clipft.drift_signals`, or
    name it in `CLIPFT_DRIFT_SIGNALS` (`module:Class`), on every machine that trains, serves or runs tasks. A reference that
    was measured without a signal has no limit of it, and the signal is not measured there. One that raises, or finds no finite
    number, is left out, and the others are measured all the same.

    Attributes:
        name: label `signal` of Prometheus' metrics and key in `GET /v1/drift`.
        rows: what it is measured on.
        description: what moved when it is over its limit.
        cause: what it speaks for.
        smallest_limit: that limits are never below, however little chance reaches.
        fixed_limit: where the limit is a decision; None: it is simulated when the reference is measured.
        fewest_rows: below which it is not measured; None: the window's own number.
        needs_embeddings: False where image statistics are enough, so that no model need look at the images.
    """

    name: str
    rows: RowKind
    description: str
    cause: Cause
    smallest_limit: float = 0.02
    fixed_limit: float | None = None
    fewest_rows: int | None = None
    needs_embeddings: bool = True

    def applies(self, reference: Reference) -> bool:
        """Whether a reference has what it takes: by default, rows of the signal's kind."""
        return self.rows == "feedback" or reference.sample.count(self.rows) >= FEWEST_REFERENCE_ROWS

    @abstractmethod
    def measure(self, samples: SampleComparison) -> Statistic:
        """How far the window is from its base; the window holds rows of the signal's kind."""

    def limit(self, reference: Reference) -> float | None:
        """Its limit in a reference; None where it is not measured."""
        if not self.applies(reference):
            return None
        return self.fixed_limit if self.fixed_limit is not None else reference.limits.get(self.name)

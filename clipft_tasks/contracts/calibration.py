"""What a model package knows of its own certainty: from it a server makes calibrated probabilities and prediction sets."""

from typing import ClassVar

from pydantic import Field, FiniteFloat

from .base import VersionedRecord


class Calibration(VersionedRecord):
    """Measured when the model was packaged, on validation rows: no training saw them, and the test rows play no part.

    Training may choose its epoch by the same rows. What that costs is measured (`python -m bench.promises`).

    Attributes:
        classes, prompts: that it was measured with; it says nothing of other classes or wordings.
        temperature: of similarities, at which probabilities are right as far as the rows can tell.
        fitted: whether it is fitted; false: the groups are too few, and it is the model's own.
        scores, groups: of each row, its nonconformity and the number of its group.
        coverage: what sets have where nobody asks for another; None where the groups allow no promise worth making.
    """

    WHAT: ClassVar[str] = "the calibration"

    classes: list[str]
    prompts: list[str]
    temperature: FiniteFloat = Field(gt=0)
    fitted: bool
    scores: list[FiniteFloat]
    groups: list[int]
    coverage: float | None

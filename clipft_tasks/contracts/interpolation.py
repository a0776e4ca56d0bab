"""The line between the start model's weights and the candidate's: what each point of it is worth, and which one was taken."""

from typing import Any, ClassVar

from .base import Record, StageResult, VersionedRecord


class CurvePoint(Record):
    """A point of the line.

    Attributes:
        alpha: share of the way; 0 is the start model, 1 the candidate.
        score: of the domain, on the validation split, 0..1.
        general_score: of the general set, 0..1.
        gain, forgotten: of the two, compared with the start model.
    """

    alpha: float
    score: float
    general_score: float
    gain: float
    forgotten: float


class BlendResult(StageResult, VersionedRecord):
    """The candidate from here on.

    Attributes:
        run_id: of the run that holds it; the one that was given where alpha is 1.
        metric: that `score` stands for. curve: by alpha; empty where blending is off.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "the blending"

    key: str = ""
    run_id: str
    alpha: float
    reason: str
    metric: str
    curve: list[CurvePoint]

    @classmethod
    def upgraded(cls, data: dict[str, Any], written: int) -> dict[str, Any]:
        """In format 0 the general score had another name."""
        if written == 0:
            points = [dict(point) for point in data["curve"]]
            data["curve"] = [point | {"general_score": point.pop("retention")} for point in points]
        return data

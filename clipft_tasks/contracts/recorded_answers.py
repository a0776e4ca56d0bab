"""A few images, a few texts and what the model said of them when it was packaged."""

from typing import Any, ClassVar

from pydantic import Field

from .base import VersionedRecord


class RecordedAnswers(VersionedRecord):
    """The golden outputs of a model package: whoever serves the model must give them again.

    Args:
        images: PNG files, base64; squares of `side` pixels.
        similarity: of each image with each text, (images, texts).
        tolerance: largest difference of a similarity that is another device's or precision's doing.
    """

    WHAT: ClassVar[str] = "the recorded answers"

    images: list[str] = Field(min_length=1)
    texts: list[str] = Field(min_length=1)
    similarity: list[list[float]]
    side: int
    tolerance: float

    @classmethod
    def upgraded(cls, data: dict[str, Any], written: int) -> dict[str, Any]:
        if not written and "pictures" in data:  # the word before formats were numbered
            data["images"] = data.pop("pictures")
        return data

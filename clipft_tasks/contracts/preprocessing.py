"""What a model package says about how its images are read and its classes are worded."""

from typing import ClassVar

from pydantic import Field, field_validator

from .base import VersionedRecord


class Preprocessing(VersionedRecord):
    """What is done to an image and to a class name before the towers see them, as it was when the model was trained.

    Image size, aspect, mean and deviation are not here: they stand in open_clip's configuration, `preprocess_cfg`, where plain
    open_clip reads them too.

    Args:
        gray_bits: how gray deeper than 8 bits becomes 8 bits: white is 2**gray_bits - 1; 0 spreads each image's own range.
        prompts: zero-shot templates, `{}` is the class; a class's embedding is the mean over them.
    """

    WHAT: ClassVar[str] = "the preprocessing"

    gray_bits: int = Field(ge=0, le=16)
    prompts: tuple[str, ...] = Field(min_length=1)

    @field_validator("prompts")
    @classmethod
    def _has_place_for_the_class(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            if prompt.count("{}") != 1:
                raise ValueError(f"template {prompt!r} needs exactly one {{}}")
        return prompts

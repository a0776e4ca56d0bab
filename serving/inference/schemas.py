"""What goes in. A single image or text may stand where a list may; what comes out is in `clipft_tasks.contracts.serving`.

A body of an inference route may also come as a form; its example is shown in the API's documentation, and runs.
"""

import base64
import binascii
from typing import Annotated, Self

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from clipft_tasks.contracts.base import Record

EXAMPLE_PNG = (  # a valid 8x8 gray image, so that the examples in the docs run as they are
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAADklEQVR42mNogAIGyhgAgIQgARDoahcAAAAASUVORK5CYII="
)


def _decoded(value: object) -> object:
    """Base64 as the bytes that it stands for; bytes, which a form has, as they are."""
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64; send the file's bytes, encoded, without a data: prefix") from None


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


Base64 = WithJsonSchema({"type": "string", "contentEncoding": "base64"})


class ImageFile(Record):
    """An image: the bytes of a JPEG, PNG, WebP, BMP, TIFF or GIF file in base64. URLs are not fetched."""

    content: Annotated[bytes, BeforeValidator(_decoded), Base64] = Field(alias="base64")


Images = Annotated[list[ImageFile], BeforeValidator(_listed), Field(min_length=1, description="one image or a list")]
Texts = Annotated[
    list[Annotated[str, Field(min_length=1)]], BeforeValidator(_listed), Field(min_length=1, description="one text or a list")
]


def _example(**body: object) -> ConfigDict:
    return ConfigDict(json_schema_extra={"example": body})  # type: ignore[dict-item]  # JSON, all of it


# Inference --------------------------------------------------------------------------------------------------------


class InferenceBody(Record):
    domain: str = Field("", description="whose model answers; may be left out while only one domain is live")


class Embed(InferenceBody):
    dimensions: int | None = Field(
        None,
        gt=0,
        description="first so many numbers of each embedding; only those that the model was trained for (`/v1/models`)",
    )


class EmbedImages(Embed):
    model_config = _example(images=[{"base64": EXAMPLE_PNG}])

    images: Images


class EmbedTexts(Embed):
    model_config = _example(texts=["a defective solar cell", "a functional solar cell"])

    texts: Texts


class Similarity(InferenceBody):
    model_config = _example(images={"base64": EXAMPLE_PNG}, texts=["a defective cell", "a functional cell"])

    images: Images
    texts: Texts
    paired: bool = Field(
        False, description="the n-th text belongs to the n-th image; how well they agree is watched as `alignment`"
    )

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if self.paired and len(self.images) != len(self.texts):
            raise ValueError(f"{len(self.images)} images and {len(self.texts)} texts are no pairs")
        return self


class Classify(InferenceBody):
    model_config = _example(images=[{"base64": EXAMPLE_PNG}])

    images: Images
    classes: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, min_length=2, description="different class names; left out: those the model was trained on"
    )

    @field_validator("classes")
    @classmethod
    def _different(cls, value: list[str] | None) -> list[str] | None:
        if value and len(set(value)) < len(value):
            raise ValueError("a class is named twice")
        return value


# Changes ----------------------------------------------------------------------------------------------------------


class LoadRequest(Record):
    version: str = Field(pattern=r"^[1-9][0-9]{0,8}$", description="number of a registered model version")


class TrialRequest(LoadRequest):
    share: float = Field(0.5, gt=0, le=1, description="of the classify requests that it sees")
    answers: bool = Field(False, description="false: the champion answers and this one is asked afterwards; true: a canary")


class FeedbackRequest(Record):
    request_id: str = Field(min_length=1, max_length=64, description="`X-Request-Id` of the answer")
    index: int = Field(0, ge=0, description="which image of the request")
    label: str = Field(min_length=1, max_length=500, description="what it really shows")


class CaptureShareRequest(Record):
    share: float | None = Field(ge=0, le=1, description="of requests that are kept; null: what the domain's profile says")


class CaptureLabelRequest(Record):
    label: str = Field(max_length=500, description="the true class; empty takes a label back")

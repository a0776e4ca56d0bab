"""What goes in. A single image or text may stand where a list may; what comes out is in `clipft_tasks.contracts.serving`.

A body of an inference route may also come as a form; its example is shown in the API's documentation, and runs.
"""

import binascii
import re
from typing import Annotated, Self

from pydantic import (
    AliasChoices,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from clipft_tasks.contracts.base import Record

from .admission import Admission
from .errors import RequestRejectedError
from .large_json import LONG_STRINGS, PERCENT

MAX_FIELDS = 50  # of a body; more are not even named in its refusal
DATA_URI = re.compile("[\\s\ufeff]*data:([^,]{0,190}),", re.IGNORECASE)
SPELLINGS = str.maketrans("-_", "+/", " \t\r\n")  # of base64
EXAMPLE_PNG = (  # a valid 8x8 gray image, so that the examples in the docs run as they are
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAADklEQVR42mNogAIGyhgAgIQgARDoahcAAAAASUVORK5CYII="
)


def decoded(value: object) -> object:
    """Base64 as the bytes that it stands for, in any spelling: a data: URI, percent-encoded, wrapped lines, the URL-safe alphabet, no padding.
    Bytes, which a form has, as they are."""
    if not isinstance(value, str):
        return value
    if uri := DATA_URI.match(value):
        if uri[1].rpartition(";")[2].strip().lower() not in ("base64", "base64url"):
            raise ValueError("not base64: a data: URI must say `;base64,` before its bytes")
        value = value[uri.end() :]
    if (strings := LONG_STRINGS.get()) and (number := strings.number_of(value)) is not None:
        try:
            return strings.decoded(number)
        except ValueError:
            raise ValueError("not base64: other characters than its 64, or cut short") from None
    if not value.isascii():
        raise ValueError("not base64: it has letters beyond ASCII")
    try:
        return binascii.a2b_base64(value, strict_mode=True)  # without a copy, which base64 makes
    except ValueError:
        text = value
    for escaped, plain in PERCENT if "%" in text else ():
        text = text.replace(escaped.decode(), plain.decode())
    text = text.translate(SPELLINGS).rstrip("=")
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        raise ValueError("not base64: other characters than its 64, or cut short") from None


def is_data_uri(text: str) -> bool:
    """Whether a text stands for the bytes of an image, in base64, and not for itself."""
    uri = DATA_URI.match(text)
    kind = uri[1].lower() if uri else ""
    return kind.startswith("image/") or "base64" in kind


def _counted(value: object, info: ValidationInfo) -> object:
    """The same. Raises RequestRejectedError for a list of more than one request may hold, before any of it is looked at."""
    if isinstance(value, list) and isinstance(info.context, Admission):
        info.context.check_items(info.field_name or "items", len(value))
    return value


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _whole(value: object) -> object:
    """JSON has one kind of number: 2.0 is the integer 2."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
Base64 = WithJsonSchema({"type": "string", "contentEncoding": "base64", "minLength": 1})


class Body(Record):
    """An object of a request's body."""

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: object) -> object:
        """The object, unchanged. Raises RequestRejectedError for more fields than any has, before each is an error of its own."""
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise RequestRejectedError(422, f"{len(data):,} fields in one request; none has so many", "malformed")
        return data


class ImageFile(Body):
    """An image: the bytes of a JPEG, PNG, WebP, BMP, TIFF or GIF file in base64. URLs are not fetched."""

    content: Annotated[bytes, BeforeValidator(decoded), Base64] = Field(alias="base64")


Listed, Counted = BeforeValidator(_listed), BeforeValidator(_counted)
Text = Annotated[str, Field(min_length=1)]
Images = Annotated[list[ImageFile], FailFast(), Listed, Counted, Field(min_length=1, description="one image or a list")]
Texts = Annotated[list[Text], FailFast(), Listed, Counted, Field(min_length=1, description="one text or a list")]


def example(**body: object) -> ConfigDict:
    return ConfigDict(json_schema_extra={"example": body})  # type: ignore[dict-item]  # JSON, all of it


# Inference --------------------------------------------------------------------------------------------------------


class InferenceBody(Body):
    domain: str | None = Field(
        None, max_length=64, description="whose model answers; may be left out while only one domain is live"
    )
    version: Annotated[str | None, Field(pattern=r"^[1-9][0-9]{0,8}$")] = Field(
        None, description="which version must answer; 409 where it is not live. Left out: the live one"
    )

    @property
    def asked(self) -> tuple[str, str]:
        """Domain and version that are to answer; "" for any."""
        return self.domain or "", self.version or ""


class Embed(InferenceBody):
    dimensions: Annotated[int | None, Whole] = Field(
        None,
        gt=0,
        strict=True,
        description="first so many numbers of each embedding; only those that the model was trained for (`/v1/models`)",
    )


class EmbedImages(Embed):
    model_config = example(images=[{"base64": EXAMPLE_PNG}])

    images: Images


class EmbedTexts(Embed):
    model_config = example(texts=["a defective solar cell", "a functional solar cell"])

    texts: Texts


Explain = Annotated[
    bool,
    Field(
        strict=True, description="also say which places of the images speak for the answer: heatmaps, for few images at a time"
    ),
]


class Similarity(InferenceBody):
    model_config = example(images={"base64": EXAMPLE_PNG}, texts=["a defective cell", "a functional cell"])

    images: Images
    texts: Texts
    paired: bool = Field(
        False, strict=True, description="the n-th text belongs to the n-th image; how well they agree is watched as `alignment`"
    )

    explain: Explain = False

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if self.paired and len(self.images) != len(self.texts):
            raise ValueError(f"{len(self.images)} images and {len(self.texts)} texts are no pairs")
        return self


class Classify(InferenceBody):
    model_config = example(images=[{"base64": EXAMPLE_PNG}])

    images: Images
    classes: Annotated[list[Text] | None, Counted] = Field(
        None,
        min_length=2,
        json_schema_extra={"uniqueItems": True},
        description="different class names; left out: those the model was trained on",
    )
    explain: Explain = False

    coverage: float | None = Field(
        None,
        ge=0.5,
        le=0.99,
        strict=True,
        description="how often the true class is to be in `prediction_set`; left out: the model's own default",
    )

    @field_validator("classes")
    @classmethod
    def _different(cls, value: list[str] | None) -> list[str] | None:
        if value and len(set(value)) < len(value):
            raise ValueError("a class is named twice")
        return value


class Search(InferenceBody):
    model_config = example(text="a defective solar cell", limit=5)

    text: Text | None = Field(None, description="what to look for in words")
    image: ImageFile | None = Field(None, description="or what to look for in an image")
    labels: Annotated[list[Text], FailFast()] = Field([], max_length=100, description="a hit has one of them; none: any")
    limit: Annotated[int, Whole] = Field(10, ge=1, le=100, strict=True, description="most hits")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.text is None) == (self.image is None):
            raise ValueError("say either `text` or `image`")
        return self


# Changes ----------------------------------------------------------------------------------------------------------


Version = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$", description="number of a registered model version")]


class LoadRequest(Body):
    version: Version
    hold: bool = Field(
        False,
        strict=True,
        description="keep it live whatever the registry says, until the champion is asked for; shown by /readyz",
    )


class TrialRequest(Body):
    version: Version
    share: float = Field(0.5, gt=0, le=1, strict=True, description="of the classify requests that it sees")
    answers: bool = Field(
        False, strict=True, description="false: the champion answers and this one is asked afterwards; true: a canary"
    )


class FeedbackRequest(Body):
    answer_id: str = Field(
        min_length=1,
        max_length=128,
        validation_alias=AliasChoices("answer_id", "request_id"),
        description="`X-Clipft-Answer-Id` of the answer",
    )
    index: Annotated[int, Whole] = Field(0, ge=0, strict=True, description="which image of the request")
    label: str = Field(min_length=1, max_length=500, description="what it really shows")


class CaptureShareRequest(Body):
    share: float | None = Field(
        ge=0, le=1, strict=True, description="of requests that are kept; null: what the domain's profile says"
    )


class CaptureLabelRequest(Body):
    label: str = Field(max_length=500, description="the true class; empty takes a label back")

"""What goes in and what comes out. A single image or text may stand where a list may."""

import base64
import binascii
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

EXAMPLE_PNG = (  # a valid 8x8 gray image, so that the examples in the docs run as they are
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAADklEQVR42mNogAIGyhgAgIQgARDoahcAAAAASUVORK5CYII="
)


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class ImageIn(BaseModel):
    """An image: the bytes of a JPEG, PNG, WebP, BMP, TIFF or GIF file in base64. URLs are not fetched."""

    model_config = ConfigDict(extra="forbid")
    base64: str

    @field_validator("base64")
    @classmethod
    def _decodes(cls, value: str) -> str:
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("not base64; send the file's bytes, encoded, without a data: prefix") from None
        return value

    @property
    def data(self) -> bytes:
        return base64.b64decode(self.base64)


Images = Annotated[list[ImageIn], BeforeValidator(_listed), Field(min_length=1, description="one image or a list")]
Texts = Annotated[
    list[Annotated[str, Field(min_length=1)]], BeforeValidator(_listed), Field(min_length=1, description="one text or a list")
]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")
    domain: str = Field("", description="whose model answers; may be left out while only one domain is live")


class Embed(Request):
    dimensions: int | None = Field(
        None,
        gt=0,
        description="first so many numbers of each embedding; only those that the model was trained for (`/v1/models`)",
    )


class EmbedImages(Embed):
    images: Images


class EmbedTexts(Embed):
    texts: Texts


class Similarity(Request):
    images: Images
    texts: Texts
    paired: bool = Field(
        False, description="the n-th text belongs to the n-th image; how well they agree is watched as `alignment`"
    )

    @model_validator(mode="after")
    def _as_many(self) -> "Similarity":
        if self.paired and len(self.images) != len(self.texts):
            raise ValueError(f"{len(self.images)} images and {len(self.texts)} texts are no pairs")
        return self


class Classify(Request):
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


class Embeddings(BaseModel):
    embeddings: list[list[float]] = Field(description="one an item, in the order asked: what the model's similarity compares")
    dimension: int


class Similarities(BaseModel):
    similarity: list[list[float]] = Field(
        description="one row an image, one column a text; which similarity it is, `/v1/models` says"
    )


class Prediction(BaseModel):
    label: str
    probability: float = Field(description="softmax over the classes at the model's temperature; not calibrated")
    scores: dict[str, float] = Field(description="similarity by class")


class Predictions(BaseModel):
    predictions: list[Prediction]


class Deploy(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: str = Field(pattern=r"^[1-9][0-9]{0,8}$", description="number of a registered model version")


class Deployed(BaseModel):
    version: str
    replaced: str | None
    load_seconds: float
    disagreement: float = Field(description="largest difference from the answers recorded at training")
    replicas: dict[str, str] = Field({}, description="the other replicas: the version that is live there now, or away")


class Replica(BaseModel):
    address: str = Field(description="empty: the one that answers")
    live: dict[str, str] = Field(description="the live version of each domain")
    problem: str = Field(description="what it cannot do at the moment, or that it does not answer")


class ShadowIn(Deploy):
    share: float = Field(0.5, gt=0, le=1, description="of the classify requests that it sees")
    answers: bool = Field(False, description="false: the champion answers and this one is asked afterwards; true: a canary")


class ShadowInfo(BaseModel):
    domain: str
    version: str
    share: float
    answers: bool
    requests: int
    images: int
    agreement: float | None = Field(description="share of images on which both named the same class")
    errors: int
    seconds_p95: dict[str, float | None]


class ModelInfo(BaseModel):
    domain: str
    version: str
    since: float
    side: int = Field(description="image side in pixels")
    classes: list[str]
    similarity: str = Field(description="how its embeddings are compared: cosine (unit vectors), dot, euclidean, hyperbolic, …")
    dimensions: list[int] = Field(description="lengths that embeddings may be cut to; none unless it was trained for them")
    lineage: dict[str, str]


class Feedback(BaseModel):
    model_config = ConfigDict(extra="forbid")
    request_id: str = Field(min_length=1, max_length=64, description="`X-Request-Id` of the answer")
    index: int = Field(0, ge=0, description="which image of the request")
    label: str = Field(min_length=1, max_length=500, description="what it really shows")


class Judged(BaseModel):
    predicted: str
    version: str
    counted: bool = Field(description="false when this image was judged before")


class Captured(BaseModel):
    id: str
    request: str
    domain: str
    version: str
    time: float
    predicted: str
    confidence: float
    novelty: float
    why: str
    sha256: str
    label: str


class Share(BaseModel):
    model_config = ConfigDict(extra="forbid")
    share: float | None = Field(ge=0, le=1, description="of requests that are kept; null: what the domain's profile says")


class Label(BaseModel):
    model_config = ConfigDict(extra="forbid")
    label: str = Field(max_length=500, description="the true class; empty takes a label back")


EXAMPLES: dict[type[Request], dict[str, Any]] = {
    EmbedImages: {"images": [{"base64": EXAMPLE_PNG}]},
    EmbedTexts: {"texts": ["a defective solar cell", "a functional solar cell"]},
    Similarity: {"images": {"base64": EXAMPLE_PNG}, "texts": ["a defective cell", "a functional cell"]},
    Classify: {"images": [{"base64": EXAMPLE_PNG}]},
}

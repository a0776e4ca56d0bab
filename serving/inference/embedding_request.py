"""The body of `/v1/embeddings`: what OpenAI's clients send, and `messages` with images as vLLM takes them.

Whatever the spelling, each thing to embed becomes one part, a text or an image, in the order of the request.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, FailFast, Field, ValidationInfo, WithJsonSchema, model_validator

from clipft_tasks.spec.form import JsonSchema

from .admission import Admission
from .errors import RequestRejectedError
from .schemas import DATA_URI, EXAMPLE_PNG, Base64, Body, Embed, Text, decoded, example, is_data_uri

Encoding = Literal["float", "base64", "int8", "binary", "ubinary"]
TOKENS = (
    "`input` holds numbers of tokens, which are another model's: this model has a tokenizer of its own. Send texts "
    "(langchain-openai: OpenAIEmbeddings(check_embedding_ctx_length=False))."
)


def _image_bytes(value: object) -> object:
    """A data: URI as the bytes of its image. Nothing is fetched."""
    if isinstance(value, str) and not DATA_URI.match(value):
        what = "URLs are not fetched" if value[:4].lower() == "http" else "no image"
        raise ValueError(f"{what}: send the image itself, as data:image/png;base64,…")
    return decoded(value)


ImageBytes = Annotated[bytes, BeforeValidator(_image_bytes), Base64]


class TextPart(Body):
    """A text."""

    type: Literal["text"] = "text"
    text: Text


class ImageUrl(Body):
    url: ImageBytes = Field(description="a data: URI; other URLs are not fetched")
    detail: str | None = Field(None, max_length=16, description="ignored: a model sees each image at its own size")


class ImagePart(Body):
    """An image as a data: URI."""

    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl


def _part(value: object) -> object:
    """One thing to embed, in the one spelling."""
    match value:
        case str() if is_data_uri(value):
            return {"type": "image_url", "image_url": {"url": value}}
        case str():
            return {"type": "text", "text": value}
        case {"text": text, **rest} if not rest:
            return {"type": "text", "text": text}
        case {"image": str(image), **rest} if not rest:
            return {"type": "image_url", "image_url": {"url": image if ":" in image else f"data:;base64,{image}"}}
        case {"type": "image_url", "image_url": str(url)}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": ("text" | "image_url")}:
            return value
    raise ValueError('neither a text nor an image: send a string, {"text": …}, {"image": "data:…"} or an `image_url`')


STRING = {"type": "string", "minLength": 1}
PART: JsonSchema = {"anyOf": [STRING, {"type": "object"}]}
CONTENT: JsonSchema = {"anyOf": [STRING, {"type": "array", "items": PART, "minItems": 1}]}
Part = Annotated[TextPart | ImagePart, Field(discriminator="type"), BeforeValidator(_part)]


class Message(Body):
    role: str = Field("user", max_length=32, description="ignored: each part is embedded by itself")
    name: str | None = Field(None, max_length=200)
    content: Annotated[list[Part], WithJsonSchema(CONTENT)] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("content"), str):
            return data | {"content": [data["content"]]}
        return data


def _parts(value: object, info: ValidationInfo) -> object:
    """`input` as a list. Raises RequestRejectedError for numbers of tokens, and for more items than one request may hold."""
    if value is None:
        return None
    found = value if isinstance(value, list) else [value]
    first = found[0] if found else None
    if (isinstance(first, int) and not isinstance(first, bool)) or (
        isinstance(first, list) and first and isinstance(first[0], int)
    ):
        raise RequestRejectedError(422, TOKENS, "tokens")
    _count(len(found), info)
    return found


def _messages(value: object, info: ValidationInfo) -> object:
    if isinstance(value, list):
        contents = [m.get("content") for m in value if isinstance(m, dict)]
        _count(max(len(value), sum(len(c) if isinstance(c, list) else 1 for c in contents)), info)
    return value


def _count(items: int, info: ValidationInfo) -> None:
    if isinstance(info.context, Admission):
        info.context.check_items("inputs", items)


def split_model_id(name: str) -> tuple[str, str]:
    """`industrial@3`, or as MLflow calls it `clipft-industrial`, as domain and version; "" where one is not said."""
    domain, _, version = name.partition("@")
    return domain.removeprefix("clipft-"), version


MESSAGES: JsonSchema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["content"],
        "properties": {"role": {"type": "string"}, "name": {"type": "string"}, "content": CONTENT},
    },
}


class EmbeddingsRequest(Embed):
    """Texts and images, mixed, in order. `input` or `messages`, not both."""

    model_config = example(input=["a defective solar cell", f"data:image/png;base64,{EXAMPLE_PNG}"])

    input: Annotated[list[Part] | None, FailFast(), BeforeValidator(_parts), WithJsonSchema(CONTENT)] = Field(
        None, min_length=1, description="a text or a list; an image is a data: URI, or an object with `image` or `image_url`"
    )
    messages: Annotated[list[Message] | None, BeforeValidator(_messages), WithJsonSchema(MESSAGES)] = Field(
        None, min_length=1, description="as vLLM takes them; one embedding a part"
    )
    model: str | None = Field(None, max_length=200, description="a domain, or `domain@version` (`/v1/models`)")
    encoding_format: Encoding | None = Field(
        None,
        description="float (lists), base64 (of little-endian float32), int8 (lists, each vector scaled to its largest number), "
        "binary and ubinary (signs, eight a number, as int8 and uint8; the first dimension is the highest bit)",
    )
    user: str | None = Field(None, max_length=500, description="ignored")

    @model_validator(mode="after")
    def _one_of_both(self) -> "EmbeddingsRequest":
        if (self.input is None) == (self.messages is None):
            raise ValueError("say either `input` or `messages`")
        return self

    @property
    def asked(self) -> tuple[str, str]:
        domain, version = split_model_id(self.model or "")
        return self.domain or domain, self.version or version

    @property
    def parts(self) -> list[str | bytes]:
        """Texts and images as they were sent, in order."""
        found = self.input if self.input is not None else [part for m in self.messages or [] for part in m.content]
        return [part.text if isinstance(part, TextPart) else part.image_url.url for part in found]

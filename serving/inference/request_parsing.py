"""Bodies of inference requests: JSON or a multipart form, and how OpenAPI describes both. Here an image becomes bytes, once."""

from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from .schemas import InferenceBody

B = TypeVar("B", bound=InferenceBody)
FORM_LISTS = {"text": "texts", "class": "classes"}
FORM_VALUES = {"domain": "string", "dimensions": "integer", "paired": "boolean"}


async def parse(request: Request, body: type[B]) -> B:
    """The body: JSON, or a multipart form with files `image` and fields `text`, `class`, `domain`, `dimensions`, `paired`.

    Raises: RequestValidationError, which FastAPI answers with 422.
    """
    try:
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            return body.model_validate(await _form(request))
        return body.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False, include_input=False)) from None


async def _form(request: Request) -> dict[str, object]:
    form = await request.form(max_files=1000)
    values: dict[str, object] = {}
    lists: dict[str, list[object]] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            lists.setdefault("images", []).append({"base64": await value.read()})
        elif name in FORM_VALUES:
            values[name] = value
        else:
            lists.setdefault(FORM_LISTS.get(name, name), []).append(value)
    return values | lists


def documented(body: type[InferenceBody]) -> dict[str, Any]:  # what FastAPI's `openapi_extra` is typed as
    """OpenAPI of a body that is read by hand: JSON or a multipart form."""
    schema = body.model_json_schema()
    definitions, example = schema.pop("$defs", {}), schema.pop("example", None)
    for name in {"images", "texts"} & schema["properties"].keys():
        many = schema["properties"][name]
        if "$ref" in many["items"]:
            many["items"] = definitions["ImageFile"]
        schema["properties"][name] = {"anyOf": [many["items"], many], "description": many["description"]}
    fields = {
        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "text": {"type": "array", "items": {"type": "string"}},
        "class": {"type": "array", "items": {"type": "string"}},
    }
    values = {name: {"type": kind} for name, kind in FORM_VALUES.items() if name in schema["properties"]}
    content = {
        "application/json": {"schema": schema} | ({"example": example} if example else {}),
        "multipart/form-data": {"schema": {"type": "object", "properties": fields | values}},
    }
    return {"requestBody": {"required": True, "content": content}}

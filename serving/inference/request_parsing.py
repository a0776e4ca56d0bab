"""Bodies of requests: JSON or a multipart form, and how OpenAPI describes both."""

import base64
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from . import schemas

T = TypeVar("T", bound=schemas.Request)


async def parse(request: Request, model: type[T]) -> T:
    """The body as `model`: JSON, or a multipart form with files `image` and fields `text`, `class`, `domain`, `dimensions`, `paired`.

    Raises: RequestValidationError, which FastAPI answers with 422.
    """
    try:
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            return model.model_validate(await _form(request))
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False, include_input=False)) from None


async def _form(request: Request) -> dict[str, Any]:
    form = await request.form(max_files=1000)
    out: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            out.setdefault("images", []).append({"base64": base64.b64encode(await value.read()).decode()})
        elif name in ("domain", "dimensions", "paired"):
            out[name] = value
        else:
            out.setdefault({"text": "texts", "class": "classes"}.get(name, name), []).append(value)
    return out


def documented(model: type[schemas.Request]) -> dict[str, Any]:
    """OpenAPI of a body that is read by hand: JSON or a multipart form."""
    schema = model.model_json_schema()
    defs = schema.pop("$defs", {})
    for name in {"images", "texts"} & set(schema["properties"]):
        many = schema["properties"][name]
        if "$ref" in many["items"]:
            many["items"] = defs["ImageIn"]
        schema["properties"][name] = {"anyOf": [many["items"], many], "description": many["description"]}
    files = {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}}
    fields: dict[str, Any] = {
        "domain": {"type": "string"},
        "text": {"type": "array", "items": {"type": "string"}},
        "class": {"type": "array", "items": {"type": "string"}},
    }
    for name, kind in (("dimensions", "integer"), ("paired", "boolean")):
        if name in schema["properties"]:
            fields[name] = {"type": kind}
    body = {
        "required": True,
        "content": {
            "application/json": {"schema": schema, "example": schemas.EXAMPLES[model]},
            "multipart/form-data": {"schema": {"type": "object", "properties": {**files, **fields}}},
        },
    }
    return {"openapi_extra": {"requestBody": body}}

"""Bodies of inference requests: JSON or a multipart form, and how OpenAPI describes both. Here an image becomes bytes, once."""

import re
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from clipft_tasks.spec.form import JsonSchema

from .admission import Admission, is_plain
from .errors import RequestRejectedError
from .forms import is_form, read_form
from .schemas import InferenceBody
from .server import server_of

B = TypeVar("B", bound=InferenceBody)
BOM = b"\xef\xbb\xbf"
FORM_LISTS = {"image": "images", "text": "texts", "class": "classes"}
FORM_VALUES = {
    "domain": "string", "version": "string", "dimensions": "integer", "paired": "boolean", "coverage": "number", "explain": "boolean",
}  # fmt: skip
BOOLEANS = {"true": True, "false": False}
INTEGER = re.compile(r"(-?\d{1,18})(\.0+)?")
NUMBER = re.compile(r"\d{0,3}\.?\d{1,17}")


async def parse(request: Request, body: type[B]) -> B:
    """The body: JSON, or a multipart form with files `image` and fields `text`, `class`, `domain`, `version`, `dimensions`,
    `paired`, `coverage`, `explain`.

    Raises: RequestRejectedError; RequestValidationError.
    """
    raw, kind, server = request.state.body, request.headers.get("content-type", ""), server_of(request)
    with server.tracing.step("parse", {"bytes": len(raw)}):
        plain = not is_form(kind) and is_plain(raw)
        return await server.admission.off_loop(len(raw), lambda: read(raw, kind, body, server.admission, plain), is_plain=plain)


def read(raw: memoryview, content_type: str, body: type[B], admission: Admission, plain: bool = False) -> B:
    """Likewise, of the bytes of a body.

    Args:
        plain: it is JSON that `is_plain`.
    """
    try:
        if is_form(content_type):
            most = 2 * admission.options.max_items + admission.options.max_classes + len(FORM_VALUES)
            return body.model_validate(_values(raw, content_type, most), context=admission)
        raw = raw[len(BOM) :] if raw[: len(BOM)] == BOM else raw
        with admission.small_json(raw, plain) as small:
            return body.model_validate_json(small, context=admission)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False, include_input=False)) from None


def _values(raw: memoryview, content_type: str, most: int) -> dict[str, object]:
    values: dict[str, object] = {}
    lists: dict[str, list[object]] = {}
    for part in read_form(raw, content_type, most):
        if part.is_file and part.name != "image":
            raise RequestRejectedError(
                422, f"The form's field {part.name[:64]!r} is a file; files are named `image`.", "malformed"
            )
        if part.name in FORM_LISTS:
            item: object = {"base64": bytes(part.content)} if part.name == "image" else _text(part.name, part.content)
            lists.setdefault(FORM_LISTS[part.name], []).append(item)
        elif part.name in values:
            raise RequestRejectedError(422, f"The form's field {part.name[:64]!r} is there twice.", "malformed")
        else:
            values[part.name] = _value(part.name, _text(part.name, part.content))
    return values | lists


def _value(name: str, text: str) -> object:
    if FORM_VALUES.get(name) == "integer" and (number := INTEGER.fullmatch(text)):
        return int(number[1])
    if FORM_VALUES.get(name) == "number" and NUMBER.fullmatch(text):
        return float(text)
    if FORM_VALUES.get(name) == "boolean":
        return BOOLEANS.get(text.lower(), text)
    return text


def _text(name: str, content: bytearray) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise RequestRejectedError(422, f"The form's field {name[:64]!r} is not UTF-8.", "malformed") from None


def documented(body: type[InferenceBody], *, has_form: bool = True) -> JsonSchema:  # what FastAPI's `openapi_extra` is typed as
    """OpenAPI of a body that is read by hand: JSON, or also a multipart form."""
    schema = body.model_json_schema()
    definitions, example = schema.pop("$defs", {}), schema.pop("example", None)
    schema = _inlined(schema, definitions)
    for name in {"images", "texts"} & schema["properties"].keys():
        many = schema["properties"][name]
        schema["properties"][name] = {"anyOf": [many["items"], many], "description": many["description"]}
    content = {"application/json": {"schema": schema} | ({"example": example} if example else {})}
    if has_form:
        content["multipart/form-data"] = {"schema": _form_schema(schema)}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: Any, definitions: JsonSchema) -> Any:  # JSON
    """A schema with what it refers to in its place."""
    if isinstance(schema, list):
        return [_inlined(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if reference := schema.get("$ref"):
        return _inlined(definitions[reference.rpartition("/")[2]], definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items()}


def _not_null(schema: JsonSchema) -> JsonSchema:
    """The schema of a value that a form has or has not: a form knows no null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]
    return {**{k: v for k, v in schema.items() if k not in ("anyOf", "default")}, **kinds[0]} if kinds else schema


def _form_schema(schema: JsonSchema) -> JsonSchema:
    """A form of the same fields: one a list's item, by the name of one."""
    properties, required = schema["properties"], schema.get("required", [])
    items = {
        "image": {"type": "string", "format": "binary", "description": "a file"},
        "text": {"type": "string", "minLength": 1},
        "class": {"type": "string", "minLength": 1},
    }
    lists = {
        one: {"type": "array", "items": items[one], "minItems": 1}
        | ({"minItems": 2, "uniqueItems": True} if one == "class" else {})
        for one, many in FORM_LISTS.items()
        if many in properties
    }
    values = {name: _not_null(properties[name]) for name in FORM_VALUES if name in properties}
    needed = [one for one, many in FORM_LISTS.items() if many in required]
    return {"type": "object", "additionalProperties": False, "required": needed, "properties": lists | values}

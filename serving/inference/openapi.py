"""What every route has in common, said in the OpenAPI document: who may ask, how a request is refused, which headers come back."""

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from clipft_tasks.spec.form import JsonSchema

from ..http.problems import MEDIA_TYPE
from .security import Rule, Scope, rule_of

KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "The server's token (CLIPFT_SERVER_TOKEN), or a client's key (`clipft key add`) with the scope that a route asks.",
}
PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri", "description": "the code, as a URN"},
        "title": {"type": "string", "description": "what the code means"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what is wrong this time"},
        "code": {"type": "string", "description": "which error it is, never reworded"},
        "message": {"type": "string", "description": "the detail, where OpenAI's clients look for it"},
        "errors": {
            "type": "array",
            "description": "where a body does not fit its schema: the first places, without what was sent",
            "items": {"type": "object"},
        },
    },
}
REFUSALS = {
    "400": "The request cannot be read as it is.",
    "401": "No key or token was shown.",
    "403": "The key does not open this, or no key does.",
    "404": "There is no such thing.",
    "408": "The body did not come in time.",
    "409": "The server's state does not allow it.",
    "411": "The length of the body is missing.",
    "413": "The request is too large.",
    "415": "The body is compressed.",
    "422": "The body, or an item of it, is refused; the detail names it.",
    "429": "The key's quota is used up, or the address asks more than its share.",
    "500": "The server failed.",
    "503": "The server is busy or not ready: try again in a moment.",
    "507": "Nothing can be written.",
}
HEADERS = {
    "X-Clipft-Answer-Id": "The name of this answer, for feedback and deletion.",
    "X-Request-Id": "The id that the client gave its request, or the answer's.",
}
MODEL_HEADERS = {
    "X-Clipft-Domain": "Whose model answered.",
    "X-Clipft-Model-Version": "Its version.",
    "X-Clipft-Run-Id": "The MLflow run that it comes from.",
    "X-Clipft-Dataset": "The dataset version that it was trained on.",
    "X-Clipft-Dag-Run": "The DAG run that made it.",
    "X-Clipft-Truncated": "Numbers, from 1, of texts longer than the model's context; absent for none.",
}


def describe(app: FastAPI, is_open: bool) -> None:
    """Let the application's document say all that.

    Args:
        is_open: whether anybody may infer.
    """

    def document() -> JsonSchema:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app, is_open)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way


def _described(app: FastAPI, is_open: bool) -> JsonSchema:
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"key": KEY}
    schemas = components.setdefault("schemas", {})
    schemas["Problem"] = PROBLEM
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for route in app.routes:
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        for method in route.methods:
            operation = document["paths"][route.path_format].get(method.lower())
            if operation:
                _describe(operation, rule_of(route, method), is_open)
    return document


def _describe(operation: JsonSchema, rule: Rule, is_open: bool) -> None:
    if rule.scope is not None:
        nobody: list[dict[str, list[str]]] = [{}] if rule.scope is Scope.INFER and is_open else []
        operation["security"] = [*nobody, {"key": []}]
        operation["description"] = f"{operation.get('description', '')}\n\nScope of the key: `{rule.scope}`.".strip()
    headers = HEADERS | (MODEL_HEADERS if rule.is_inference else {})
    described = {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for status, text in REFUSALS.items():
        retry = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}} if status in ("429", "503") else {}
        operation["responses"][status] = {"description": text, "headers": described | retry, "content": problem}
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            response["headers"] = described

"""Refusals and failures over HTTP, as RFC 9457 has them: `application/problem+json` with a stable code.

A code is never reworded: programs go by it, people by `detail`. docs/errors.md lists all of them, those of `ClipftError` too.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"

# Titles of the codes that only a request can have.
TITLES = {
    "request.bad_image": "An image cannot be read",
    "request.busy": "The server is busy",
    "request.closed": "No key opens this on this server",
    "request.dimensions": "The model was not trained for embeddings of this length",
    "request.encoding": "Embeddings of this model cannot travel in this form",
    "request.failed": "The server failed at this",
    "request.forbidden": "The key does not open this",
    "request.head": "The head of the request cannot be taken",
    "request.large_head": "The head of the request is too large",
    "request.long_text": "A text is too long",
    "request.malformed": "The body does not fit its schema",
    "request.method": "This path has no such method",
    "request.no_key": "A key or the server's token is missing",
    "request.no_domain": "Several domains are live and the request names none",
    "request.no_length": "The length of the body is missing",
    "request.no_model": "No model of this domain is live",
    "request.non_finite": "The model gave NaN or infinity",
    "request.not_found": "There is no such thing",
    "request.not_writable": "Nothing can be written",
    "request.other_version": "The version that was asked for does not answer",
    "request.quota": "The quota of the key is used up",
    "request.slow_body": "The body did not come in time",
    "request.state": "The state of the server does not allow this",
    "request.tokens": "Tokens of another model were sent for texts",
    "request.too_large": "The request is too large",
    "request.too_many": "The request has too many parts",
    "request.too_often": "Too much of this client is being answered",
    "request.two_versions": "The request names two versions",
}
OF_STATUS = {
    400: "request.head", 401: "request.no_key", 403: "request.forbidden", 404: "request.not_found", 405: "request.method",
    408: "request.slow_body", 409: "request.state", 411: "request.no_length", 413: "request.too_large", 422: "request.malformed",
    429: "request.quota", 431: "request.large_head", 500: "request.failed", 503: "request.busy", 507: "request.not_writable",
}  # fmt: skip


def code_of(status: int, reason: str = "") -> str:
    """The code of a refusal: by its reason where that has one of its own, else by its status."""
    named = f"request.{reason}"
    return named if named in TITLES else OF_STATUS.get(status, "request.failed" if status >= 500 else "request.state")


def document(status: int, detail: str, code: str = "", errors: Sequence[Mapping[str, object]] = ()) -> dict[str, object]:
    """What a problem says.

    Args:
        code: default: that of the status.
        errors: places of the body that do not fit its schema.
    """
    code = code or code_of(status)
    title = TITLES.get(code) or HTTPStatus(status).phrase
    said: dict[str, object] = {
        "type": f"urn:clipft:error:{code}", "title": title, "status": status, "detail": detail, "code": code,
        "message": detail,  # where OpenAI's clients look for it
    }  # fmt: skip
    return said | ({"errors": list(errors)} if errors else {})


def problem(
    status: int,
    detail: str,
    code: str = "",
    *,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[Mapping[str, object]] = (),
) -> JSONResponse:
    """The response that says so."""
    return JSONResponse(document(status, detail, code, errors), status, dict(headers or {}), media_type=MEDIA_TYPE)

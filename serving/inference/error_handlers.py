"""How an exception is answered over HTTP: one place for status, reason and metric.

What was sent is never sent back: errors are few and short, however many things are wrong with a request.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from clipft_tasks.core.errors import ClipftError, TransientError

from .errors import NonFiniteOutputError, QueueFullError, RequestRejectedError, shortened
from .server import server_of

log = logging.getLogger("uvicorn.error")
LISTED = 10  # errors of one answer


def add_error_handlers(app: FastAPI) -> None:
    """Answer the exceptions of routes and server."""
    for kind in (
        RequestRejectedError, QueueFullError, NonFiniteOutputError, RequestValidationError, HTTPException, TransientError, ClipftError,
    ):  # fmt: skip
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    return answer(request, error)


def answer(request: Request, error: Exception) -> Response:
    """The response to a request that ended in an exception, which is counted and, where it is the server's fault, logged."""
    if isinstance(error, RequestRejectedError):
        if error.reason:
            server_of(request).metrics.refused.labels(error.reason).inc()
        busy = {"Retry-After": "1"} if error.status in (429, 503) else {}
        return _detail(error.detail, error.status, busy | error.headers)
    if isinstance(error, QueueFullError):
        return _detail(f"{error.why}; try again in a moment.", 503, {"Retry-After": "1"})
    if isinstance(error, NonFiniteOutputError):
        log.error("%s", error)
        server_of(request).metrics.refused.labels("non_finite").inc()
        return _detail(str(error), 500)
    if isinstance(error, RequestValidationError):
        return JSONResponse({"detail": listed(error.errors())}, 422)
    if isinstance(error, HTTPException):
        return _detail(str(error.detail), error.status_code, error.headers or {})
    if isinstance(error, TransientError):
        return _detail(str(error), 503, {"Retry-After": "5"})
    if isinstance(error, ClipftError):
        return _detail(str(error), 409, code=error.code)
    log.error(
        "%s %s failed (answer %s, request %r)", request.method, shortened(request.url.path), request.state.id,
        request.state.client_id, exc_info=error,
    )  # fmt: skip
    return _detail("The server failed at this; its log says why.", 500)


def listed(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first of pydantic's errors, without what was sent, and how many more there are."""
    first = [
        {
            "type": error["type"],
            "loc": [shortened(place, 64) if isinstance(place, str) else place for place in error["loc"]],
            "msg": shortened(_printable(error["msg"])),
        }
        for error in errors[:LISTED]
    ]
    more = len(errors) - LISTED
    return first + ([{"type": "more", "loc": [], "msg": f"and {more:,} more"}] if more > 0 else [])


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _detail(text: str, status: int, headers: Mapping[str, str] | None = None, *, code: str = "") -> Response:
    body = {"detail": shortened(_printable(text), 1000)} | ({"code": code} if code else {})
    return JSONResponse(body, status, dict(headers or {}))

"""How an exception is answered over HTTP: one place for status, reason and metric."""

import logging

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from clipft_tasks.core.errors import ClipftError, Transient

from .errors import NonFiniteOutputError, QueueFullError, RequestRejectedError
from .server import server_of

log = logging.getLogger("uvicorn.error")


def add_error_handlers(app: FastAPI) -> None:
    """Answer the exceptions of routes and server."""
    app.add_exception_handler(RequestRejectedError, _rejected)
    app.add_exception_handler(QueueFullError, _queue_full)
    app.add_exception_handler(NonFiniteOutputError, _non_finite)
    app.add_exception_handler(Transient, _transient)
    app.add_exception_handler(ClipftError, _refused)


async def _rejected(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRejectedError)
    if error.reason:
        server_of(request).metrics.refused.labels(error.reason).inc()
    return _detail(error.detail, error.status, retry_after=1 if error.status == 503 else None)


async def _queue_full(request: Request, error: Exception) -> Response:
    most = server_of(request).options.max_queue
    return _detail(f"{most} jobs are waiting already; try again in a moment.", 503, retry_after=1)


async def _non_finite(request: Request, error: Exception) -> Response:
    log.error("%s", error)
    server_of(request).metrics.refused.labels("non_finite").inc()
    return _detail(str(error), 500)


async def _transient(request: Request, error: Exception) -> Response:
    return _detail(str(error), 503, retry_after=5)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ClipftError)
    return _detail(str(error), 409, code=error.code)


def _detail(text: str, status: int, retry_after: int | None = None, code: str = "") -> Response:
    body = {"detail": text} | ({"code": code} if code else {})
    return JSONResponse(body, status, {"Retry-After": str(retry_after)} if retry_after else {})

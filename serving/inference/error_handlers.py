"""How an exception is answered over HTTP: one place for status, reason and metric.

What was sent is never sent back: errors are few and short, however many things are wrong with a request.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from clipft_tasks.core.errors import ClipftError, TransientError

from ..http.problems import code_of, problem
from .errors import NonFiniteOutputError, QueueFullError, RequestRejectedError, shortened
from .server import server_of

log = logging.getLogger("uvicorn.error")
LISTED = 10  # errors of one answer
NOT_FOUND = frozenset({"search.no_index"})  # codes of errors that say so; another one is about the server's state
NO_SUCH = {  # instead of Starlette's own words, which say no way out
    "Not Found": "There is no such path; /docs lists those that there are.",
    "Method Not Allowed": "This path has no such method; the header Allow names those that it has.",
}
SAID = 2  # of them, in its sentence


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
    if isinstance(error, RequestRejectedError) and error.reason:
        server_of(request).metrics.refused.labels(error.reason).inc()
    if isinstance(error, NonFiniteOutputError):
        log.error("%s", error)
        server_of(request).metrics.refused.labels("non_finite").inc()
    found = of_exception(error)
    if found is None:
        log.error("%s %s failed", request.method, shortened(request.url.path), exc_info=error)
        found = Problem(500, "The server failed at this; its log says why.")
    text = shortened(_printable(found.detail), 1000)
    return problem(found.status, text, found.code, headers=found.headers, errors=found.errors)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a request, or with one item of it."""

    status: int
    detail: str
    code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    errors: Sequence[Mapping[str, object]] = ()


def of_exception(error: Exception) -> Problem | None:
    """What an exception means for who asked; None for a fault of the server's own."""
    if isinstance(error, RequestRejectedError):
        busy = {"Retry-After": "1"} if error.status in (429, 503) else {}
        return Problem(error.status, error.detail, error.code or code_of(error.status, error.reason), busy | error.headers)
    if isinstance(error, QueueFullError):
        return Problem(503, f"{error.why}; try again in a moment.", headers={"Retry-After": "1"})
    if isinstance(error, NonFiniteOutputError):
        return Problem(500, str(error), code_of(500, "non_finite"))
    if isinstance(error, RequestValidationError):
        errors = listed(error.errors())
        return Problem(422, sentence(errors), errors=errors)
    if isinstance(error, HTTPException):
        detail = str(error.detail)
        return Problem(error.status_code, NO_SUCH.get(detail, detail), headers=error.headers or {})
    if isinstance(error, TransientError):
        return Problem(503, str(error), headers={"Retry-After": "5"})
    if isinstance(error, ClipftError):
        return Problem(404 if error.code in NOT_FOUND else 409, str(error), error.code)
    return None


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


def sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """The first of listed errors as a sentence."""
    told = [": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in errors[:SAID]]
    more = len(errors) - SAID
    return "; ".join(told) + ("; and more in `errors`" if more > 0 else "") + "."


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()

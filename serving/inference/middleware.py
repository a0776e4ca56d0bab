"""What happens around every request: an id, a limit on its size, and the service's own metrics."""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from .replicas import REPLICA_ID
from .server import server_of

log = logging.getLogger("uvicorn.error")
MAX_ID = 64


async def observe(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Answer a request, with its id in `X-Request-Id`, and count it by route, domain and status."""
    server = server_of(request)
    began = time.perf_counter()
    request.state.domain = ""  # routes say whose model a request was about, see `count_for`
    request.state.id = request.headers.get("x-request-id", "")[:MAX_ID] or uuid.uuid4().hex
    response = _too_large(request, server.options.max_body_mb)
    if response is None:
        try:
            response = await call_next(request)
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path)
            response = JSONResponse({"detail": "The server failed at this; its log says why."}, 500)
    route = getattr(request.scope.get("route"), "path", "unknown")
    response.headers["X-Request-Id"] = request.state.id
    if server.replicas.names:
        response.headers[REPLICA_ID] = server.replicas.id
    server.metrics.requests.labels(route, request.state.domain, str(response.status_code)).inc()
    server.metrics.latency.labels(route).observe(time.perf_counter() - began)
    return response


def count_for(request: Request, domain: str) -> None:
    """From now on a request counts as one of this domain. For domains that exist: anybody can ask for any name."""
    request.state.domain = domain


def _too_large(request: Request, limit: float) -> Response | None:
    """The refusal of a body that is larger than `limit` MiB, or does not say how large it is; None for any other."""
    if request.method not in ("POST", "PUT"):
        return None
    length = request.headers.get("content-length")
    if length is None:
        return JSONResponse({"detail": "The request is refused: send a Content-Length."}, 411)
    if int(length) > limit * 2**20:
        why = f"{int(length):,} bytes, more than {limit:g} MiB"
        return JSONResponse({"detail": f"The request is refused: {why}."}, 413)
    return None

"""Whether the server is alive and ready, and its metrics."""

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from clipft_tasks.contracts.serving import Liveness, Readiness

from ..security import HEALTH, METRICS, Scope, caller_of
from ..server import ServerDep

router = APIRouter()


@router.head("/healthz", dependencies=HEALTH, include_in_schema=False)
@router.get("/healthz", dependencies=HEALTH)
async def healthz(server: ServerDep) -> Liveness:
    """Is the process alive, and each of its threads? 500 says which one has ended or hangs."""
    if problem := server.thread_problem():
        raise HTTPException(500, f"{problem}; restart the server.")
    return Liveness(status="alive")


@router.head("/readyz", dependencies=HEALTH, include_in_schema=False)
@router.get("/readyz", dependencies=HEALTH)
async def readyz(request: Request, server: ServerDep, response: Response) -> Readiness:
    """Can it answer? Not before the registry's champions are live. Why they are not is told in full with the token."""
    store = server.store
    is_ready = bool(store.versions) and not store.is_starting and not server.is_ending.is_set()
    if not is_ready:
        response.status_code = 503
    in_full = caller_of(request).may(Scope.OPERATE)
    return Readiness(
        ready=is_ready,
        live=store.versions,
        held=store.held,
        device=str(server.engine.device),
        problem=store.problem if in_full else store.problem.partition(":")[0],
    )


@router.get("/metrics", dependencies=METRICS, response_class=PlainTextResponse)
async def metrics(server: ServerDep) -> Response:
    """Metrics for Prometheus."""
    return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

"""Whether the server is alive and ready, its metrics, and the page to try it on."""

from pathlib import Path

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from clipft_tasks.contracts.serving import Liveness, Readiness

from ..server import ServerDep

PLAYGROUND = Path(__file__).parents[1] / "playground.html"
router = APIRouter()


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz(server: ServerDep) -> Liveness:
    """Is the process alive, and each of its threads? 500 says which one has ended or hangs."""
    if problem := server.thread_problem():
        raise HTTPException(500, f"{problem}; restart the server.")
    return Liveness(status="alive")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz")
async def readyz(server: ServerDep, response: Response) -> Readiness:
    """Can it answer? Not before a model is live."""
    live = server.store.versions
    if not live:
        response.status_code = 503
    store, device = server.store, str(server.engine.device)
    return Readiness(ready=bool(live), live=live, held=store.held, device=device, problem=store.problem)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(server: ServerDep) -> Response:
    """Metrics for Prometheus."""
    return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def playground() -> str:
    return PLAYGROUND.read_text("utf-8")

"""How far what the live versions see is from what they were trained on."""

from fastapi import APIRouter, HTTPException, Request

from clipft_tasks.contracts.drift import DriftSnapshot, WindowRows

from ..drift_snapshots import merge_rows, merge_snapshots
from ..middleware import count_for
from ..security import OPERATE
from ..server import RelayDep, ServerDep

router = APIRouter()


@router.get("/v1/drift/{domain}")
def drift(domain: str, request: Request, server: ServerDep, relay: RelayDep) -> DriftSnapshot:
    """How far what the live version sees, on all replicas together, is from its reference, measured now."""
    own = server.monitor.measure(domain)
    if own is None:
        raise HTTPException(404, f"No live version of {domain} with a reference.")
    count_for(request, domain)
    return merge_snapshots(own, relay.fetch_all(DriftSnapshot))


@router.get("/v1/windows/{domain}", dependencies=OPERATE)
def window(domain: str, request: Request, server: ServerDep, relay: RelayDep) -> WindowRows:
    """The rows of every replica's window: image statistics, similarity with the classes. For the suggestion."""
    own = server.monitor.window_rows(domain)
    if own is None:
        raise HTTPException(404, f"No live version of {domain} with a reference.")
    count_for(request, domain)
    return merge_rows([own, *relay.fetch_all(WindowRows)])

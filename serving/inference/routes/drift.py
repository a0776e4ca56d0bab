"""How far what the live versions see is from what they were trained on."""

from fastapi import APIRouter, HTTPException, Request

from clipft_tasks.contracts.drift import DriftSnapshot, WindowRows

from ..drift_snapshots import merge_rows, merge_snapshots
from ..errors import shortened
from ..middleware import count_for
from ..security import OPERATE, Scope, caller_of
from ..server import RelayDep, ServerDep

router = APIRouter()
OLDEST = 30.0  # seconds of a measurement that everybody may see; the monitor's own are younger while anything comes


@router.get("/v1/drift/{domain}")
def drift(domain: str, request: Request, server: ServerDep, relay: RelayDep) -> DriftSnapshot:
    """How far what the live version sees is from its reference.

    With the token: of all replicas together, measured now. Without: this replica's measurement, at most half a minute old.
    """
    with_token = caller_of(request).may(Scope.OPERATE)
    own = server.monitor.measure(domain, oldest=0 if with_token else OLDEST)
    if own is None:
        raise _unknown(domain)
    count_for(request, domain)
    return merge_snapshots(own, relay.fetch_all(DriftSnapshot) if with_token else [])


@router.get("/v1/windows/{domain}", dependencies=OPERATE)
def window(domain: str, request: Request, server: ServerDep, relay: RelayDep) -> WindowRows:
    """The rows of every replica's window: image statistics, similarity with the classes. For the suggestion."""
    own = server.monitor.window_rows(domain)
    if own is None:
        raise _unknown(domain)
    count_for(request, domain)
    return merge_rows([own, *relay.fetch_all(WindowRows)])


def _unknown(domain: str) -> HTTPException:
    return HTTPException(404, f"No live version of {shortened(domain, 64)} with a reference.")

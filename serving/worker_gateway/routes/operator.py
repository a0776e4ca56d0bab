"""What the operator asks: invitations, who has joined, and turning a worker away."""

import time
from dataclasses import asdict

from fastapi import APIRouter, Depends

from clipft_tasks.contracts.worker_gateway import Invitation, WorkerInfo, WorkerList

from ..authentication import GatewayDep, require_operator
from ..errors import RefusedError
from ..schemas import InvitationRequest
from ..store import NAME

router = APIRouter(prefix="/admin", dependencies=[Depends(require_operator)])


@router.post("/invitations")
def invite(body: InvitationRequest, gateway: GatewayDep) -> Invitation:
    """A code that lets a machine join once, under this name."""
    if not NAME.fullmatch(body.name):
        raise RefusedError(
            422, "A worker's name has small letters, digits and hyphens, at most 40.", code="gateway.invalid_name"
        )
    code = gateway.store.invite(body.name, body.hours)
    return Invitation(code=code, url=gateway.settings.airflow_address.rstrip("/"), hours=body.hours)


@router.get("/workers")
def workers(gateway: GatewayDep) -> WorkerList:
    """Who has joined, is invited, or was revoked."""
    infos = [WorkerInfo.model_validate(asdict(worker)) for worker in gateway.store.workers()]
    return WorkerList(workers=infos, invitations=gateway.store.invitations(), time=time.time())


@router.delete("/workers/{name}")
def revoke(name: str, gateway: GatewayDep) -> dict[str, bool]:
    """Turn a worker away from now on."""
    if not gateway.store.revoke(name):
        raise RefusedError(404, f"No worker {name!r} has joined or is invited.", code="gateway.unknown_worker")
    return {"revoked": True}

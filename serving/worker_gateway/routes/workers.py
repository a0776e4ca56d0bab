"""What workers ask: to join, who they are to the control plane, and to leave."""

import time
from dataclasses import asdict

from fastapi import APIRouter

from clipft_tasks.contracts.worker_gateway import Addresses, Enrollment, Greeting, Installation
from clipft_tasks.core import versions

from ..authentication import AGAIN, Gateway, GatewayDep, WorkerDep
from ..errors import RefusedError
from ..schemas import CodeRequest

router = APIRouter(prefix="/v1")


def _installation(gateway: Gateway) -> Installation:
    settings = gateway.settings
    airflow = settings.airflow_address.rstrip("/")
    addresses = Addresses(
        airflow=airflow,
        mlflow=settings.mlflow_address.rstrip("/"),
        data=settings.data_address.rstrip("/"),
        studies=f"{airflow}/gateway/v1/studies" if settings.tuning_url else "",
    )
    return Installation(**asdict(versions.here()), time=time.time(), addresses=addresses)


def _bad_code() -> RefusedError:
    return RefusedError(
        403, f"That code is unknown, was used, or is too old. {AGAIN.format(name='NAME')}", code="gateway.invalid_invitation"
    )


@router.get("/time")
def now() -> dict[str, float]:
    return {"time": time.time()}


@router.post("/look")
def look(body: CodeRequest, gateway: GatewayDep) -> Greeting:
    """What a machine must match before it joins; the code can still be used afterwards."""
    name = gateway.store.invited_name(body.code)
    if name is None:
        raise _bad_code()
    return Greeting(**_installation(gateway).model_dump(), name=name)


@router.post("/join")
def join(body: CodeRequest, gateway: GatewayDep) -> Enrollment:
    """Use a code up: the machine is a worker from now on, with the secret of the answer."""
    worker = gateway.store.join(body.code, body.device)
    if worker is None:
        raise _bad_code()
    secret = gateway.tokens.worker_secret(worker.name, worker.nonce)
    return Enrollment(**_installation(gateway).model_dump(), name=worker.name, secret=secret)


@router.get("/me")
def me(worker: WorkerDep, gateway: GatewayDep) -> Greeting:
    """What a worker must match now."""
    return Greeting(**_installation(gateway).model_dump(), name=worker.name)


@router.delete("/me")
def leave(worker: WorkerDep, gateway: GatewayDep) -> dict[str, bool]:
    """Its secret opens nothing from now on."""
    return {"left": gateway.store.revoke(worker.name)}

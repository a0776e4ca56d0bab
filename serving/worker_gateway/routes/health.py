"""What Airflow and the health check ask."""

from fastapi import APIRouter

from ..authentication import GatewayDep

router = APIRouter()


@router.get("/jwks")
def jwks(gateway: GatewayDep) -> dict[str, object]:
    """The key with which Airflow checks what the gateway signs."""
    return gateway.tokens.jwks()


@router.get("/healthz")
def healthz(gateway: GatewayDep) -> dict[str, str]:
    gateway.store.invitations()  # the table answers
    return {"status": "ok"}

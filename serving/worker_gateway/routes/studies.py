"""Tuning studies, where the control plane keeps them in a database that no worker reaches."""

from fastapi import APIRouter, Depends, Request, Response

from ..authentication import calling_worker
from ..study_proxy import StudyProxy


def router_for(url: str) -> APIRouter:
    """Routes to the studies of this database (SQLAlchemy URL)."""
    router, proxy = APIRouter(prefix="/v1/studies", dependencies=[Depends(calling_worker)]), StudyProxy(url)

    @router.post("/{call}")
    async def study(call: str, request: Request) -> Response:
        return await proxy.answer(call, await request.body())

    return router

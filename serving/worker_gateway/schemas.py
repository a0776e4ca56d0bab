"""What the worker gateway is asked; what it answers is in `clipft_tasks.contracts.worker_gateway`."""

from pydantic import BaseModel, Field

from .store import HOURS


class InvitationRequest(BaseModel):
    name: str = Field(max_length=40)
    hours: float = Field(HOURS, gt=0, le=24 * 30)


class CodeRequest(BaseModel):
    code: str = Field(max_length=200)
    device: str = Field("", max_length=200)

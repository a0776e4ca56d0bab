"""What the worker gateway answers workers and the operator, as JSON over HTTP."""

from typing import Self

from pydantic import ConfigDict, ValidationError

from ..core.versions import Software
from .base import Record

CLOCK_LEEWAY = 30  # seconds that the clocks of gateway and worker may differ


class Answer(Record):
    """A worker of an older release ignores fields that a newer gateway added."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Refusal(Answer):
    """Why a request was refused, with the way out and the code of docs/errors.md."""

    detail: str
    code: str = "worker.gateway_refused"  # of a gateway of the release before, which says none

    @classmethod
    def read(cls, body: bytes) -> Self | None:
        """What a body says; None where it is no refusal of the gateway's."""
        try:
            return cls.model_validate_json(body)
        except ValidationError:
            return None


class Addresses(Answer):
    """Where a team's services are, as a worker must call them; `studies` is "" where workers bring their own."""

    airflow: str
    mlflow: str
    data: str
    studies: str = ""


class Installation(Answer):
    """What a worker compares itself with, and where everything is.

    Attributes:
        versions: of the programs that both sides must share, by name.
        code: digest of the code; revision: of its repository, "" where there is none.
        time: the control plane's clock, seconds since 1970.
    """

    versions: dict[str, str]
    code: str
    revision: str
    time: float
    addresses: Addresses

    @property
    def software(self) -> Software:
        return Software(self.versions, self.code, self.revision)


class Greeting(Installation):
    """To a machine that showed a code or a secret: the name by which it is known."""

    name: str


class Enrollment(Greeting):
    """To a machine that joined: its secret, which is told once."""

    secret: str


class Invitation(Answer):
    """A code that lets a machine join once.

    Attributes:
        url: what the machine must call. hours: that the code holds.
    """

    code: str
    url: str
    hours: float


class WorkerInfo(Answer):
    """A worker that joined once. Times are seconds since 1970."""

    name: str
    joined: float
    seen: float | None
    device: str
    revoked: float | None


class WorkerList(Answer):
    """Workers, and the names that may still join with the time until when."""

    workers: list[WorkerInfo]
    invitations: dict[str, float]
    time: float

"""A study's storage over HTTP: optuna's own remote storage, with one POST a call instead of gRPC, and Basic credentials.

What passes a team's gateway is plain HTTP with a name and a password, and the worker needs no database driver. The calls and
their messages are optuna's (`optuna.storages.GrpcStorageProxy`); only the way they travel is ours.
"""

import warnings
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import optuna
from google.protobuf.message import Message
from optuna.storages._grpc.auto_generated import api_pb2
from optuna.storages._grpc.client import GrpcClientCache

from ..contracts.worker_gateway import Refusal
from ..core.errors import ClipftError, TransientError

CODE = "X-Optuna-Code"
# What a worker may do: everything but deleting a study.
CALLS = frozenset({
    "CreateNewStudy", "SetStudyUserAttribute", "SetStudySystemAttribute", "GetStudyIdFromName", "GetStudyNameFromId",
    "GetStudyDirections", "GetStudyUserAttributes", "GetStudySystemAttributes", "GetAllStudies", "CreateNewTrial",
    "SetTrialParameter", "GetTrialIdFromStudyIdTrialNumber", "SetTrialStateValues", "SetTrialIntermediateValue",
    "SetTrialUserAttribute", "SetTrialSystemAttribute", "GetTrial", "GetTrials",
})  # fmt: skip


class _RefusedError(grpc.RpcError):  # type: ignore[misc]  # grpc has no types
    """A refusal that optuna's client understands."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code


class _Stub:
    """Every call of optuna's storage service, by name."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def __getattr__(self, call: str) -> Callable[[Message], Message]:
        def ask(request: Message) -> Message:
            try:
                answer = self._client.post(f"/{call}", content=request.SerializeToString())
            except httpx.TransportError as error:
                raise TransientError(f"The tuning studies at {self._client.base_url} do not answer: {error!r}.") from error
            if name := answer.headers.get(CODE):
                raise _RefusedError(grpc.StatusCode[name], answer.text)
            if answer.status_code >= 500:
                raise TransientError(
                    f"The tuning studies at {self._client.base_url} answered {answer.status_code}: {answer.text}"
                )
            if answer.is_error:
                refusal = Refusal.read(answer.content) or Refusal(detail=answer.text)
                what, why = f"tuning studies at {self._client.base_url}", f"{call} was refused: {refusal.detail.rstrip('.')}"
                raise ClipftError(what, why, "See `clipft worker check`.", code=refusal.code)
            return getattr(api_pb2, f"{call}Reply").FromString(answer.content)

        return ask


class HttpStorage(optuna.storages.GrpcStorageProxy):
    """Studies behind a worker gateway.

    Args:
        url: where the calls go, `https://host/gateway/v1/studies`.
        user, password: of the worker.
    Raises:
        TransientError: at a call, when nobody answers.
        ClipftError: at a call, when this worker is turned away.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self._url, self._who = url, (user, password)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__()

    def _setup(self) -> None:
        self._channel = httpx.Client(base_url=self._url, auth=self._who, timeout=60)
        stub: Any = _Stub(self._channel)  # every call of optuna's generated stub, without its type
        self._stub = stub
        self._cache = GrpcClientCache(stub)  # reads trials that ended only once

"""Tuning studies for workers that reach no database: optuna's own storage calls, over the worker gateway."""

import grpc
import optuna
from fastapi import HTTPException, Response
from fastapi.concurrency import run_in_threadpool
from google.protobuf.message import DecodeError
from optuna.storages._grpc import servicer
from optuna.storages._grpc.auto_generated import api_pb2

from clipft_tasks.tuning.remote_storage import CALLS, CODE

from .errors import RefusedError

STATUS = {grpc.StatusCode.NOT_FOUND: 404, grpc.StatusCode.ALREADY_EXISTS: 409}


class _AbortError(Exception):
    pass


class _Context:
    """Where a servicer leaves the code and details of a refusal."""

    code: grpc.StatusCode
    details: str

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code, details
        raise _AbortError


class StudyProxy:
    """The studies of one database.

    Args:
        url: SQLAlchemy URL; its tables are made at the first call, so that the gateway does not wait for the database.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._servicer: servicer.OptunaStorageProxyService | None = None

    async def answer(self, call: str, body: bytes) -> Response:
        """One storage call. Raises RefusedError for a call that workers may not make, HTTPException (503) when the database is away."""
        if call not in CALLS:
            raise RefusedError(404, f"A worker may not {call} studies.", code="gateway.not_allowed")
        return await run_in_threadpool(self._answer, call, body)

    def _answer(self, call: str, body: bytes) -> Response:
        context = _Context()
        try:
            request = getattr(api_pb2, f"{call}Request").FromString(body)
            reply = getattr(self._service(), call)(request, context)
        except DecodeError:
            raise RefusedError(400, "That is no request of optuna's.", code="gateway.invalid_request") from None
        except _AbortError:
            status = STATUS.get(context.code, 422)
            return Response(context.details, status, headers={CODE: context.code.name})
        except Exception as error:
            raise HTTPException(503, f"The database of studies does not answer: {type(error).__name__}") from error
        return Response(reply.SerializeToString(), media_type="application/octet-stream")

    def _service(self) -> servicer.OptunaStorageProxyService:
        if self._servicer is None:
            waits = {"connect_args": {"timeout": 60}} if self._url.startswith("sqlite:") else {"pool_pre_ping": True}
            self._servicer = servicer.OptunaStorageProxyService(optuna.storages.RDBStorage(self._url, engine_kwargs=waits))
        return self._servicer

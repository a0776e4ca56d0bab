"""A request that the worker gateway refuses, and how that is answered over HTTP."""

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from clipft_tasks.contracts.worker_gateway import Refusal


class RefusedError(HTTPException):
    """A refusal: status, what is wrong with the way out, and a code as docs/errors.md lists them."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, *, code: str) -> None:
        super().__init__(status, detail, headers)
        self.code = code


def add_error_handler(app: FastAPI) -> None:
    """Answer a refusal with its code."""
    app.add_exception_handler(RefusedError, _refused)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return JSONResponse(Refusal(detail=error.detail, code=error.code).to_json(), error.status_code, error.headers)

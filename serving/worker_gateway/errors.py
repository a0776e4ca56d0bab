"""A request that the worker gateway refuses, and how that is answered over HTTP."""

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from clipft_tasks.contracts.worker_gateway import Refusal


class RefusedError(HTTPException):
    """A refusal: status, what is wrong with the way out, and a code as docs/errors.md lists them."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, *, code: str) -> None:
        super().__init__(status, detail, headers)
        self.code = code


def add_error_handler(app: FastAPI) -> None:
    """Answer a refusal with its code; never with what was sent."""
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    why = f"{'.'.join(str(place)[:64] for place in first['loc'])}: {first['msg']}"[:300].encode("utf-8", "replace").decode()
    return answer(RefusedError(422, f"The request is not as it must be: {why}.", code="gateway.invalid_body"))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return answer(error)


def answer(error: RefusedError) -> Response:
    """The response that says so."""
    return JSONResponse(Refusal(detail=error.detail, code=error.code).to_json(), error.status_code, error.headers)

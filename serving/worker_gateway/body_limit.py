"""Bodies of the worker gateway: small, said how long beforehand, and in time. Looked at before anything reads them."""

import asyncio

from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RefusedError, answer

MOST, MOST_OF_STUDIES = 64 * 2**10, 4 * 2**20  # bytes; a call of a study may carry many trials
SECONDS = 15.0  # in which a body must come


class BodyLimit:
    """The ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        most = MOST_OF_STUDIES if "/v1/studies/" in scope["path"] else MOST
        length = headers.get(b"content-length", b"0" if scope["method"] == "DELETE" else b"")
        if b"transfer-encoding" in headers or not length.isdigit():
            return await _refuse(411, "Send a Content-Length.")(scope, receive, send)
        if len(length) > 12 or int(length) > most:
            return await _refuse(413, f"A body has at most {most:,} bytes here.")(scope, receive, send)
        until = asyncio.get_running_loop().time() + SECONDS

        async def receive_in_time() -> Message:
            async with asyncio.timeout_at(until):
                return await receive()

        began = False

        async def send_on(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, receive_in_time, send_on)
        except TimeoutError:
            if began:
                raise
            await _refuse(408, "The rest of the body did not come.")(scope, receive, send)


def _refuse(status: int, detail: str) -> Response:
    return answer(RefusedError(status, detail, {"Connection": "close"}, code="gateway.invalid_body"))

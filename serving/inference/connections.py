"""Connections that cost too much: heads that do not end, or are too large, and more connections than the process should hold.

uvicorn has no limit of its own for these: start it with `--http serving.inference.connections:GuardedProtocol`. Bodies are watched
by `middleware`.
"""

import asyncio
import time
from asyncio import TimerHandle
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0  # in which the head of a request must come
HEAD_BYTES = 64 * 2**10
HEADERS = 100
CONNECTIONS = 2000
CLOSED = "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n{}"


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 over httptools, with limits on what a client may hold open."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # uvicorn's own
        super().__init__(*args, **kwargs)
        self.waits_since = time.monotonic()  # for a request's head; inf while one is answered
        self._timer: TimerHandle | None = None
        self._head_bytes = self._headers = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            _close_longest_waiting(self.connections)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._timer is not None:  # within a head, as far as is known
            self._head_bytes += len(data)
        super().data_received(data)
        if self._timer is not None and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._refuse("431 Request Header Fields Too Large", f"The head of a request may have {HEAD_BYTES:,} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        if self._headers <= HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self.waits_since = float("inf")
        head = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if self._headers > HEADERS or head > HEAD_BYTES:
            self._refuse(
                "431 Request Header Fields Too Large", f"A request may have {HEADERS} headers of {HEAD_BYTES:,} bytes."
            )
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and not self.pipeline:
            self._await_head()

    def _await_head(self) -> None:
        self._stop_timer()
        self._head_bytes = self._headers = 0
        self.waits_since = time.monotonic()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, status: str, detail: str) -> None:
        body = f'{{"detail": "{detail}"}}'
        self._stop_timer()
        self.transport.write(CLOSED.format(status, len(body), "", body).encode())
        self.transport.close()


def _close_longest_waiting(connections: Iterable[object]) -> None:
    """Make room: of those that ask nothing, the one that has done so for the longest time goes."""
    waiting = [c for c in connections if isinstance(c, GuardedProtocol) and c.waits_since < float("inf")]
    if waiting:
        min(waiting, key=lambda c: c.waits_since).transport.close()

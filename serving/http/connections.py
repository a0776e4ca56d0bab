"""Connections that cost too much: heads that do not end, or are too large, answers that are not read, many requests in one piece,
and more connections than the process should hold.

uvicorn has no limit of its own for these: start it with `--http serving.http.connections:GuardedProtocol`. Bodies are watched
by the application.
"""

import asyncio
import json
import time
from asyncio import TimerHandle
from collections import Counter
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .addresses import address_of
from .problems import document

HEAD_SECONDS = 10.0  # in which the head of a request must come
UNREAD_SECONDS = 10.0  # in which a client must read a piece of its answer
UNREAD_BYTES = 192 * 2**20  # of answers that all connections together may leave unread
LARGE_ANSWER = 2**20  # bytes of one after which that is looked at
HEAD_BYTES = 64 * 2**10
HEADERS = 100
PIPELINED = 8  # requests that a connection may send before the first is answered
CONNECTIONS = 2000
CLOSED = "HTTP/1.1 {}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n{}"


class _RefusedError(Exception):
    """Ends the parsing of what a connection has sent."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 over httptools, with limits on what a client may hold open."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # uvicorn's own
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # nothing here speaks WebSocket
        self.waits_since = time.monotonic()  # for a request's head; inf while one is answered
        self.asked_at, self.address = 0.0, ""
        self._timer: TimerHandle | None = None
        self._reading: TimerHandle | None = None
        self._unread = 0  # bytes, when that was last looked at
        self._head_bytes = self._headers = 0
        self._in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = address_of(self.client[0]) if self.client else ""
        if len(self.connections) > CONNECTIONS:
            _make_room(self.connections)
        self._await_head()
        self._reading = self.loop.call_later(UNREAD_SECONDS, self._check_reading)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._reading is not None:
            self._reading.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._timer is not None and not self._in_body:  # within a head, as far as is known
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
        self.waits_since, self.asked_at, self._in_body = float("inf"), time.monotonic(), True
        head = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if self._headers > HEADERS or head > HEAD_BYTES:
            self._refuse(
                "431 Request Header Fields Too Large", f"A request may have {HEADERS} headers of {HEAD_BYTES:,} bytes."
            )
            raise _RefusedError
        if len(self.pipeline) >= PIPELINED or self.transport.is_closing():
            self.transport.close()
            raise _RefusedError
        self._headers = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size() > LARGE_ANSWER:
            _limit_unread(self.connections)
        if not self.transport.is_closing() and not self.pipeline:
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            self._refuse("400 Bad Request", "This is no request of HTTP/1.1.")

    def resume_writing(self) -> None:
        self._unread = 0  # some was read
        super().resume_writing()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: whoever asks to speak another protocol is answered in this one, and no line of the log."""

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

    def _check_reading(self) -> None:
        """End a connection that has something to read and read none of it since this was last looked at; closing would wait for it."""
        unread = self.transport.get_write_buffer_size()
        if unread and unread >= self._unread > 0:
            return self.transport.abort()
        self._unread = unread
        self._reading = self.loop.call_later(UNREAD_SECONDS, self._check_reading)

    def _refuse(self, status: str, detail: str) -> None:
        body = json.dumps(document(int(status.partition(" ")[0]), detail))
        self._stop_timer()
        self.transport.write(CLOSED.format(status, len(body), "", body).encode())
        self.transport.close()


def _make_room(connections: Iterable[object]) -> None:
    """Of the address that has most connections the one goes that has waited longest, or was the last to ask where none waits."""
    open_ones = [c for c in connections if isinstance(c, GuardedProtocol) and not c.transport.is_closing()]
    counts = Counter(c.address for c in open_ones)
    if counts:
        greedy = counts.most_common(1)[0][0]
        min((c for c in open_ones if c.address == greedy), key=lambda c: (c.waits_since, -c.asked_at)).transport.close()


def _limit_unread(connections: Iterable[object]) -> None:
    """Of the address that leaves most unread the connection goes that leaves most, where all together leave too much."""
    unread = {c: c.transport.get_write_buffer_size() for c in connections if isinstance(c, GuardedProtocol)}
    if sum(unread.values()) > UNREAD_BYTES:
        of = Counter[str]()
        for one, count in unread.items():
            of[one.address] += count
        greedy = of.most_common(1)[0][0]
        max((one for one in unread if one.address == greedy), key=unread.__getitem__).transport.abort()

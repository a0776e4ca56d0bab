"""How a server process ends: `/readyz` says so a moment before the port closes, and one whose threads are gone can end by itself."""

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .server import Server

log = logging.getLogger("uvicorn.error")
BETWEEN = 10.0  # seconds between looks at the threads
LOOKS = 3  # looks in a row that find a thread gone or stuck


@contextmanager
def announced_end(server: Server, seconds: float) -> Iterator[None]:
    """While this lasts, the first SIGTERM makes `/readyz` 503, so that a balancer sends nobody else; `seconds` later the port closes
    and what is being answered is finished. Another signal ends it at once."""
    loop, ends = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

    def announce(number: int, frame: FrameType | None) -> None:
        if server.is_ending.is_set():
            return end(number, frame)
        server.is_ending.set()
        loop.call_soon_threadsafe(lambda: loop.call_later(seconds, end, number, None))

    def end(number: int, frame: FrameType | None) -> None:
        if callable(ends):
            ends(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    try:
        signal.signal(signal.SIGTERM, announce)
    except ValueError:  # not the main thread: whoever runs this ends it in another way
        yield
        return
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is announce:
            signal.signal(signal.SIGTERM, ends)


async def watch_threads(server: Server) -> None:
    """End the process where a thread is gone or stuck for good: whatever started it starts it anew, which nobody does for a server
    that is only unhealthy."""
    seen = 0
    while True:
        await asyncio.sleep(BETWEEN)
        problem = server.thread_problem()
        seen = seen + 1 if problem else 0
        if seen >= LOOKS:
            log.critical("%s; the server ends, to be started anew", problem)
            os.kill(os.getpid(), signal.SIGTERM)
            return

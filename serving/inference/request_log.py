"""Which request a line of the log is about: every line that is written while one is answered ends with its ids."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

LOGGERS = ("", "uvicorn", "uvicorn.error", "uvicorn.access", "clipft.audit")
# https://www.w3.org/TR/trace-context: version, trace, span, flags; later versions may add more.
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


@dataclass(frozen=True)
class RequestIds:
    """The server's name of the answer, the client's of its request, and the trace that it belongs to; "" for none."""

    answer: str
    client: str = ""
    trace: str = ""

    def __str__(self) -> str:
        said = {"answer": self.answer, "request": self.client if self.client != self.answer else "", "trace": self.trace}
        return " ".join(f"{name}={value!r}" if " " in value else f"{name}={value}" for name, value in said.items() if value)


_ids: ContextVar[RequestIds | None] = ContextVar("request_ids", default=None)


def trace_of(traceparent: str) -> str:
    """The trace that a header names; "" where it is none."""
    found = TRACEPARENT.fullmatch(traceparent.strip().lower())
    return found[1] if found else ""


@contextmanager
def about(ids: RequestIds) -> Iterator[None]:
    """Lines written in here, and in threads that are started with this context, are about this request."""
    token = _ids.set(ids)
    try:
        yield
    finally:
        _ids.reset(token)


class _Naming(logging.Formatter):
    """Another formatter, with the ids behind the first line."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self.inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        text, ids = self.inner.format(record), _ids.get()
        if ids is None or record.name == "clipft.audit":  # whose lines are JSON, and hold the ids
            return text
        first, newline, rest = text.partition("\n")
        return f"{first} [{ids}]{newline}{rest}"


def name_requests() -> None:
    """Let the handlers that there are, uvicorn's for example, name requests."""
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler.formatter, _Naming):
                handler.setFormatter(_Naming(handler.formatter))

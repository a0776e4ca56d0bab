"""The application: wiring only. `uvicorn serving.inference.app:create_app --factory` starts it."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from clipft_tasks.drift.statistics import one_thread

from .error_handlers import add_error_handlers
from .middleware import RequestGuard
from .openapi import describe
from .quiet_log import limit_repeats
from .request_log import name_requests
from .rollout import follow_registry
from .routes import ROUTERS
from .server import Server
from .settings import ServingSettings
from .shutdown import announced_end, watch_threads

SWITCH_SECONDS = 0.001
EXPOSED = (
    "X-Request-Id", "X-Clipft-Answer-Id", "X-Clipft-Domain", "X-Clipft-Model-Version", "X-Clipft-Run-Id", "X-Clipft-Dataset",
    "X-Clipft-Dag-Run", "X-Clipft-Truncated", "Retry-After",
)  # fmt: skip


def create_app(options: ServingSettings | None = None) -> FastAPI:
    """An application with its own engine, store and metrics."""
    options = options or ServingSettings()
    _show_audit_log()
    limit_repeats("uvicorn.error", "python_multipart.multipart")
    name_requests()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server = app.state.server = Server.start(options)
        tasks = [asyncio.create_task(follow_registry(server.store, options.poll_seconds))]
        if options.end_when_stuck:
            tasks.append(asyncio.create_task(watch_threads(server)))
        with one_thread(), quick_switches(), announced_end(server, options.drain_seconds):
            yield
        for task in tasks:
            task.cancel()
        server.close()

    app = FastAPI(
        title="clipft",
        summary="Image-text similarity, embeddings and zero-shot classification with the champion of each domain.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own load their scripts from elsewhere; see routes/pages.py
        redoc_url=None,
    )
    app.add_middleware(RequestGuard)
    if origins := options.cors.replace(",", " ").split():
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED
        )
    add_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    describe(app, options.open)
    return app


@contextmanager
def quick_switches() -> Iterator[None]:
    """Inside the block, a thread that runs Python gives way to others after a millisecond, not after five. A request changes threads
    several times, and waits that long each time while anybody's form or text keeps Python busy."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _show_audit_log() -> None:
    """One line of JSON on standard error for whatever changes something, whatever uvicorn's level of logging is."""
    audit = logging.getLogger("clipft.audit")
    audit.setLevel(logging.INFO)
    if not audit.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter('{"time": "%(asctime)s", "audit": %(message)s}', "%Y-%m-%dT%H:%M:%S%z"))
        audit.addHandler(handler)

"""What the routes work with: made once when the server starts, closed when it ends."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from clipft_tasks.core.settings import settings
from clipft_tasks.devices import hardware

from .answer_memory import AnswerMemory
from .batching import Engine
from .captures import Captures
from .metrics import Metrics
from .model_store import ModelStore
from .monitor import Monitor
from .replicas import Relay, Replicas
from .service import InferenceService
from .settings import ServingSettings


@dataclass(frozen=True)
class Server:
    """The parts of one server process."""

    options: ServingSettings
    metrics: Metrics
    engine: Engine
    monitor: Monitor
    captures: Captures
    store: ModelStore
    replicas: Replicas
    inference: InferenceService

    @classmethod
    def start(cls, options: ServingSettings) -> "Server":
        """Make the parts and start their threads; no model is loaded yet."""
        metrics, machine = Metrics(), hardware.detect(options.device)
        engine = Engine(
            machine.device,
            machine.cores,
            metrics,
            max_batch=options.max_batch,
            max_wait=options.max_wait_ms / 1000,
            max_queue=options.max_queue,
        )
        monitor = Monitor(
            metrics,
            every=options.drift_seconds,
            size=options.window,
            least=options.window_least,
            seconds=options.window_minutes * 60,
            rate=options.window_rate,
            enabled=options.drift,
            answers=AnswerMemory(settings().root / "answers.db"),
        )
        captures = Captures(
            settings().root / "captures",
            metrics,
            most_bytes=int(options.capture_mb * 2**20),
            most_seconds=options.capture_days * 86400,
            share=options.capture,
        )
        store = ModelStore(engine, metrics, on_live=monitor.watch)
        inference = InferenceService(options, engine, store, monitor, captures, metrics)
        return cls(options, metrics, engine, monitor, captures, store, Replicas(options.peers), inference)

    def close(self) -> None:
        self.engine.close()
        self.monitor.close()
        self.captures.close()


def server_of(request: Request) -> Server:
    """The parts of the server that got a request."""
    server: Server = request.app.state.server
    return server


# Coroutines, or FastAPI would give each of them a turn in its thread pool.
async def _server(request: Request) -> Server:
    return server_of(request)


async def _relay(request: Request) -> Relay:
    return Relay(server_of(request).replicas, request)


ServerDep = Annotated[Server, Depends(_server)]
RelayDep = Annotated[Relay, Depends(_relay)]

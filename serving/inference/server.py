"""What the routes work with: made once when the server starts, closed when it ends."""

import threading
import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from clipft_tasks.core.settings import settings
from clipft_tasks.devices import backend, hardware

from .admission import Admission
from .answer_memory import AnswerMemory
from .backend_choice import BackendChoice, BackendCollector
from .batching import Engine
from .captures import Captures
from .decoding import Decoder
from .keys import Keys
from .metrics import Metrics
from .model_store import ModelStore
from .monitor import Monitor
from .rate_limit import RateLimit
from .replicas import Relay, Replicas
from .search_indexes import SearchIndexes
from .service import InferenceService
from .settings import ServingSettings
from .tokenizing import TokenizerThread
from .tracing import Tracing
from .window_memory import WindowMemory

MOST_LANES = 8  # of the engine, on a CPU
STUCK = 300.0  # seconds of one piece of work after which a thread hangs; loading a version may take four minutes


@dataclass(frozen=True)
class Server:
    """The parts of one server process."""

    options: ServingSettings
    metrics: Metrics
    keys: Keys
    admission: Admission
    decoder: Decoder
    engine: Engine
    backends: BackendChoice
    monitor: Monitor
    captures: Captures
    store: ModelStore
    replicas: Replicas
    inference: InferenceService
    tracing: Tracing
    search: SearchIndexes
    is_ending: threading.Event = field(default_factory=threading.Event)
    audited_refusals: RateLimit = field(default_factory=lambda: RateLimit(1, 100))

    @classmethod
    def start(cls, options: ServingSettings) -> "Server":
        """Make the parts and start their threads; no model is loaded yet."""
        metrics, machine, admission = Metrics(), hardware.detect(options.device), Admission(options)
        lanes = min(machine.cores, MOST_LANES) if backend(machine.device).is_host else 1
        engine = Engine(
            machine.device,
            machine.cores,
            metrics,
            max_batch=options.max_batch,
            max_wait=options.max_wait_ms / 1000,
            max_queue=options.max_queue,
            lanes=lanes,
            most_seconds=options.queue_seconds,
            coming=lambda: admission.items.used,
        )
        decoder = Decoder(options, machine.cores)
        monitor = Monitor(
            metrics,
            every=options.drift_seconds,
            size=options.window,
            least=options.window_least,
            seconds=options.window_minutes * 60,
            rate=options.window_rate,
            enabled=options.drift,
            answers=AnswerMemory(settings().root / "answers.db"),
            windows=WindowMemory(settings().root / "answers.db" if options.drift and options.window_kept else None),
        )
        captures = Captures(
            settings().root / "captures",
            metrics,
            most_bytes=int(options.capture_mb * 2**20),
            most_seconds=options.capture_days * 86400,
            share=options.capture,
        )
        backends = BackendChoice(options.backend, machine.cores, lanes)
        store = ModelStore(engine, metrics, backends, on_live=monitor.watch)
        metrics.registry.register(BackendCollector(lambda: store.live))
        tracing, tokenizer = Tracing(), TokenizerThread()
        inference = InferenceService(admission, decoder, tokenizer, engine, store, monitor, captures, metrics, tracing)
        return cls(
            options,
            metrics,
            Keys(options.open),
            admission,
            decoder,
            engine,
            backends,
            monitor,
            captures,
            store,
            Replicas(options.peers),
            inference,
            tracing,
            SearchIndexes(),
        )

    def thread_problem(self) -> str:
        """What is wrong with the server's threads; "" for nothing."""
        alive = {
            "inference": self.engine.alive, "backends": self.backends.alive,
            "captures": self.captures.alive, "drift": self.monitor.alive,
        }  # fmt: skip
        dead = [name for name, is_alive in alive.items() if not is_alive]
        if dead:
            return f"The {dead[0]} thread has ended"
        busy = {"inference": self.engine.busy_since, "captures": self.captures.busy_since}
        stuck = [name for name, since in busy.items() if since is not None and time.monotonic() - since > STUCK]
        return f"The {stuck[0]} thread hangs" if stuck else ""

    def close(self) -> None:
        self.admission.close()
        self.decoder.close()
        self.inference.tokenizer.close()
        self.backends.close()
        self.engine.close()
        self.monitor.close()
        self.captures.close()
        self.tracing.close()


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

"""The application. `uvicorn serving.inference.app:create_app --factory` starts it."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from clipft_tasks.core.errors import ClipftError, Transient
from clipft_tasks.core.settings import settings
from clipft_tasks.devices import hardware
from clipft_tasks.drift.statistics import one_thread

from . import request_parsing, schemas
from .batching import Busy, Engine
from .captures import Captures
from .loaded_model import Live
from .metrics import Metrics
from .model_store import ModelStore
from .monitor import Monitor
from .replicas import WHO, Peers, heard, together
from .routes.feedback import router as observing
from .security import authorised, probing
from .service import Answering, Refused, Unsound
from .settings import ServingSettings

log = logging.getLogger("uvicorn.error")
T = TypeVar("T", bound=schemas.Request)


def create_app(serving: ServingSettings | None = None) -> FastAPI:
    """An application with its own engine, store and metrics."""
    options = serving or ServingSettings()
    metrics = Metrics()
    peers = Peers(options.peers)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        machine = hardware.probe(cast(Any, options.device))
        engine = Engine(
            machine.device, machine.cores, metrics,
            max_batch=options.max_batch, max_wait=options.max_wait_ms / 1000, max_queue=options.max_queue,
        )  # fmt: skip
        monitor = Monitor(
            metrics,
            options.drift_seconds,
            options.window,
            options.window_least,
            options.window_minutes * 60,
            options.window_rate,
            options.drift,
        )
        captures = Captures(
            settings().root / "captures",
            metrics,
            int(options.capture_mb * 2**20),
            options.capture_days * 86400,
            options.capture,
        )
        store = ModelStore(engine, metrics, follow=monitor.follow)
        app.state.engine, app.state.store, app.state.monitor, app.state.captures = engine, store, monitor, captures
        app.state.peers = peers
        app.state.answering = Answering(options, engine, store, monitor, captures, metrics)
        polling = asyncio.create_task(_poll(store, options.poll_seconds))
        with one_thread():
            yield
        polling.cancel()
        engine.close()
        monitor.close()
        captures.close()

    app = FastAPI(
        title="clipft",
        summary="Image-text similarity, embeddings and zero-shot classification with the champion of each domain.",
        version="1",
        lifespan=lifespan,
    )

    # Requests in, answers out ----------------------------------------------------------------------------------------

    @app.middleware("http")
    async def observe(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        request.state.domain = ""
        request.state.id = request.headers.get("x-request-id", "")[:64] or uuid.uuid4().hex
        length = request.headers.get("content-length")
        if request.method in ("POST", "PUT") and (length is None or int(length) > options.max_body_mb * 2**20):
            why = "send a Content-Length" if length is None else f"{int(length):,} bytes, more than {options.max_body_mb:g} MiB"
            response: Response = JSONResponse({"detail": f"The request is refused: {why}."}, 411 if length is None else 413)
        else:
            try:
                response = await call_next(request)
            except Exception:
                log.exception("%s %s failed", request.method, request.url.path)
                response = JSONResponse({"detail": "The server failed at this; its log says why."}, 500)
        route = getattr(request.scope.get("route"), "path", "unknown")
        response.headers["X-Request-Id"] = request.state.id
        if peers.named:
            response.headers[WHO] = peers.id
        metrics.requests.labels(route, request.state.domain, str(response.status_code)).inc()
        metrics.latency.labels(route).observe(time.perf_counter() - began)
        return response

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        if error.reason:
            metrics.refused.labels(error.reason).inc()
        headers = {"Retry-After": "1"} if error.status == 503 else {}
        return JSONResponse({"detail": error.detail}, error.status, headers)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        detail = f"{options.max_queue} jobs are waiting already; try again in a moment."
        return JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})

    @app.exception_handler(Transient)
    async def away(request: Request, error: Transient) -> Response:
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "5"})

    @app.exception_handler(ClipftError)
    async def unprocessable(request: Request, error: ClipftError) -> Response:
        return JSONResponse({"detail": str(error)}, 409)

    @app.exception_handler(Unsound)
    async def unsound(request: Request, error: Unsound) -> Response:
        log.error("%s", error)
        metrics.refused.labels("unsound").inc()
        return JSONResponse({"detail": str(error)}, 500)

    async def read(request: Request, model: type[T]) -> tuple[T, Answering, Live]:
        """The body as `model`, who answers, and with which version."""
        try:
            asked = await request_parsing.parse(request, model)
        except RequestValidationError:
            metrics.refused.labels("malformed").inc()
            raise
        answering: Answering = request.app.state.answering
        live = answering.find(asked.domain)
        request.state.domain = live.domain
        return asked, answering, live

    # Routes ----------------------------------------------------------------------------------------------------------

    @app.post("/v1/embed/images", response_model=schemas.Embeddings, **request_parsing.documented(schemas.EmbedImages))
    async def embed_images(request: Request, response: Response) -> dict[str, Any]:
        """Embeddings of images, unit vectors where the model's similarity is the cosine."""
        asked, answering, live = await read(request, schemas.EmbedImages)
        out = await answering.images(live, asked.images, not probing(request), asked.dimensions)
        response.headers.update(live.headers)
        return {"embeddings": out.tolist(), "dimension": out.shape[1]}

    @app.post("/v1/embed/texts", response_model=schemas.Embeddings, **request_parsing.documented(schemas.EmbedTexts))
    async def embed_texts(request: Request, response: Response) -> dict[str, Any]:
        """Embeddings of texts, unit vectors where the model's similarity is the cosine."""
        asked, answering, live = await read(request, schemas.EmbedTexts)
        out = await answering.texts(live, asked.texts, not probing(request), asked.dimensions)
        response.headers.update(live.headers)
        return {"embeddings": out.tolist(), "dimension": out.shape[1]}

    @app.post("/v1/similarity", response_model=schemas.Similarities, **request_parsing.documented(schemas.Similarity))
    async def similarity(request: Request, response: Response) -> dict[str, Any]:
        """How alike every image is with every text, by the model's own similarity."""
        asked, answering, live = await read(request, schemas.Similarity)
        scores = await answering.similarity(live, asked, not probing(request))
        response.headers.update(live.headers)
        return {"similarity": scores.tolist()}

    @app.post("/v1/classify", response_model=schemas.Predictions, **request_parsing.documented(schemas.Classify))
    async def classify(request: Request, response: Response) -> dict[str, Any]:
        """Zero-shot classes of images, over the domain's prompt templates."""
        asked, answering, live = await read(request, schemas.Classify)
        found = await answering.classify(live, asked, request.state.id, not probing(request))
        response.headers.update(found.live.headers)
        return {
            "predictions": [
                {"label": label, "probability": float(odds.max()), "scores": dict(zip(found.classes, scores, strict=True))}
                for label, odds, scores in zip(found.labels, found.odds, found.scores.tolist(), strict=True)
            ]
        }

    @app.get("/v1/models", response_model=list[schemas.ModelInfo])
    async def models(request: Request) -> list[dict[str, Any]]:
        """The live version of each domain and where it comes from."""
        return [
            {
                "domain": m.domain,
                "version": m.version,
                "since": m.since,
                "side": m.side,
                "classes": m.card.classes,
                "similarity": m.clip.similarity.name,
                "dimensions": m.dimensions,
                "lineage": m.lineage,
            }
            for m in request.app.state.store.live.values()
        ]

    @app.put("/v1/models/{domain}", response_model=schemas.Deployed, dependencies=[Depends(authorised)])
    async def deploy(domain: str, asked: schemas.Deploy, request: Request) -> dict[str, Any]:
        """Make a registered version live. It answers when the version is live; the old one goes on answering until then."""
        request.state.domain = domain
        return await asyncio.to_thread(_deploy, request, domain, asked.version)

    app.include_router(observing)

    @app.put("/v1/shadows/{domain}", response_model=schemas.ShadowInfo, dependencies=[Depends(authorised)])
    async def shadow(domain: str, asked: schemas.ShadowIn, request: Request) -> dict[str, Any]:
        """Let a registered version see a share of the domain's traffic: in the shadow of the champion, or as a canary."""
        store: ModelStore = request.app.state.store

        def work() -> dict[str, Any]:
            made = store.shadow(domain, asked.version, asked.share, asked.answers)
            return together([made.report(), *heard(peers.tell(request, asked.model_dump()))])

        request.state.domain = domain
        return await asyncio.to_thread(work)

    @app.get("/v1/shadows/{domain}", response_model=schemas.ShadowInfo)
    async def shadow_report(domain: str, request: Request) -> dict[str, Any]:
        """How the challenger fares beside the champion."""
        found = request.app.state.store.shadows.get(domain)
        told = await asyncio.to_thread(peers.tell, request)
        reports = [a.response.json() for a in told if a.response is not None and a.response.status_code == 200]
        reports = ([found.report()] if found else []) + reports
        if not reports:
            raise HTTPException(404, f"No version of {domain!r} is tried at the moment.")
        return together(reports)

    @app.delete("/v1/shadows/{domain}", dependencies=[Depends(authorised)])
    async def end_shadow(domain: str, request: Request) -> dict[str, bool]:
        """End the trial; the champion answers everything again."""
        ended = await asyncio.to_thread(request.app.state.store.end_shadow, domain)
        others = await asyncio.to_thread(peers.tell, request)
        return {"ended": ended or any(said["ended"] for said in heard(others))}

    @app.get("/v1/replicas", response_model=list[schemas.Replica], dependencies=[Depends(authorised)])
    async def replicas(request: Request) -> list[dict[str, Any]]:
        """What is live where: this replica, then the others."""
        store: ModelStore = request.app.state.store
        own = {"address": "", "live": {d: m.version for d, m in store.live.items()}, "problem": store.problem}
        others = []
        for answer in await asyncio.to_thread(peers.tell, request, None, "/readyz"):
            said = {"live": {}, "problem": answer.away} if answer.response is None else answer.response.json()
            others.append({"address": answer.address, "live": said.get("live", {}), "problem": said.get("problem", "")})
        return [own, *others]

    @app.get("/healthz")
    async def healthz(request: Request) -> dict[str, str]:
        """Is the process alive, and its inference thread with it?"""
        if not request.app.state.engine.alive:
            raise HTTPException(500, "The inference thread has ended; restart the server.")
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz(request: Request, response: Response) -> dict[str, Any]:
        """Can it answer? Not before a model is live."""
        store: ModelStore = request.app.state.store
        if not store.live:
            response.status_code = 503
        live = {d: m.version for d, m in store.live.items()}
        return {"ready": bool(live), "live": live, "device": str(store.engine.device), "problem": store.problem}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Metrics for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def playground() -> str:
        return (Path(__file__).parent / "playground.html").read_text("utf-8")

    return app


def _deploy(request: Request, domain: str, version: str) -> dict[str, Any]:
    """Make a version live here, then on the other replicas; where one of them refuses it, on none.

    Raises: ClipftError when a replica refuses it, Transient when one could not say.
    """
    store: ModelStore = request.app.state.store
    peers: Peers = request.app.state.peers
    before = store.live.get(domain)
    made = store.deploy(domain, version)
    others = peers.tell(request, {"version": version})
    try:
        list(heard(others))
    except ClipftError:
        if before and before.version != version:
            store.deploy(domain, before.version)
            peers.tell(request, {"version": before.version})
        raise
    return made | {"replicas": {a.address: "away" if a.response is None else version for a in others}}


async def _poll(store: ModelStore, seconds: float) -> None:
    """Follow the registry's champions: at the start, and for promotions that nobody told this replica about."""
    while True:
        await asyncio.to_thread(store.refresh)
        if not seconds and not store.problem:
            return
        await asyncio.sleep(seconds or 5)

"""The application. `uvicorn serving.app:create_app --factory` starts it."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from clipft_tasks.data.pictures import BadPicture, Limits, open_picture, square
from clipft_tasks.domains import get_domain
from clipft_tasks.drift.appearance import appearance
from clipft_tasks.errors import ClipftError, Transient
from clipft_tasks.settings import settings
from clipft_tasks.train import hardware

from . import schemas
from .captures import Capture, Captures, hashed
from .engine import Busy, Engine
from .live import Live
from .metrics import Metrics
from .monitor import Monitor
from .observing import router as observing
from .security import authorised
from .settings import ServingSettings
from .shadow import Shadow
from .store import ModelStore, class_embeddings

log = logging.getLogger("uvicorn.error")
T = TypeVar("T", bound=schemas.Request)


class Refused(Exception):
    """A request that cannot be answered as it is."""

    def __init__(self, status: int, detail: str, reason: str = "") -> None:
        self.status, self.detail, self.reason = status, detail, reason


def create_app(serving: ServingSettings | None = None) -> FastAPI:
    """An application with its own engine, store and metrics."""
    options = serving or ServingSettings()
    metrics = Metrics()
    limits = Limits(bytes=int(options.max_picture_mb * 2**20), pixels=options.max_pixels)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        machine = hardware.probe(cast(Any, options.device))
        engine = Engine(
            machine.device, machine.cores, metrics,
            max_batch=options.max_batch, max_wait=options.max_wait_ms / 1000, max_queue=options.max_queue,
        )  # fmt: skip
        monitor = Monitor(metrics, options.drift_seconds, options.window, options.window_least, options.window_minutes * 60)
        captures = Captures(
            settings().root / "captures", metrics, int(options.capture_mb * 2**20), options.capture_days * 86400
        )
        store = ModelStore(engine, metrics, follow=monitor.follow)
        app.state.engine, app.state.store, app.state.monitor, app.state.captures = engine, store, monitor, captures
        app.state.comparing = set()
        polling = asyncio.create_task(_poll(store, options.poll_seconds))
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

    async def read(request: Request, model: type[T]) -> T:
        """The body as `model`: JSON, or a multipart form with files `image` and fields `text`, `class`, `domain`."""
        kind = request.headers.get("content-type", "")
        try:
            if kind.startswith("multipart/form-data"):
                return model.model_validate(await _form(request))
            return model.model_validate_json(await request.body())
        except ValidationError as error:
            metrics.refused.labels("malformed").inc()
            raise RequestValidationError(error.errors(include_url=False, include_context=False, include_input=False)) from None

    def find(request: Request, domain: str) -> Live:
        store: ModelStore = request.app.state.store
        live = store.get(domain)
        if live is None:
            there = ", ".join(sorted(store.live)) or "none"
            if not domain and store.live:
                raise Refused(400, f"Several domains are live ({there}): say which one in `domain`.")
            status = 404 if store.live else 503
            raise Refused(status, f"No model of {domain or 'any domain'} is live (live: {there}).")
        request.state.domain = live.domain
        return live

    async def decode(images: list[schemas.ImageIn], live: Live) -> tuple[np.ndarray, np.ndarray]:
        """Pictures at the side that the model serves, uint8 (n, 3, s, s), and what they looked like before, (n, 5)."""
        if len(images) > options.max_items:
            raise Refused(413, f"{len(images)} pictures in one request, more than {options.max_items}.", "too_many")

        grey_bits = get_domain(live.domain).grey_bits

        def one(number: int, image: schemas.ImageIn) -> tuple[np.ndarray, np.ndarray]:
            try:
                rgb = open_picture(image.data, limits, grey_bits=grey_bits).rgb
                return square(rgb, live.side, live.clip.aspect), appearance(rgb)
            except BadPicture as error:
                raise Refused(422, f"Picture {number + 1}: {error}.", "bad_picture") from error

        decoded = await asyncio.gather(*(asyncio.to_thread(one, i, image) for i, image in enumerate(images)))
        squares, looks = zip(*decoded, strict=True)
        return np.stack(squares), np.stack(looks)

    async def encode(request: Request, images: list[schemas.ImageIn], live: Live) -> np.ndarray:
        """Unit embeddings (n, d) of a request's pictures, seen by the monitor unless the pipeline itself is asking."""
        pictures, looks = await decode(images, live)
        out: np.ndarray = await app.state.engine.images(live, pictures)
        if not probing(request):
            app.state.monitor.pictures(live, out, looks)
        return out

    def check_texts(texts: list[str]) -> list[str]:
        if len(texts) > options.max_items:
            raise Refused(413, f"{len(texts)} texts in one request, more than {options.max_items}.", "too_many")
        for number, text in enumerate(texts):
            if len(text) > options.max_text:
                raise Refused(422, f"Text {number + 1}: {len(text):,} characters, more than {options.max_text:,}.", "long_text")
        return texts

    # Routes ----------------------------------------------------------------------------------------------------------

    @app.post("/v1/embed/images", response_model=schemas.Embeddings, **_documented(schemas.EmbedImages))
    async def embed_images(request: Request, response: Response) -> dict[str, Any]:
        """Unit embeddings of pictures."""
        asked = await read(request, schemas.EmbedImages)
        live = find(request, asked.domain)
        out = await encode(request, asked.images, live)
        response.headers.update(live.headers)
        return {"embeddings": out.tolist(), "dimension": live.clip.embed_dim}

    @app.post("/v1/embed/texts", response_model=schemas.Embeddings, **_documented(schemas.EmbedTexts))
    async def embed_texts(request: Request, response: Response) -> dict[str, Any]:
        """Unit embeddings of texts."""
        asked = await read(request, schemas.EmbedTexts)
        live = find(request, asked.domain)
        out = await app.state.engine.texts(live, check_texts(asked.texts))
        if not probing(request):
            app.state.monitor.texts(live, out)
        response.headers.update(live.headers)
        return {"embeddings": out.tolist(), "dimension": live.clip.embed_dim}

    @app.post("/v1/similarity", response_model=schemas.Similarities, **_documented(schemas.Similarity))
    async def similarity(request: Request, response: Response) -> dict[str, Any]:
        """Cosine of every picture with every text."""
        asked = await read(request, schemas.Similarity)
        live = find(request, asked.domain)
        texts = check_texts(asked.texts)
        image, text = await asyncio.gather(encode(request, asked.images, live), app.state.engine.texts(live, texts))
        cosines = image @ text.T
        if not probing(request):
            app.state.monitor.texts(live, text)
            if len(image) == len(text):
                app.state.monitor.pairs(live, np.diag(cosines))
        watch(live, cosines)
        response.headers.update(live.headers)
        return {"similarity": cosines.tolist()}

    @app.post("/v1/classify", response_model=schemas.Predictions, **_documented(schemas.Classify))
    async def classify(request: Request, response: Response) -> dict[str, Any]:
        """Zero-shot classes of pictures, over the domain's prompt templates."""
        asked = await read(request, schemas.Classify)
        live = find(request, asked.domain)
        classes = check_texts(asked.classes) if asked.classes else live.card["classes"]
        if len(classes) < 2:
            raise Refused(422, "This model was trained without classes: send at least two in `classes`.")
        live, image, cosines = await answer(request, asked, live, classes)
        if not probing(request):
            watch(live, cosines)
        logits = cosines * live.temperature_scale
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        best = cosines.argmax(axis=1)
        if asked.classes is None:
            app.state.monitor.answered(live, request.state.id, [classes[i] for i in best])
            if not probing(request):
                for i in best:
                    metrics.predictions.labels(live.domain, live.version, classes[i]).inc()
                capture(request.state.id, live, asked.images, image, cosines, odds)
        response.headers.update(live.headers)
        return {
            "predictions": [
                {
                    "label": classes[i],
                    "probability": float(odds[row, i]),
                    "scores": dict(zip(classes, cosines[row].tolist(), strict=True)),
                }
                for row, i in enumerate(best)
            ]
        }

    async def rank(
        request: Request, images: list[schemas.ImageIn], live: Live, classes: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (n, d) of a request's pictures and their cosines with the classes (n, c)."""
        texts: Any = live.class_texts.get(tuple(classes))
        if texts is None:  # classes of the caller's own
            texts = await asyncio.wrap_future(app.state.engine.call(lambda: class_embeddings(live, classes)))
        image = await encode(request, images, live)
        return image, image @ texts.T

    async def answer(
        request: Request, asked: schemas.Classify, live: Live, classes: list[str]
    ) -> tuple[Live, np.ndarray, np.ndarray]:
        """Who answers, with embeddings and cosines: the champion, or a canary in its share of the requests."""
        shadow: Shadow | None = app.state.store.shadows.get(live.domain)
        if shadow is None or asked.classes is not None or probing(request):
            return live, *await rank(request, asked.images, live, classes)
        chosen, began = shadow.chosen(), time.perf_counter()
        if chosen and shadow.answers:
            try:
                image, cosines = await rank(request, asked.images, shadow.live, classes)
                shadow.answered(time.perf_counter() - began)
                return shadow.live, image, cosines
            except (Refused, Busy):
                raise
            except Exception:  # the champion answers instead, so no caller sees it
                log.exception("version %s, a canary of %s, failed", shadow.live.version, live.domain)
                shadow.failed()
                began = time.perf_counter()
        image, cosines = await rank(request, asked.images, live, classes)
        seconds = time.perf_counter() - began
        if chosen and not shadow.answers:
            task = asyncio.create_task(compare(shadow, asked.images, classes, cosines.argmax(axis=1), seconds))
            app.state.comparing.add(task)
            task.add_done_callback(app.state.comparing.discard)
        else:
            shadow.usual(seconds)
        return live, image, cosines

    async def compare(
        shadow: Shadow, images: list[schemas.ImageIn], classes: list[str], said: np.ndarray, seconds: float
    ) -> None:
        """Ask the challenger what the champion has answered already."""
        began = time.perf_counter()
        try:
            pictures, _ = await decode(images, shadow.live)
            image = await app.state.engine.images(shadow.live, pictures)
            texts = shadow.live.class_texts[tuple(classes)]
            shadow.compared(said, (image @ texts.T).argmax(axis=1), (seconds, time.perf_counter() - began))
        except Busy:
            pass  # the callers come first
        except Exception:
            log.exception("version %s in the shadow of %s failed", shadow.live.version, shadow.live.domain)
            shadow.failed()

    def watch(live: Live, cosines: np.ndarray) -> None:
        ranked = np.sort(cosines, axis=1)
        for row in ranked:
            metrics.top.labels(live.domain, live.version).observe(float(row[-1]))
            if len(row) > 1:
                metrics.margin.labels(live.domain, live.version).observe(float(row[-1] - row[-2]))

    def capture(
        request_id: str, live: Live, images: list[schemas.ImageIn], image: np.ndarray, cosines: np.ndarray, odds: np.ndarray
    ) -> None:
        """Offer a request's pictures for keeping, saying which look new and which the model was unsure of."""
        usual = options.capture if options.capture is not None else get_domain(live.domain).captures
        share = app.state.captures.asked.get(live.domain, usual)
        if share <= 0:
            return
        reference = live.reference  # without one, nothing tells what is new or doubtful: chance alone chooses
        novelty = reference.novelty(image) if reference else np.zeros(len(image))
        best = np.sort(cosines, axis=1)
        unsure = best[:, -1] - best[:, -2] < (reference.unsure_below if reference else 0.0)
        for i, item in enumerate(images):
            why = "new" if novelty[i] > 1 else "unsure" if unsure[i] else ""
            key = hashed(request_id)
            found = Capture(
                f"{key}-{i}", key, live.domain, live.version, time.time(), live.card["classes"][int(odds[i].argmax())],
                float(odds[i].max()), float(novelty[i]), why,
            )  # fmt: skip
            app.state.captures.offer(found, item.data, share)

    @app.get("/v1/models", response_model=list[schemas.ModelInfo])
    async def models(request: Request) -> list[dict[str, Any]]:
        """The live version of each domain and where it comes from."""
        return [
            {
                "domain": m.domain,
                "version": m.version,
                "since": m.since,
                "side": m.side,
                "classes": m.card["classes"],
                "lineage": m.lineage,
            }
            for m in request.app.state.store.live.values()
        ]

    @app.put("/v1/models/{domain}", response_model=schemas.Deployed, dependencies=[Depends(authorised)])
    async def deploy(domain: str, asked: schemas.Deploy, request: Request) -> dict[str, Any]:
        """Make a registered version live. It answers when the version is live; the old one goes on answering until then."""
        request.state.domain = domain
        return cast(dict[str, Any], await asyncio.to_thread(request.app.state.store.deploy, domain, asked.version))

    app.include_router(observing)

    @app.put("/v1/shadows/{domain}", response_model=schemas.ShadowInfo, dependencies=[Depends(authorised)])
    async def shadow(domain: str, asked: schemas.ShadowIn, request: Request) -> dict[str, Any]:
        """Let a registered version see a share of the domain's traffic: in the shadow of the champion, or as a canary."""
        made = await asyncio.to_thread(request.app.state.store.shadow, domain, asked.version, asked.share, asked.answers)
        request.state.domain = domain
        return made.report()

    @app.get("/v1/shadows/{domain}", response_model=schemas.ShadowInfo)
    async def shadow_report(domain: str, request: Request) -> dict[str, Any]:
        """How the challenger fares beside the champion."""
        found = request.app.state.store.shadows.get(domain)
        if found is None:
            raise HTTPException(404, f"No version of {domain!r} is tried at the moment.")
        return found.report()

    @app.delete("/v1/shadows/{domain}", dependencies=[Depends(authorised)])
    async def end_shadow(domain: str, request: Request) -> dict[str, bool]:
        """End the trial; the champion answers everything again."""
        return {"ended": await asyncio.to_thread(request.app.state.store.end_shadow, domain)}

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
        """Figures for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def playground() -> str:
        return (Path(__file__).parent / "playground.html").read_text("utf-8")

    return app


def probing(request: Request) -> bool:
    """Whether the pipeline itself is asking: what it asks is no traffic, so it is neither watched nor kept."""
    return "x-clipft-probe" in request.headers


async def _poll(store: ModelStore, seconds: float) -> None:
    """Follow the registry's champions: at the start, and for promotions that nobody told this replica about."""
    while True:
        await asyncio.to_thread(store.refresh)
        if not seconds and not store.problem:
            return
        await asyncio.sleep(seconds or 5)


async def _form(request: Request) -> dict[str, Any]:
    import base64

    form = await request.form(max_files=1000)
    out: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            out.setdefault("images", []).append({"base64": base64.b64encode(await value.read()).decode()})
        elif name == "domain":
            out["domain"] = value
        else:
            out.setdefault({"text": "texts", "class": "classes"}.get(name, name), []).append(value)
    return out


def _documented(model: type[schemas.Request]) -> dict[str, Any]:
    """OpenAPI of a body that is read by hand: JSON or a multipart form."""
    schema = model.model_json_schema()
    defs = schema.pop("$defs", {})
    for name in {"images", "texts"} & set(schema["properties"]):
        many = schema["properties"][name]
        if "$ref" in many["items"]:
            many["items"] = defs["ImageIn"]
        schema["properties"][name] = {"anyOf": [many["items"], many], "description": many["description"]}
    files = {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}}
    fields = {
        "domain": {"type": "string"},
        "text": {"type": "array", "items": {"type": "string"}},
        "class": {"type": "array", "items": {"type": "string"}},
    }
    body = {
        "required": True,
        "content": {
            "application/json": {"schema": schema, "example": schemas.EXAMPLES[model]},
            "multipart/form-data": {"schema": {"type": "object", "properties": {**files, **fields}}},
        },
    }
    return {"openapi_extra": {"requestBody": body}}

"""How a request is answered: by which version, from what, and what is noted beside the answer.

Noting (windows, captures, metrics) never fails an answer: what goes wrong there is logged and counted.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np

from clipft_tasks.data.images import BadImage, Limits, square
from clipft_tasks.drift.image_statistics import appearance

from . import schemas
from .batching import Busy, Engine
from .captures import Captures
from .loaded_model import Live, Ranking
from .metrics import Metrics
from .model_store import ModelStore, class_embeddings
from .monitor import Monitor
from .settings import ServingSettings
from .shadow import Shadow

log = logging.getLogger("uvicorn.error")


class Refused(Exception):
    """A request that cannot be answered as it is: status and detail of the answer, and the reason that is counted."""

    def __init__(self, status: int, detail: str, reason: str = "") -> None:
        self.status, self.detail, self.reason = status, detail, reason


class Unsound(Exception):
    """A model gave something that is no number (NaN or infinity). No answer is made of that."""


class Answering:
    """Everything between a request's body and the answer's.

    In all methods `counts` is whether the request is traffic, to be noted, or the pipeline's own.
    """

    def __init__(
        self,
        options: ServingSettings,
        engine: Engine,
        store: ModelStore,
        monitor: Monitor,
        captures: Captures,
        metrics: Metrics,
    ) -> None:
        self.options, self.engine, self.store = options, engine, store
        self.monitor, self.captures, self.metrics = monitor, captures, metrics
        self.limits = Limits(bytes=int(options.max_image_mb * 2**20), pixels=options.max_pixels)
        self._comparing: set[asyncio.Task[None]] = set()

    def find(self, domain: str) -> Live:
        """The version that answers for a domain; domain "" is the only live one. Raises Refused."""
        live = self.store.get(domain)
        if live is None:
            there = ", ".join(sorted(self.store.live)) or "none"
            if not domain and self.store.live:
                raise Refused(400, f"Several domains are live ({there}): say which one in `domain`.")
            status = 404 if self.store.live else 503
            raise Refused(status, f"No model of {domain or 'any domain'} is live (live: {there}).")
        return live

    async def images(
        self, live: Live, images: list[schemas.ImageIn], counts: bool, dimensions: int | None = None
    ) -> np.ndarray:
        """Embeddings (n, d) of images, or their first `dimensions`. Raises Refused, Busy, Unsound."""
        cut = self._cut(live, dimensions)
        image, looks = await self._images(live, images, counts)
        if counts:
            with self._beside(live, "window"):
                self.monitor.add_images(live, image, looks)
        return cut(image)

    async def texts(self, live: Live, texts: list[str], counts: bool, dimensions: int | None = None) -> np.ndarray:
        """Embeddings (n, d) of texts, or their first `dimensions`. Raises Refused, Busy, Unsound."""
        cut = self._cut(live, dimensions)
        text = await self._texts(live, texts)
        if counts:
            with self._beside(live, "window"):
                self.monitor.texts(live, text)
        return cut(text)

    async def similarity(self, live: Live, asked: schemas.Similarity, counts: bool) -> np.ndarray:
        """Every image with every text, (n, m). Raises Refused, Busy, Unsound."""
        images, texts = asked.images, self._check(asked.texts)
        (image, looks), text = await asyncio.gather(self._images(live, images, counts), self._texts(live, texts))
        scores = _sound(live, live.similarity(image, text), "similarity")
        if counts:
            with self._beside(live, "window"):
                self.monitor.add_images(live, image, looks)
                self.monitor.texts(live, text)
                if asked.paired:
                    self.monitor.pairs(live, np.diag(scores))
                self.metrics.ranked(live.domain, live.version, scores)
        return scores

    async def classify(self, live: Live, asked: schemas.Classify, request_id: str, counts: bool) -> Ranking:
        """Images beside classes, the caller's or the model's own. Raises Refused, Busy, Unsound."""
        classes = self._check(asked.classes) if asked.classes else live.card.classes
        if len(classes) < 2:
            raise Refused(422, "This model was trained without classes: send at least two in `classes`.")
        shadow = self.store.shadows.get(live.domain) if counts and asked.classes is None else None
        if shadow is None:
            found = await self._rank(live, asked.images, classes, counts)
        else:
            found = await self._beside_shadow(shadow, live, asked.images, classes)
        if counts:
            with self._beside(found.live, "window"):
                self.monitor.add_images(found.live, found.image, found.looks)
                self.metrics.ranked(found.live.domain, found.live.version, found.scores)
        if asked.classes is None:
            with self._beside(found.live, "feedback"):
                self.monitor.answered(found.live, request_id, found.labels)
            if counts:
                for label in found.labels:
                    self.metrics.predictions.labels(found.live.domain, found.live.version, label).inc()
                with self._beside(found.live, "captures"):
                    self.captures.consider(request_id, found, asked.images)
        return found

    async def _beside_shadow(self, shadow: Shadow, live: Live, images: list[schemas.ImageIn], classes: list[str]) -> Ranking:
        """The champion's answer, or that of a canary in its share of the requests."""
        chosen, began = shadow.chosen(), time.perf_counter()
        if chosen and shadow.answers:
            try:
                found = await self._rank(shadow.live, images, classes, counts=True)
                shadow.answered(time.perf_counter() - began)
                return found
            except (Refused, Busy):
                raise
            except Exception:  # the champion answers instead, so no caller sees it
                log.exception("version %s, a canary of %s, failed", shadow.live.version, live.domain)
                shadow.failed()
                began = time.perf_counter()
        found = await self._rank(live, images, classes, counts=True)
        seconds = time.perf_counter() - began
        if chosen and not shadow.answers:
            task = asyncio.create_task(self._compare(shadow, images, found, seconds))
            self._comparing.add(task)
            task.add_done_callback(self._comparing.discard)
        else:
            shadow.usual(seconds)
        return found

    async def _compare(self, shadow: Shadow, images: list[schemas.ImageIn], said: Ranking, seconds: float) -> None:
        """Ask the challenger what the champion has answered already."""
        began = time.perf_counter()
        try:
            found = await self._rank(shadow.live, images, said.classes, counts=False)
            shadow.compared(said.best, found.best, (seconds, time.perf_counter() - began))
        except Busy:
            pass  # the callers come first
        except Exception:
            log.exception("version %s in the shadow of %s failed", shadow.live.version, shadow.live.domain)
            shadow.failed()

    async def _rank(self, live: Live, images: list[schemas.ImageIn], classes: list[str], counts: bool) -> Ranking:
        texts = live.class_texts.get(tuple(classes))
        if texts is None:  # classes of the caller's own
            texts = cast(np.ndarray, await asyncio.wrap_future(self.engine.call(lambda: class_embeddings(live, classes))))
        image, looks = await self._images(live, images, counts)
        return Ranking(live, classes, image, looks, _sound(live, live.similarity(image, texts), "similarity"))

    async def _images(self, live: Live, images: list[schemas.ImageIn], counts: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Embeddings (n, d) of images, and what these looked like before the model saw them, (n, 5), where the window wants that."""
        if len(images) > self.options.max_items:
            raise Refused(413, f"{len(images)} images in one request, more than {self.options.max_items}.", "too_many")

        wanted = counts and self.monitor.wants(live, len(images))

        def one(number: int, image: schemas.ImageIn) -> tuple[np.ndarray, np.ndarray | None]:
            try:
                rgb = live.clip.open_image(image.data, self.limits).rgb
                return square(rgb, live.side, live.clip.aspect), appearance(rgb) if wanted else None
            except BadImage as error:
                raise Refused(422, f"Image {number + 1}: {error}.", "bad_image") from error

        decoded = await asyncio.gather(*(asyncio.to_thread(one, i, image) for i, image in enumerate(images)))
        squares, looks = zip(*decoded, strict=True)
        image = _sound(live, await self.engine.images(live, np.stack(squares)), "embedding")
        return image, np.stack(looks) if wanted else None

    async def _texts(self, live: Live, texts: list[str]) -> np.ndarray:
        return _sound(live, await self.engine.texts(live, self._check(texts)), "embedding")

    def _cut(self, live: Live, dimensions: int | None) -> Callable[[np.ndarray], np.ndarray]:
        """What shortens embeddings as asked. Raises Refused when the model was not trained for that length."""
        if dimensions is None:
            return lambda embeddings: embeddings
        if dimensions not in live.dimensions:
            lengths = ", ".join(map(str, live.dimensions)) or "no other length"
            why = f"Version {live.version} of {live.domain} was not trained for embeddings of {dimensions} dimensions; allowed: {lengths}."
            raise Refused(422, f"{why} Leave `dimensions` out for all {live.clip.embed_dim}.", "dimensions")
        return lambda embeddings: _sound(live, live.cut(embeddings, dimensions), "embedding")

    def _check(self, texts: list[str]) -> list[str]:
        if len(texts) > self.options.max_items:
            raise Refused(413, f"{len(texts)} texts in one request, more than {self.options.max_items}.", "too_many")
        for number, text in enumerate(texts):
            if len(text) > self.options.max_text:
                why = f"Text {number + 1}: {len(text):,} characters, more than {self.options.max_text:,}."
                raise Refused(422, why, "long_text")
        return texts

    @contextmanager
    def _beside(self, live: Live, what: str) -> Iterator[None]:
        """Around whatever is noted about an answer: it may fail, the answer may not."""
        try:
            yield
        except Exception:
            log.exception("%s: an answer of %s version %s was not noted", what, live.domain, live.version)
            self.metrics.unnoted.labels(live.domain, what).inc()


def _sound(live: Live, numbers: np.ndarray, what: str) -> np.ndarray:
    """The numbers, if that is what they are. Raises Unsound."""
    if not np.isfinite(numbers).all():
        item = int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0]) + 1
        raise Unsound(
            f"Version {live.version} of {live.domain} gave no number as {what} of item {item}, so there is no answer."
        )
    return numbers

"""The two clients: one waits for each answer, one is awaited."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

import httpx

from ..contracts.serving import FeedbackResult, ModelInfo
from .exchange import BulkAnswer, Call, Classified, Embedded, Exchange, Flow, Image, Item, T, chunks


class Client(Exchange):
    """Waits for each answer. All methods raise ServerRefusalError, by `status` and `code`, and TransientError."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _open(self) -> None:
        self._http = httpx.Client(base_url=self.url, headers=self.headers, timeout=self.timeout, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[ModelInfo]:
        """What is live."""
        return self._run(self._models())

    def embed(self, items: Sequence[Item], *, dimensions: int | None = None) -> Embedded:
        """Embeddings of texts and images, mixed."""
        return self._run(self._embed(items, dimensions))

    def classify(self, images: Sequence[Image], *, classes: Sequence[str] | None = None) -> list[Classified]:
        """Classes of images, the model's own or these."""
        return self._run(self._classify(images, classes))

    def similarity(self, images: Sequence[Image], texts: Sequence[str]) -> list[list[float]]:
        """How similar every image is to every text, (n, m)."""
        return self._run(self._similarity(images, texts))

    def feedback(self, about: Classified, label: str) -> FeedbackResult:
        """What an image really shows; each counts once. Needs a key with the scope `feedback`."""
        return self._run(self._feedback(about, label))

    def embed_many(self, items: Iterable[Item]) -> Iterator[BulkAnswer]:
        """Embeddings of any number of items, all by one version, in order, as they come. A bad item is an answer with an error."""
        return self._many("embeddings", items)

    def classify_many(self, images: Iterable[Image]) -> Iterator[BulkAnswer]:
        """Classes of any number of images, likewise."""
        return self._many("classify", images)

    def _many(self, what: str, items: Iterable[Item]) -> Iterator[BulkAnswer]:
        first, version = 0, self.version
        for some in chunks(items):
            answers = self._run(self._bulk(what, some, first, version))
            yield from answers
            first, version = first + len(some), answers[-1].version

    def _run(self, flow: Flow[T]) -> T:
        try:
            call = next(flow)
            while True:
                call = flow.send(self._send(call))
        except StopIteration as done:
            found: T = done.value
            return found

    def _send(self, call: Call) -> httpx.Response:
        tried = 0
        while True:
            answer: httpx.Response | httpx.TransportError
            try:
                answer = self._http.request(call.method, call.path, json=call.json, content=call.content, params=call.query)
            except httpx.TransportError as error:
                answer = error
            wait = self._wait(answer, tried)
            if wait is None and isinstance(answer, httpx.Response):
                return answer
            time.sleep(wait or 0)
            tried += 1


class AsyncClient(Exchange):
    """The same for programs with an event loop."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self) -> None:
        self._http = httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=self.timeout, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def models(self) -> list[ModelInfo]:
        return await self._run(self._models())

    async def embed(self, items: Sequence[Item], *, dimensions: int | None = None) -> Embedded:
        return await self._run(self._embed(items, dimensions))

    async def classify(self, images: Sequence[Image], *, classes: Sequence[str] | None = None) -> list[Classified]:
        return await self._run(self._classify(images, classes))

    async def similarity(self, images: Sequence[Image], texts: Sequence[str]) -> list[list[float]]:
        return await self._run(self._similarity(images, texts))

    async def feedback(self, about: Classified, label: str) -> FeedbackResult:
        return await self._run(self._feedback(about, label))

    async def embed_many(self, items: Iterable[Item]) -> AsyncIterator[BulkAnswer]:
        async for answer in self._many("embeddings", items):
            yield answer

    async def classify_many(self, images: Iterable[Image]) -> AsyncIterator[BulkAnswer]:
        async for answer in self._many("classify", images):
            yield answer

    async def _many(self, what: str, items: Iterable[Item]) -> AsyncIterator[BulkAnswer]:
        first, version = 0, self.version
        for some in chunks(items):
            answers = await self._run(self._bulk(what, some, first, version))
            for answer in answers:
                yield answer
            first, version = first + len(some), answers[-1].version

    async def _run(self, flow: Flow[T]) -> T:
        try:
            call = next(flow)
            while True:
                call = flow.send(await self._send(call))
        except StopIteration as done:
            found: T = done.value
            return found

    async def _send(self, call: Call) -> httpx.Response:
        tried = 0
        while True:
            answer: httpx.Response | httpx.TransportError
            try:
                answer = await self._http.request(
                    call.method, call.path, json=call.json, content=call.content, params=call.query
                )
            except httpx.TransportError as error:
                answer = error
            wait = self._wait(answer, tried)
            if wait is None and isinstance(answer, httpx.Response):
                return answer
            await asyncio.sleep(wait or 0)
            tried += 1

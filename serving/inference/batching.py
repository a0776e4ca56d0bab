"""The engine: one thread that owns the device, fed by a queue, answering in micro-batches.

One thread, because two threads that run MPS operations abort the process, and because on every device one forward pass over
several requests is cheaper than several passes that compete.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch

from clipft_tasks.devices import backend

from .errors import QueueFullError
from .metrics import Metrics

if TYPE_CHECKING:
    from .loaded_model import LoadedModel

T = TypeVar("T")
Items = np.ndarray | list[str]  # images, uint8 (n, 3, s, s), or texts
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass
class _Encoding:
    """Items to embed. Those of one model and kind may share a forward pass."""

    model: "LoadedModel"
    items: Items
    result: "Future[np.ndarray]"

    def may_join(self, other: "_Encoding") -> bool:
        return self.model is other.model and _kind(self.items) == _kind(other.items)


@dataclass
class _Call(Generic[T]):
    """A function that must run in the inference thread."""

    function: Callable[[], T]
    result: "Future[T]"


_Job = _Encoding | _Call[Any]  # only its caller knows what a function returns


class Engine:
    """Runs every model of this process.

    Args:
        device: where models live.
        threads: PyTorch's CPU threads.
        max_batch: most items per forward pass; a larger job is cut.
        max_wait: seconds that a job which is alone waits for others.
        max_queue: jobs that may wait.
    """

    def __init__(self, device: str, threads: int, metrics: Metrics, *, max_batch: int, max_wait: float, max_queue: int) -> None:
        self.device, self.metrics = torch.device(device), metrics
        self.max_batch, self.max_wait = max_batch, max_wait
        self._threads = threads
        self._jobs: queue.Queue[_Job | None] = queue.Queue(max_queue)
        self._carried: _Job | None = None
        self._closed = self._ending = False  # no more comes in; the thread has seen that
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    async def encode(self, model: "LoadedModel", items: Items) -> np.ndarray:
        """Images, uint8 (n, 3, s, s), or texts -> embeddings (n, d). Raises QueueFullError."""
        result: Future[np.ndarray] = Future()
        self._put(_Encoding(model, items, result))
        return await asyncio.wrap_future(result)

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run a function in the inference thread (loading and warming a model touches the device). Raises QueueFullError."""
        result: Future[T] = Future()
        self._put(_Call(function, result))
        return result

    def close(self) -> None:
        self._closed = True
        self._jobs.put(None)
        self._thread.join(timeout=30)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _put(self, job: _Job) -> None:
        if self._closed:
            raise QueueFullError
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise QueueFullError from None
        self.metrics.queue.set(self._jobs.qsize())

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            job = self._carried or (None if self._ending else self._jobs.get())
            self._carried = None
            if job is None:
                return self._drain()
            self._work(job)
            del job  # an idle engine holds no model

    def _drain(self) -> None:
        while True:
            try:
                left = self._jobs.get_nowait()
            except queue.Empty:
                return
            if left and left.result.set_running_or_notify_cancel():
                left.result.set_exception(QueueFullError())

    def _work(self, first: _Job) -> None:
        jobs: list[_Job] = [first] if isinstance(first, _Call) else [*self._gather(first)]
        self.metrics.queue.set(self._jobs.qsize())
        # A client that went away is not worth a forward pass.
        jobs = [j for j in jobs if j.result.set_running_or_notify_cancel()]
        if not jobs:
            return
        try:
            if isinstance(first, _Call):
                answers = [first.function()]
            else:
                answers = self._encode([j for j in jobs if isinstance(j, _Encoding)])
        except Exception as error:  # whatever a model raises belongs to its requests, not to this thread
            for j in jobs:
                j.result.set_exception(error)
            return
        for j, answer in zip(jobs, answers, strict=True):
            j.result.set_result(answer)

    def _gather(self, first: _Encoding) -> list[_Encoding]:
        """The jobs that share a forward pass with `first`: those that wait already, and those that come within max_wait."""
        jobs, size = [first], len(first.items)
        until = time.monotonic() + self.max_wait
        while size < self.max_batch:
            try:
                left = until - time.monotonic()
                job = self._jobs.get(timeout=left) if left > 0 else self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._ending = True
                break
            if isinstance(job, _Call) or not job.may_join(first) or size + len(job.items) > self.max_batch:
                self._carried = job
                break
            jobs.append(job)
            size += len(job.items)
        return jobs

    def _encode(self, jobs: list[_Encoding]) -> list[np.ndarray]:
        model, items = jobs[0].model, _joined([j.items for j in jobs])
        kind, parts = _kind(items), []
        for start in range(0, len(items), self.max_batch):
            part = items[start : start + self.max_batch]
            began = time.perf_counter()
            parts.append(encode(model, part))
            self.metrics.inference.labels(kind).observe(time.perf_counter() - began)
            self.metrics.batch.labels(kind).observe(len(part))
        self.metrics.items.labels(model.domain, kind).inc(len(items))
        out = np.concatenate(parts)
        return np.split(out, np.cumsum([len(j.items) for j in jobs])[:-1])


def encode(model: "LoadedModel", items: Items) -> np.ndarray:
    """Embed one batch in the calling thread, which must be the inference thread: (n, d) fp32."""
    count = len(items)
    if backend(model.clip.device).fixed_shapes:  # so batches come in a few sizes
        wanted = next((b for b in BUCKETS if b >= count), count)
        items = _joined([items, *[items[-1:]] * (wanted - count)])
    with torch.inference_mode():
        if isinstance(items, list):
            out = model.clip.encode_texts(items)
        else:
            out = model.clip.encode_images(torch.from_numpy(items))
    return out[:count].cpu().numpy()


def _kind(items: Items) -> str:
    return "texts" if isinstance(items, list) else "images"


def _joined(parts: list[Items]) -> Items:
    """Items of one kind as one batch."""
    texts = [part for part in parts if isinstance(part, list)]
    if texts:
        return [text for part in texts for text in part]
    return np.concatenate([part for part in parts if not isinstance(part, list)])

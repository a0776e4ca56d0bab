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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .metrics import Metrics

if TYPE_CHECKING:
    from .loaded_model import Live

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Busy(Exception):
    """The queue is full."""


@dataclass
class _Job:
    live: "Live | None"
    kind: str  # "images", "texts", or "call"
    payload: Any  # uint8 (n, 3, s, s), a list of texts, or a function
    result: "Future[Any]"

    @property
    def size(self) -> int:
        return 0 if self.kind == "call" else len(self.payload)

    def joins(self, other: "_Job") -> bool:
        return self.kind == other.kind != "call" and self.live is other.live


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

    async def images(self, live: "Live", images: np.ndarray) -> np.ndarray:
        """uint8 (n, 3, s, s) -> embeddings (n, d). Raises Busy."""
        return await asyncio.wrap_future(self._put(_Job(live, "images", images, Future())))

    async def texts(self, live: "Live", texts: list[str]) -> np.ndarray:
        """Texts -> embeddings (n, d). Raises Busy."""
        return await asyncio.wrap_future(self._put(_Job(live, "texts", texts, Future())))

    def call(self, function: Callable[[], Any]) -> "Future[Any]":
        """Run a function in the inference thread (loading and warming a model touches the device)."""
        return self._put(_Job(None, "call", function, Future()))

    def close(self) -> None:
        self._closed = True
        self._jobs.put(None)
        self._thread.join(timeout=30)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _put(self, job: _Job) -> "Future[Any]":
        if self._closed:
            raise Busy
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Busy from None
        self.metrics.queue.set(self._jobs.qsize())
        return job.result

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
                left.result.set_exception(Busy())

    def _work(self, first: _Job) -> None:
        jobs = self._gather(first)
        self.metrics.queue.set(self._jobs.qsize())
        # A client that went away is not worth a forward pass.
        jobs = [j for j in jobs if j.result.set_running_or_notify_cancel()]
        if not jobs:
            return
        try:
            answers = [jobs[0].payload()] if jobs[0].kind == "call" else self._encode(jobs)
        except Exception as error:  # whatever a model raises belongs to its requests, not to this thread
            for j in jobs:
                j.result.set_exception(error)
            return
        for j, answer in zip(jobs, answers, strict=True):
            j.result.set_result(answer)

    def _gather(self, first: _Job) -> list[_Job]:
        """The jobs that share a forward pass with `first`: those that wait already, and those that come within max_wait."""
        jobs, size = [first], first.size
        until = time.monotonic() + self.max_wait
        while first.kind != "call" and size < self.max_batch:
            try:
                left = until - time.monotonic()
                job = self._jobs.get(timeout=left) if left > 0 else self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._ending = True
                break
            if not job.joins(first) or size + job.size > self.max_batch:
                self._carried = job
                break
            jobs.append(job)
            size += job.size
        return jobs

    def _encode(self, jobs: list[_Job]) -> list[np.ndarray]:
        live, kind = jobs[0].live, jobs[0].kind
        assert live is not None
        items = np.concatenate([j.payload for j in jobs]) if kind == "images" else [t for j in jobs for t in j.payload]
        parts = []
        for start in range(0, len(items), self.max_batch):
            part = items[start : start + self.max_batch]
            began = time.perf_counter()
            parts.append(encode(live, kind, part))
            self.metrics.inference.labels(kind).observe(time.perf_counter() - began)
            self.metrics.batch.labels(kind).observe(len(part))
        self.metrics.items.labels(live.domain, kind).inc(len(items))
        out = np.concatenate(parts)
        return np.split(out, np.cumsum([j.size for j in jobs])[:-1])


def encode(live: "Live", kind: str, part: Any) -> np.ndarray:
    """Embed one batch in the calling thread, which must be the inference thread: (n, d) fp32."""
    count = len(part)
    if live.clip.device.type != "cpu":
        # Graph caches of MPS and CUDA grow with every new shape, so batches come in a few sizes.
        wanted = next((b for b in BUCKETS if b >= count), count)
        part = np.concatenate([part, np.repeat(part[-1:], wanted - count, axis=0)]) if kind == "images" else [
            *part, *[part[-1]] * (wanted - count)
        ]  # fmt: skip
    with torch.inference_mode():
        out = live.clip.encode_images(torch.from_numpy(part)) if kind == "images" else live.clip.encode_texts(part)
    return out[:count].cpu().numpy()

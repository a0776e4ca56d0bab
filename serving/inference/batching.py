"""The engine: it owns the device, is fed by a queue, and answers in micro-batches.

One thread, the inference thread, because two threads that run MPS operations abort the process, and because on an accelerator one forward
pass over several requests is cheaper than several passes that compete. On a CPU other lanes help it, a thread each, with towers that are run by
something else than torch: there forward passes side by side are cheaper than threads that share each layer of one.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from clipft_tasks.devices import backend

from .errors import QueueFullError
from .job_queue import Call, Encoding, Job, JobQueue, kind_of
from .metrics import Metrics
from .tokenizing import joined

if TYPE_CHECKING:
    from .loaded_model import LoadedModel

T = TypeVar("T")
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
PART_SECONDS = 0.02  # that a part of a large job takes while small ones come, as far as is known
ALONE_SECONDS = 0.1  # likewise while none come: the first to come waits so long


class Engine:
    """Runs every model of this process.

    Args:
        device: where models live.
        threads: PyTorch's CPU threads.
        lanes: threads that run forward passes, the inference thread among them.
        max_batch: most items per forward pass; a larger job is cut.
        max_wait: seconds that a job which is alone waits for others, where a batch pays: what any lane runs waits for nobody.
        coming: items of all requests that are decoded, wait or are worked on: a job that is all of them waits for nobody.
        max_queue: jobs that may wait.
        most_seconds: that a job may wait; then it is not begun.
    """

    def __init__(
        self,
        device: str,
        threads: int,
        metrics: Metrics,
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        lanes: int = 1,
        most_seconds: float = 60.0,
        coming: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.device, self.metrics = torch.device(device), metrics
        self.max_batch, self.max_wait, self.most_seconds = max_batch, max_wait, most_seconds
        self._threads, self._coming = threads, coming
        self._jobs = JobQueue(max_queue, max(1, max_batch // 2), lanes)
        metrics.queue.set_function(lambda: len(self._jobs))
        self._item_seconds: dict[str, float] = {}  # of an item in the last forward pass, by kind
        self._busy_since: list[float | None] = [None] * lanes  # monotonic; None while idle
        self._lanes = [
            threading.Thread(target=self._run, args=(lane,), name=f"inference-{lane}" if lane else "inference", daemon=True)
            for lane in range(lanes)
        ]
        for thread in self._lanes:
            thread.start()

    @property
    def busy_since(self) -> float | None:
        """Since when the lane has worked on one thing that has done so for longest, monotonic; None while all are idle."""
        return min((since for since in self._busy_since if since is not None), default=None)

    async def encode(self, model: "LoadedModel", items: np.ndarray) -> np.ndarray:
        """Images, uint8 (n, 3, s, s), or token ids, int64 (n, length) -> embeddings (n, d). Raises QueueFullError."""
        result: Future[np.ndarray] = Future()
        self._jobs.put(Encoding(model, items, result))
        return await asyncio.wrap_future(result)

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run a function in the inference thread (loading and warming a model touches the device). Raises QueueFullError."""
        result: Future[T] = Future()
        self._jobs.put(Call(function, result))
        return result

    def close(self) -> None:
        for left in self._jobs.close():
            if left.result.set_running_or_notify_cancel():
                left.result.set_exception(QueueFullError("The server ends"))
        for thread in self._lanes:
            thread.join(timeout=30)

    @property
    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._lanes)

    def _run(self, lane: int) -> None:
        if not lane:
            torch.set_num_threads(self._threads)
        while (job := self._jobs.get(helps=lane > 0)) is not None:
            self._busy_since[lane] = time.monotonic()
            self._work(job)
            del job  # an idle engine holds no model
            self._busy_since[lane] = None

    def _work(self, first: Job) -> None:
        if isinstance(first, Call):
            if first.result.set_running_or_notify_cancel():
                _settle(first.result, first.function)
        elif self._jobs.is_large(first):
            try:
                self._work_on_part(first)
            finally:
                self._jobs.part_ended()
        else:
            self._work_together(self._gather(first))

    def _work_together(self, jobs: list[Encoding]) -> None:
        # A client that went away is not worth a forward pass.
        jobs = [job for job in jobs if not self._is_late(job) and job.result.set_running_or_notify_cancel()]
        if not jobs:
            return
        try:
            out = self._encode(jobs[0].model, _joined(jobs[0].model, [job.items for job in jobs]))
        except Exception as error:  # whatever a model raises belongs to its requests, not to this thread
            for job in jobs:
                job.result.set_exception(error)
            return
        for job, answer in zip(jobs, np.split(out, np.cumsum([len(job.items) for job in jobs])[:-1]), strict=True):
            job.result.set_result(answer)

    def _work_on_part(self, job: Encoding) -> None:
        """One forward pass of a large job, a short one where small jobs wait for their turn."""
        if job.result.cancelled() or (not job.done and self._is_late(job)):
            return
        size = self._part_size(job.kind)
        try:
            job.parts.append(self._encode(job.model, job.items[job.done : job.done + size]))
            job.done += size
            if job.done < len(job.items):
                return self._jobs.put_back(job)
        except Exception as error:
            if job.result.set_running_or_notify_cancel():
                job.result.set_exception(error)
            return
        if job.result.set_running_or_notify_cancel():
            job.result.set_result(np.concatenate(job.parts))

    def _part_size(self, kind: str) -> int:
        """Items of a large job's part: as many as small jobs may wait for, a power of two, as backends know these sizes."""
        seconds, most = (PART_SECONDS, self.max_batch // 4) if self._jobs.is_shared else (ALONE_SECONDS, self.max_batch)
        fitting = int(seconds / max(self._item_seconds.get(kind, 0.0), 1e-6))
        return 1 << (max(1, min(most, fitting)).bit_length() - 1)

    def _is_late(self, job: Encoding) -> bool:
        """Whether a job waited for longer than any client is assumed to; then it is answered so."""
        if time.monotonic() - job.at <= self.most_seconds:
            return False
        if job.result.set_running_or_notify_cancel():
            job.result.set_exception(QueueFullError(f"This waited for the model for more than {self.most_seconds:g} s"))
        return True

    def _gather(self, first: Encoding) -> list[Encoding]:
        """The jobs that share a forward pass with `first`: those that wait already, and those that come within max_wait."""
        jobs, size = [first], len(first.items)
        waits = self._coming() > size and not (len(self._lanes) > 1 and first.runs_in_any_lane())
        until = time.monotonic() + (self.max_wait if waits else 0)
        while size < self.max_batch and (job := self._jobs.get_joining(first, size, self.max_batch, until)):
            jobs.append(job)
            size += len(job.items)
        return jobs

    def _encode(self, model: "LoadedModel", items: np.ndarray) -> np.ndarray:
        kind, began = kind_of(items), time.perf_counter()
        out = encode(model, items)
        seconds = time.perf_counter() - began
        self._item_seconds[kind] = seconds / len(items)
        self.metrics.inference.labels(kind).observe(seconds)
        self.metrics.batch.labels(kind).observe(len(items))
        self.metrics.items.labels(model.domain, kind).inc(len(items))
        return out


def _settle(result: "Future[T]", function: Callable[[], T]) -> None:
    try:
        result.set_result(function())
    except Exception as error:
        result.set_exception(error)


def encode(model: "LoadedModel", items: np.ndarray) -> np.ndarray:
    """Embed one batch, images or token ids, in the calling thread: (n, d) fp32. Where torch runs it, that must be the inference thread."""
    count = len(items)
    if backend(model.clip.device).fixed_shapes:  # so batches come in a few sizes
        wanted = next((b for b in BUCKETS if b >= count), count)
        items = np.concatenate([items, *[items[-1:]] * (wanted - count)])
    with torch.inference_mode():
        given = torch.from_numpy(items)
        out = model.clip.encode_images(given) if kind_of(items) == "images" else model.clip.encode_tokens(given)
    return out[:count].cpu().numpy()


def _joined(model: "LoadedModel", parts: list[np.ndarray]) -> np.ndarray:
    """Items of one kind as one batch."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if kind_of(parts[0]) == "images" else joined(parts, model.clip.pad)

"""The engine: one thread that owns the device, fed by a queue, answering in micro-batches.

One thread, because two threads that run MPS operations abort the process, and because on every device one forward pass over
several requests is cheaper than several passes that compete.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch

from clipft_tasks.devices import backend

from .errors import QueueFullError
from .fair_queue import CLIENT, FairLine
from .metrics import Metrics

if TYPE_CHECKING:
    from .loaded_model import LoadedModel

T = TypeVar("T")
Items = np.ndarray | list[str]  # images, uint8 (n, 3, s, s), or texts
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
SHARED = 1.0  # seconds after a small job in which large ones are cut finer
PART_SECONDS = 0.02  # that a part of them takes then, as far as is known


@dataclass
class _Encoding:
    """Items to embed. Those of one model and kind may share a forward pass; a large one takes several, with others between."""

    model: "LoadedModel"
    items: Items
    result: "Future[np.ndarray]"
    at: float = field(default_factory=time.monotonic)
    client: str = field(default_factory=CLIENT.get)
    parts: list[np.ndarray] = field(default_factory=list)
    done: int = 0

    def may_join(self, other: "_Encoding") -> bool:
        return self.model is other.model and _kind(self.items) == _kind(other.items)


@dataclass
class _Call(Generic[T]):
    """A function that must run in the inference thread."""

    function: Callable[[], T]
    result: "Future[T]"
    client: str = field(default_factory=CLIENT.get)


_Job = _Encoding | _Call[Any]  # only its caller knows what a function returns


class _Queue:
    """Jobs that wait, in two lines: small ones and calls, and large ones, which take turns with them. In each line clients take
    turns, and what one client asks keeps its order.

    Args:
        most: jobs.
        large: items beyond which a job is large.
    """

    def __init__(self, most: int, large: int) -> None:
        self._most, self._large = most, large
        self._lines: tuple[FairLine[_Job], FairLine[_Job]] = (FairLine(), FairLine())
        self._turn = 0
        self._changed = threading.Condition()
        self.is_closed = False

    def __len__(self) -> int:
        return sum(map(len, self._lines))

    def put(self, job: _Job) -> None:
        with self._changed:
            if self.is_closed or len(self) >= self._most:
                raise QueueFullError
            self._line_of(job).append(job.client, job)
            self._changed.notify()

    def put_back(self, job: _Encoding) -> None:
        """A large job that is not done yet: the others come first. Raises QueueFullError when the queue is closed."""
        with self._changed:
            if self.is_closed:
                raise QueueFullError("The server ends")
            self._line_of(job).append(job.client, job)

    def get(self) -> _Job | None:
        """The next job; waits for one. None when the queue is closed."""
        with self._changed:
            while not self.is_closed and not len(self):
                self._changed.wait()
            if self.is_closed:
                return None
            line = self._lines[self._turn] if len(self._lines[self._turn]) else self._lines[1 - self._turn]
            self._turn = 1 if line is self._lines[0] else 0
            return line.pop_first()

    def get_joining(self, first: _Encoding, room: int, until: float) -> _Encoding | None:
        """A small job that may share a forward pass with `first` and has at most `room` items. Waits for one until then, unless
        something else is to do."""
        with self._changed:
            while not self.is_closed and not len(self):
                left = until - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            job = self._lines[0].first() if len(self._lines[0]) and not self.is_closed else None
            if not isinstance(job, _Encoding) or not job.may_join(first) or len(job.items) > room:
                return None
            self._lines[0].pop_first()
            return job

    def close(self) -> list[_Job]:
        """Nothing comes in or out any more; returns what waited."""
        with self._changed:
            self.is_closed = True
            left = [job for line in self._lines for job in line]
            for line in self._lines:
                line.clear()
            self._changed.notify_all()
            return left

    def _line_of(self, job: _Job) -> FairLine[_Job]:
        return self._lines[isinstance(job, _Encoding) and len(job.items) > self._large]


class Engine:
    """Runs every model of this process.

    Args:
        device: where models live.
        threads: PyTorch's CPU threads.
        max_batch: most items per forward pass; a larger job is cut.
        max_wait: seconds that a job which is alone waits for others.
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
        most_seconds: float = 60.0,
        coming: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.device, self.metrics = torch.device(device), metrics
        self.max_batch, self.max_wait, self.most_seconds = max_batch, max_wait, most_seconds
        self._threads, self._coming = threads, coming
        self._large = max(1, max_batch // 2)  # items beyond which a job is large
        self._jobs = _Queue(max_queue, self._large)
        self._small_at = 0.0  # when a small job was last worked on
        self._item_seconds: dict[str, float] = {}  # of an item in the last forward pass, by kind
        self.busy_since: float | None = None  # monotonic; None while idle
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
        for left in self._jobs.close():
            if left.result.set_running_or_notify_cancel():
                left.result.set_exception(QueueFullError("The server ends"))
        self._thread.join(timeout=30)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _put(self, job: _Job) -> None:
        self._jobs.put(job)
        self.metrics.queue.set(len(self._jobs))

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while (job := self._jobs.get()) is not None:
            self.busy_since = time.monotonic()
            self._work(job)
            del job  # an idle engine holds no model
            self.busy_since = None

    def _work(self, first: _Job) -> None:
        if isinstance(first, _Call):
            if first.result.set_running_or_notify_cancel():
                _settle(first.result, first.function)
        elif len(first.items) > self._large:
            self._work_on_part(first)
        else:
            self._small_at = time.monotonic()
            self._work_together(self._gather(first))
        self.metrics.queue.set(len(self._jobs))

    def _work_together(self, jobs: list[_Encoding]) -> None:
        # A client that went away is not worth a forward pass.
        jobs = [job for job in jobs if not self._is_late(job) and job.result.set_running_or_notify_cancel()]
        if not jobs:
            return
        try:
            out = self._encode(jobs[0].model, _joined([job.items for job in jobs]))
        except Exception as error:  # whatever a model raises belongs to its requests, not to this thread
            for job in jobs:
                job.result.set_exception(error)
            return
        for job, answer in zip(jobs, np.split(out, np.cumsum([len(job.items) for job in jobs])[:-1]), strict=True):
            job.result.set_result(answer)

    def _work_on_part(self, job: _Encoding) -> None:
        """One forward pass of a large job, a short one where small jobs wait for their turn."""
        if job.result.cancelled() or (not job.done and self._is_late(job)):
            return
        is_shared = time.monotonic() - self._small_at < SHARED
        size = self._part_size(_kind(job.items)) if is_shared else self.max_batch
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
        """Items of a large job's part while small jobs wait for it: a power of two, as backends know these sizes."""
        fitting = int(PART_SECONDS / max(self._item_seconds.get(kind, 0.0), 1e-6))
        return 1 << (max(1, min(self.max_batch // 4, fitting)).bit_length() - 1)

    def _is_late(self, job: _Encoding) -> bool:
        """Whether a job waited for longer than any client is assumed to; then it is answered so."""
        if time.monotonic() - job.at <= self.most_seconds:
            return False
        if job.result.set_running_or_notify_cancel():
            job.result.set_exception(QueueFullError(f"This waited for the model for more than {self.most_seconds:g} s"))
        return True

    def _gather(self, first: _Encoding) -> list[_Encoding]:
        """The jobs that share a forward pass with `first`: those that wait already, and those that come within max_wait."""
        jobs, size = [first], len(first.items)
        until = time.monotonic() + (self.max_wait if self._coming() > size else 0)
        while size < self.max_batch and (job := self._jobs.get_joining(first, self.max_batch - size, until)):
            jobs.append(job)
            size += len(job.items)
        return jobs

    def _encode(self, model: "LoadedModel", items: Items) -> np.ndarray:
        kind, began = _kind(items), time.perf_counter()
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

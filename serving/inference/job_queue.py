"""Jobs that wait for the engine: small ones and calls, and large ones that are done in parts."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np

from clipft_tasks.model.backends.base import SharedRunner

from .errors import QueueFullError
from .fair_queue import CLIENT, FairLine

if TYPE_CHECKING:
    from .loaded_model import LoadedModel

T = TypeVar("T")
SHARED = 1.0  # seconds after a small job in which large ones are cut finer, and leave a lane free


@dataclass
class Encoding:
    """Items to embed. Those of one model and kind may share a forward pass; a large one takes several, with others between.

    Attributes:
        items: images, uint8 (n, 3, s, s), or token ids, int64 (n, length).
        done: of them, so far; parts: their embeddings.
    """

    model: "LoadedModel"
    items: np.ndarray
    result: "Future[np.ndarray]"
    at: float = field(default_factory=time.monotonic)
    client: str = field(default_factory=CLIENT.get)
    parts: list[np.ndarray] = field(default_factory=list)
    done: int = 0

    @property
    def kind(self) -> Literal["images", "texts"]:
        return kind_of(self.items)

    def may_join(self, other: "Encoding") -> bool:
        return self.model is other.model and self.kind == other.kind

    def runs_in_any_lane(self) -> bool:
        """Whether something else than torch runs it, which several threads may."""
        clip = self.model.clip
        runner = clip.text_runner if self.kind == "texts" else clip.image_runners.get(self.items.shape[-1])
        return isinstance(runner, SharedRunner)


@dataclass
class Call(Generic[T]):
    """A function that must run in the inference thread."""

    function: Callable[[], T]
    result: "Future[T]"
    client: str = field(default_factory=CLIENT.get)


Job = Encoding | Call[Any]  # only its caller knows what a function returns


def kind_of(items: np.ndarray) -> Literal["images", "texts"]:
    return "images" if items.ndim == 4 else "texts"


class JobQueue:
    """Jobs in two lines: small ones and calls, and large ones, which take turns with them. In each line clients take turns, and what
    one client asks keeps its order.

    Args:
        most: jobs.
        large: items beyond which a job is large.
        lanes: threads that take jobs. While small jobs come, large ones leave one of them free.
    """

    def __init__(self, most: int, large: int, lanes: int = 1) -> None:
        self._most, self._large, self._lanes = most, large, lanes
        self._small_line: FairLine[Job] = FairLine()
        self._large_line: FairLine[Job] = FairLine()
        self._large_is_next = False
        self._large_running = 0
        self._small_at = 0.0  # when a small job was last taken
        lock = threading.Lock()
        self._changed, self._helpers = threading.Condition(lock), threading.Condition(lock)  # what helping lanes wait for
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._small_line) + len(self._large_line)

    def is_large(self, job: Job) -> bool:
        return isinstance(job, Encoding) and len(job.items) > self._large

    @property
    def is_shared(self) -> bool:
        """Whether small jobs came a moment ago."""
        return time.monotonic() - self._small_at < SHARED

    def put(self, job: Job) -> None:
        with self._changed:
            if self.is_closed or len(self) >= self._most:
                raise QueueFullError
            (self._large_line if self.is_large(job) else self._small_line).append(job.client, job)
            self._notify(job)

    def put_back(self, job: Encoding) -> None:
        """A large job that is not done yet: the others come first. Raises QueueFullError when the queue is closed."""
        with self._changed:
            if self.is_closed:
                raise QueueFullError("The server ends")
            self._large_line.append(job.client, job)

    def part_ended(self) -> None:
        """A large job that `get` gave is not worked on any more, for now or for good."""
        with self._changed:
            self._large_running -= 1
            if len(self._large_line):
                self._notify(self._large_line.first())

    def get(self, *, helps: bool = False) -> Job | None:
        """The next job; waits for one. None when the queue is closed.

        Args:
            helps: the lane is not the inference thread, so it takes only what any lane may run.
        """
        with self._changed:
            while not self.is_closed:
                if (job := self._next(helps)) is not None:
                    return job
                (self._helpers if helps else self._changed).wait()
            return None

    def get_joining(self, first: Encoding, taken: int, most: int, until: float) -> Encoding | None:
        """A small job that may share a forward pass with `first`. Waits for one until then, unless something else is to do.

        Args:
            taken: items of the forward pass so far; most: that it may have. Where any lane may run the job, others are left as
                much as this one takes.
        """
        with self._changed:
            while not self.is_closed and not len(self):
                left = until - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            if self.is_closed or not len(self._small_line):
                return None
            job = self._small_line.first()
            if not isinstance(job, Encoding) or not job.may_join(first) or taken + len(job.items) > most:
                return None
            if self._lanes > 1 and first.runs_in_any_lane() and taken >= len(self._small_line) / (self._lanes - 1):
                return None
            self._small_line.pop_first()
            return job

    def close(self) -> list[Job]:
        """Nothing comes in or out any more; returns what waited."""
        with self._changed:
            self.is_closed = True
            left = [*self._small_line, *self._large_line]
            self._small_line.clear()
            self._large_line.clear()
            self._changed.notify_all()
            self._helpers.notify_all()
            return left

    def _notify(self, job: Job) -> None:
        self._changed.notify_all()
        if self._lanes > 1 and isinstance(job, Encoding) and job.runs_in_any_lane():
            self._helpers.notify()

    def _next(self, helps: bool) -> Job | None:
        def fits(job: Job) -> bool:
            return not helps or (isinstance(job, Encoding) and job.runs_in_any_lane())

        may_be_large = self._large_running < max(1, self._lanes - 1) or not self.is_shared
        for is_large in (self._large_is_next, not self._large_is_next):
            if is_large and not may_be_large:
                continue
            job = (self._large_line if is_large else self._small_line).take(fits)
            if job is not None:
                self._large_is_next = not is_large
                self._large_running += is_large
                if isinstance(job, Encoding) and not is_large:
                    self._small_at = time.monotonic()
                return job
        return None

"""What an image is, found out once: decoded in worker processes, and remembered by its bytes.

What was found is kept in a small database under home, so that an ingest that was killed, or that meets the same bytes again,
reads and hashes them and decodes none.
"""

import json
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from multiprocessing import connection, current_process, parent_process
from typing import Generic, TypeVar

from ..core.errors import ClipftError, TransientError
from ..core.processes import fresh_pool
from ..core.settings import settings
from .images import BadImageError, open_image, perceptual_hash

RULES = 1  # raised when the same bytes are described otherwise
INLINE = 1.0  # CPU seconds of work before processes are started, which takes as long
BATCH_IMAGES, BATCH_BYTES = 16, 4 * 2**20  # one message to a worker
REMEMBER = 256  # images between two writes to the database
ENDED = "decoding it ended the process: it takes more memory than there is, or a decoder has a fault"

T = TypeVar("T")


@dataclass(frozen=True)
class Described:
    """What a manifest says of an image's pixels; `refused` is the reason why it is none, and then the rest is empty."""

    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    phash: str = ""
    refused: str = ""
    kind: str = ""  # of reason, for counting


@dataclass(frozen=True)
class Piece(Generic[T]):
    """Bytes to be described, and whatever belongs to them."""

    of: T
    data: bytes
    sha256: str


def describe(data: bytes, gray_bits: int) -> Described:
    """Decode an image and say what it is. See `images.deep_gray` for `gray_bits`."""
    try:
        image = open_image(data, gray_bits=gray_bits)
        return Described(image.width, image.height, image.mode, image.format, perceptual_hash(image.rgb).hex())
    except (ClipftError, TransientError):  # something is missing here, for every image
        raise
    except Exception as error:
        reason, kind = reason_of(error)
        return Described(refused=reason, kind=kind)


def reason_of(error: Exception) -> tuple[str, str]:
    """The reason that a row's error is, fit for a person, and its kind."""
    if isinstance(error, BadImageError):
        return str(error), error.kind
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}", "cannot be read"


def describe_all(
    pieces: Iterable[Piece[T]], gray_bits: int, known: Mapping[str, Described] | None = None, workers: int | None = None
) -> Iterator[tuple[Piece[T], Described]]:
    """Describe images in the order given, several at a time; the result is the same with any number of workers.

    At most a few messages a worker are under way, so memory does not grow with the number of images.

    Args:
        known: by sha256, what need not be found out.
        workers: processes; default: the cores that this process may use, at most 8. 0: none.
    """
    workers = min(_cores(), 8) if workers is None else workers
    if current_process().daemon:  # such a process may have no children
        workers = 0
    found = dict(known or {})
    with closing(_Memory(gray_bits)) as memory, closing(_Pool(gray_bits, workers)) as pool:
        waiting: deque[tuple[list[Piece[T]], Future[list[Described]] | None]] = deque()

        def finish() -> Iterator[tuple[Piece[T], Described]]:
            batch, future = waiting.popleft()
            if future is not None:
                for piece, described in zip(batch, pool.result(future, [p.data for p in batch]), strict=True):
                    found[piece.sha256] = described
                    memory.add(piece.sha256, described)
            yield from ((piece, found[piece.sha256]) for piece in batch)

        for batch, new in _batches(pieces, found, memory):
            waiting.append((batch, pool.submit([piece.data for piece in batch]) if new else None))
            while len(waiting) > 2 * workers:
                yield from finish()
        while waiting:
            yield from finish()


def _batches(
    pieces: Iterable[Piece[T]], found: dict[str, Described], memory: "_Memory"
) -> Iterator[tuple[list[Piece[T]], bool]]:
    """Pieces in order, in batches of which all must be described, or none."""
    batch: list[Piece[T]] = []
    bytes_, new = 0, False
    for piece in pieces:
        unknown = piece.sha256 not in found
        if unknown and (remembered := memory.get(piece.sha256)):
            found[piece.sha256], unknown = remembered, False
        if batch and (unknown != new or len(batch) >= BATCH_IMAGES or bytes_ >= BATCH_BYTES):
            yield batch, new
            batch, bytes_ = [], 0
        new = unknown
        batch.append(piece)
        bytes_ += len(piece.data)
    if batch:
        yield batch, new


class _Pool:
    """Worker processes, started when there is enough for them to do; without any, the work is done here.

    They are spawned, never forked: threads and frameworks of this process would hang in a forked one.
    """

    def __init__(self, gray_bits: int, workers: int) -> None:
        self.gray_bits, self.workers, self.spent = gray_bits, workers, 0.0
        self.executor: ProcessPoolExecutor | None = None

    def submit(self, images: list[bytes]) -> "Future[list[Described]]":
        if not self.workers or self.spent < INLINE:
            began, done = time.thread_time(), Future[list[Described]]()
            done.set_result(_describe_batch(images, self.gray_bits))
            self.spent += time.thread_time() - began
            return done
        try:
            return self._started().submit(_describe_batch, images, self.gray_bits)
        except BrokenProcessPool as error:  # of an earlier batch, whose own result says so
            broken: Future[list[Described]] = Future()
            broken.set_exception(error)
            return broken

    def result(self, future: "Future[list[Described]]", images: list[bytes]) -> list[Described]:
        """A batch's result; where a process died of it, each image by itself, and the one that kills is refused."""
        with suppress(BrokenProcessPool):
            return future.result()
        self._stop()
        out = []
        for data in images:
            try:
                out += self._started().submit(_describe_batch, [data], self.gray_bits).result()
            except BrokenProcessPool:
                out.append(Described(refused=ENDED, kind="cannot be read"))
                self._stop()
        return out

    def _started(self) -> ProcessPoolExecutor:
        if self.executor is None:
            self.executor = fresh_pool(self.workers, end_with_parent)
        return self.executor

    def _stop(self) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)
        self.executor = None

    close = _stop


class _Memory:
    """What is known of images by their bytes: one small database a rule of reading, shared by all processes of this home."""

    def __init__(self, gray_bits: int) -> None:
        path = settings().folder("cache", "described") / f"{RULES}-{gray_bits}.db"
        self.fresh: dict[str, Described] = {}
        self.there: sqlite3.Connection | None = None
        with suppress(sqlite3.Error):  # a cache that cannot be opened costs time, and nothing else
            self.there = sqlite3.connect(path, timeout=30)
            self.there.execute("create table if not exists described (sha256 text primary key, said text) without rowid")

    def get(self, sha256: str) -> Described | None:
        with suppress(sqlite3.Error, ValueError, TypeError):
            row = self.there and self.there.execute("select said from described where sha256 = ?", (sha256,)).fetchone()
            return Described(**json.loads(row[0])) if row else None
        return None

    def add(self, sha256: str, described: Described) -> None:
        if described.refused == ENDED:  # of this machine's memory, perhaps
            return
        self.fresh[sha256] = described
        if len(self.fresh) >= REMEMBER:
            self._write()

    def _write(self) -> None:
        rows = [(sha256, json.dumps(asdict(said))) for sha256, said in self.fresh.items()]
        self.fresh.clear()
        with suppress(sqlite3.Error):
            if self.there:
                with self.there:
                    self.there.executemany("insert or replace into described values (?, ?)", rows)

    def close(self) -> None:
        self._write()
        if self.there:
            self.there.close()


def _describe_batch(images: list[bytes], gray_bits: int) -> list[Described]:
    return [describe(data, gray_bits) for data in images]


def end_with_parent() -> None:
    """Let a worker end when the process that started it does, however that ended."""
    if (parent := parent_process()) is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

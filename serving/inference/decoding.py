"""Images of requests, decoded in threads of their own under a budget of pixels.

Small images share a few threads, those of large requests half of them while small requests come: cores are left for these. Large images
wait in one lane, so that however many come, one is decoded at a time and small ones never wait for them. What nobody waits for any more
is not decoded.
"""

import asyncio
import contextlib
import ctypes
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, TypeVar

from PIL import Image

from clipft_tasks.data.images import FORMATS, BadImageError, FewReads, Limits

from .admission import SMALL_REQUEST, Budget
from .errors import RequestRejectedError
from .fair_queue import FairPool
from .job_queue import SHARED
from .settings import ServingSettings

T = TypeVar("T")
LARGE = 4_000_000  # pixels from which an image takes the lane of large ones
ARENAS = -8  # mallopt's M_ARENA_MAX


class _TakenBackError(Exception):
    """The work was taken back before it began."""


class Decoder:
    """Decodes the images of all requests of one process.

    Args:
        threads: for small images.
    """

    def __init__(self, options: ServingSettings, threads: int) -> None:
        self.options = options
        self.limits = Limits(bytes=int(options.max_image_mb * 2**20), pixels=options.max_pixels)
        self._pixels = Budget(options.max_queue_pixels, 0, "Too many pixels are waiting")
        self._small, self._large = FairPool(max(2, threads), "decode"), FairPool(1, "decode-large")
        self._many = FairPool(max(1, threads // 2), "decode-many")
        self._small_at = 0.0  # when a small request last came
        keep_few_arenas()

    @property
    def waiting(self) -> int:
        """Pixels of large images that wait or are decoded."""
        return self._pixels.used

    def close(self) -> None:
        for pool in (self._small, self._many, self._large):
            pool.shutdown(wait=False, cancel_futures=True)

    async def decode(self, images: Sequence[bytes], decode: Callable[[bytes], T]) -> list[T]:
        """What `decode` makes of each image, called in a thread. One that fails ends the others' turn.

        Raises: RequestRejectedError, which names the first bad image that was found; QueueFullError.
        """
        batch = _Batch(decode, self.limits)
        try:
            first = await self._all(self._pool_for(len(images)), batch.small_or_size, images)
            sizes = {number: found for number, found in enumerate(first) if isinstance(found, _Size)}
            with self._admitted(sum(size.pixels for size in sizes.values())):
                large = await self._all(self._large, batch.run, [images[n] for n in sizes], list(sizes))
            done = dict(zip(sizes, large, strict=True))
            return [done[n] if isinstance(found, _Size) else found for n, found in enumerate(first)]
        finally:
            batch.is_wanted = False
            if batch.was_large:
                self.give_back_later()

    def give_back_later(self) -> None:
        """Return to the system what large bodies and images took, once those before in the lane are done."""
        asyncio.get_running_loop().run_in_executor(self._large, give_back_memory)

    def _pool_for(self, images: int) -> FairPool:
        if images <= SMALL_REQUEST:
            self._small_at = time.monotonic()
            return self._small
        return self._many if time.monotonic() - self._small_at < SHARED else self._small

    def _admitted(self, pixels: int) -> AbstractContextManager[None]:
        if pixels > self.options.max_request_pixels:
            most = f"{self.options.max_request_pixels:,}"
            raise RequestRejectedError(
                413, f"The large images of one request have {pixels:,} pixels, more than {most}.", "too_many"
            )
        return self._pixels.taken(pixels) if pixels else contextlib.nullcontext()

    @staticmethod
    async def _all(
        pool: FairPool, work: Callable[[int, bytes], T], images: Sequence[bytes], numbers: Sequence[int] = ()
    ) -> list[T]:
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(pool, work, n, i) for n, i in zip(numbers or range(len(images)), images, strict=True)]
        try:
            return list(await asyncio.gather(*futures))
        finally:
            for future in futures:
                future.cancel()


class _Size:
    def __init__(self, pixels: int) -> None:
        self.pixels = pixels


class _Batch(Generic[T]):
    """The images of one request. Threads cannot be stopped, so each looks here first whether its work is still wanted."""

    def __init__(self, decode: Callable[[bytes], T], limits: Limits) -> None:
        self._decode, self._limits = decode, limits
        self.is_wanted, self.was_large = True, False
        self.failure: Exception = _TakenBackError()

    def small_or_size(self, number: int, image: bytes) -> T | _Size:
        """A small image decoded, or how large it is."""
        pixels = _pixels_of(image) if len(image) <= self._limits.bytes else 0
        if LARGE < pixels <= self._limits.pixels:
            self.was_large = True
            return _Size(pixels)
        return self.run(number, image)

    def run(self, number: int, image: bytes) -> T:
        with self._named(number):
            return self._decode(image)

    @contextmanager
    def _named(self, number: int) -> Iterator[None]:
        if not self.is_wanted:
            raise self.failure
        try:
            yield
        except BadImageError as error:
            self.failure = RequestRejectedError(422, f"Image {number + 1}: {error}.", "bad_image", index=number)
            self.is_wanted = False
            raise self.failure from error


def _pixels_of(image: bytes) -> int:
    """What an image's head says; 0 where it cannot be read, and decoding it will say why not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(FewReads(image), formats=tuple(FORMATS)).size
    except Exception:  # Pillow raises whatever its parsers raise
        return 0
    return width * height


def keep_few_arenas() -> None:
    """Let glibc share a few heaps among all threads: each would keep the peak of what it once decoded."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(ARENAS, 4)


_trimming = threading.Lock()


def give_back_memory() -> None:
    """Return to the system what decoding freed; elsewhere than on glibc the system takes it by itself."""
    if sys.platform == "linux" and _trimming.acquire(blocking=False):
        try:
            with contextlib.suppress(AttributeError, OSError):
                ctypes.CDLL(None).malloc_trim(0)
        finally:
            _trimming.release()

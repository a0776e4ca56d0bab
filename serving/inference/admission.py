"""What one server process takes in at a time. Every limit is checked before the work that it limits.

A request passes, in this order:

1. its head: who asks, how often, how large the body says it is (`middleware`, by the route's `Rule`);
2. its body: read within a time and under one budget of bytes for all large bodies, parsed off the event loop where it is large;
3. its items: how many, how long, how many pixels (`check_items`, `check_texts`; `decoding` for pixels);
4. the queues: `working` admits items under one budget for all requests; large requests never take all of it;
5. a deadline, and the client's patience: whoever hangs up takes the work back.

A new route gets 1, 2 and 5 from its rule, and 3 and 4 from `InferenceService`.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from .errors import QueueFullError, RequestRejectedError
from .settings import ServingSettings

T = TypeVar("T")
SMALL_BODY = 100 * 2**10  # bytes that the event loop parses itself, and that no budget counts
SETTING_BODY = 64 * 2**10  # largest body of a request that is no inference
SMALL_REQUEST = 8  # items up to which a request may use the last quarter of a budget
PARTS = 16  # commas and brackets of JSON that belong to one item


class Budget:
    """So much of something may be in use at once. Not for several threads: only the event loop asks.

    Args:
        reserved: of it, for small requests alone.
    """

    def __init__(self, most: int, reserved: int, why: str) -> None:
        self.most, self.reserved, self.why = most, reserved, why
        self.used = 0

    def take(self, count: int, *, is_small: bool) -> None:
        """Raises QueueFullError where it is used up. An idle budget takes anything."""
        most = self.most if is_small else self.most - self.reserved
        if self.used and self.used + count > most:
            raise QueueFullError(self.why)
        self.used += count

    def give_back(self, count: int) -> None:
        self.used -= count


class Admission:
    """The limits of one server process."""

    def __init__(self, options: ServingSettings) -> None:
        self.options = options
        self.bodies = Budget(int(options.max_bodies_mb * 2**20), 0, f"{options.max_bodies_mb:g} MiB of bodies are being read")
        self.items = Budget(
            options.max_queue_items, options.max_queue_items // 4, f"{options.max_queue_items} images and texts are waiting"
        )
        self._parsing = ThreadPoolExecutor(1, "parse")  # one: bodies that are parsed take several times their size

    def close(self) -> None:
        self._parsing.shutdown(wait=False, cancel_futures=True)

    def check_items(self, kind: str, count: int) -> None:
        """Raises RequestRejectedError for more items than one request may hold. `kind`: images, texts or classes."""
        most = self.options.max_classes if kind == "classes" else self.options.max_items
        if count > most:
            raise RequestRejectedError(413, f"{count:,} {kind} in one request, more than {most}.", "too_many")

    def check_texts(self, texts: Sequence[str], kind: str = "texts") -> None:
        """Raises RequestRejectedError for too many or too long ones."""
        self.check_items(kind, len(texts))
        for number, text in enumerate(texts):
            if len(text) > self.options.max_text:
                one = "Class" if kind == "classes" else "Text"
                why = f"{one} {number + 1}: {len(text):,} characters, more than {self.options.max_text:,}."
                raise RequestRejectedError(422, why, "long_text")

    def check_json(self, raw: bytes) -> None:
        """Raises RequestRejectedError for JSON of more parts than a request that may be answered has: each takes memory of a
        hundred times its bytes before anything can be said about it."""
        if len(raw) <= SMALL_BODY:
            return
        options = self.options
        most = (options.max_items + options.max_classes) * (options.max_text // 4 + PARTS)
        if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > most:
            raise RequestRejectedError(413, f"The body has more than {most:,} parts; send fewer in one request.", "too_many")

    async def off_loop(self, size: int, function: Callable[[], T]) -> T:
        """What a function of a body of `size` bytes returns; called in a thread where the body is large."""
        if size <= SMALL_BODY:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._parsing, function)

    @contextmanager
    def working(self, count: int) -> Iterator[None]:
        """While so many items of one request are decoded, wait or are embedded. Raises QueueFullError."""
        self.items.take(count, is_small=count <= SMALL_REQUEST)
        try:
            yield
        finally:
            self.items.give_back(count)

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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from .addresses import AddressLimit
from .errors import QueueFullError, RequestRejectedError
from .fair_queue import CLIENT, FairPool, FairTurns
from .large_json import without_long_strings
from .security import Holds
from .settings import ServingSettings

T = TypeVar("T")
SMALL_BODY = 100 * 2**10  # bytes that the event loop parses itself, and that no budget counts
SETTING_BODY = 64 * 2**10  # largest body of a request that is no inference
SMALL_REQUEST = 8  # items up to which a request may use the last quarter of a budget
SMALL_JSON = 16 * 2**10  # bytes that are parsed as they are
PLAIN_JSON = 512 * 2**10  # likewise, and by the event loop, where there are few parts: one image, say
PLAIN_PARTS = 64
LONG_STRING = 64 * 2**10  # bytes from which a string can only be an image
PARTS = 16  # commas, colons and brackets of JSON that belong to one item
LETTER = 12  # most bytes of one letter in JSON: \\ud83d\\ude00


class Budget:
    """So much of something may be in use at once. Not for several threads: only the event loop asks.

    A client may use as much as is left free: one alone half of all, two a third each. So something is always left for who comes
    next, however many are greedy.

    Args:
        reserved: of it, for small requests alone.
        why: what is said where it is used up.
    """

    def __init__(self, most: int, reserved: int, why: str) -> None:
        self.most, self.reserved, self.why = most, reserved, why
        self.used = 0
        self._of: Counter[str] = Counter()  # by client

    def take(self, count: int, *, is_small: bool = True) -> None:
        """For `CLIENT`. An idle budget takes anything.

        Raises: QueueFullError where it is used up, RequestRejectedError (429) where the client's part is.
        """
        client, most = CLIENT.get(), self.most if is_small else self.most - self.reserved
        if self.used:
            if self.used + count > most:
                raise QueueFullError(self.why)
            if client and self._of[client] + count > self.most - self.used:
                raise RequestRejectedError(429, f"{self.why}, too many of them yours; try again in a moment.", "too_often")
        self.used += count
        self._of[client] += count

    def give_back(self, count: int) -> None:
        """What `CLIENT` took."""
        client = CLIENT.get()
        self.used -= count
        self._of[client] -= count
        if not self._of[client]:
            del self._of[client]

    @contextmanager
    def taken(self, count: int, *, is_small: bool = True) -> Iterator[None]:
        """While something is in use. Raises as `take`."""
        self.take(count, is_small=is_small)
        try:
            yield
        finally:
            self.give_back(count)


def is_plain(raw: memoryview) -> bool:
    """Whether JSON is of few parts and not too large, so that parsing it takes a millisecond or so."""
    if len(raw) <= SMALL_JSON:
        return True
    if len(raw) > PLAIN_JSON:
        return False
    body = bytes(raw)
    return sum(map(body.count, (b",", b"[", b"{", b":"))) <= PLAIN_PARTS


class Admission:
    """The limits of one server process."""

    def __init__(self, options: ServingSettings) -> None:
        self.options = options
        self.bodies = Budget(int(options.max_bodies_mb * 2**20), 0, f"{options.max_bodies_mb:g} MiB of bodies are being read")
        self.items = Budget(
            options.max_queue_items, options.max_queue_items // 4, f"{options.max_queue_items} images and texts are waiting"
        )
        self.requests = Budget(options.max_requests, 0, f"{options.max_requests} requests are being answered")
        self.rate = AddressLimit(options.address_rate, options.address_burst)
        self.health_rate = AddressLimit(options.address_rate, options.address_burst, always=True)
        self._parsing = FairPool(1, "parse")  # one: bodies that are parsed take several times their size
        self.turns = FairTurns()
        self.bulk = Budget(options.max_bulk, 0, f"{options.max_bulk} bulk requests are being answered")

    @property
    def longest_line(self) -> int:
        """Bytes of one line of a bulk request: an image in base64, and what stands around it."""
        return int(self.options.max_image_mb * 2**20 * 4 / 3) + SETTING_BODY

    def close(self) -> None:
        self._parsing.shutdown(wait=False, cancel_futures=True)

    def most_bytes(self, holds: Holds) -> int:
        """How large a body may be."""
        options, most = self.options, SETTING_BODY
        if holds is Holds.TEXTS:
            most += options.max_items * options.max_text * LETTER
        elif holds is Holds.IMAGES:
            most = int(options.max_body_mb * 2**20)
        return min(most, int(options.max_body_mb * 2**20))

    def check_items(self, kind: str, count: int) -> None:
        """Raises RequestRejectedError for more items than one request may hold. `kind`: images, texts, classes or inputs."""
        many = {"classes": self.options.max_classes, "inputs": self.options.max_inputs}
        most = many.get(kind, self.options.max_items)
        if count > most:
            raise RequestRejectedError(413, f"{count:,} {kind} in one request, more than {most}.", "too_many")

    def check_texts(self, texts: Sequence[str], kind: str = "texts") -> None:
        """Raises RequestRejectedError for too many or too long ones."""
        self.check_items(kind, len(texts))
        for number, text in enumerate(texts):
            if len(text) > self.options.max_text:
                one = "Class" if kind == "classes" else "Text"
                why = f"{one} {number + 1}: {len(text):,} characters, more than {self.options.max_text:,}."
                raise RequestRejectedError(422, why, "long_text", index=number)

    def small_json(self, raw: memoryview, plain: bool = False) -> AbstractContextManager[bytes]:
        """JSON that may be parsed: of no more parts than a request that may be answered has (each takes memory of a hundred times
        its bytes before anything can be said about it), and without its long strings. Raises RequestRejectedError."""
        if plain or len(raw) <= SMALL_JSON:
            return nullcontext(bytes(raw))
        options = self.options
        return without_long_strings(
            raw,
            parts=PARTS * (options.max_items + options.max_classes),
            shortest=max(LONG_STRING, options.max_text * LETTER),
            longest=int(options.max_image_mb * 2**20 * 1.5),  # in base64, with line ends
        )

    async def off_loop(self, size: int, function: Callable[[], T], *, is_plain: bool = False) -> T:
        """What a function of a body of `size` bytes returns; called in a thread where the body is large.

        Args:
            is_plain: the function takes no time to speak of all the same.
        """
        if size <= SMALL_BODY or is_plain:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._parsing, function)

    def working(self, count: int) -> AbstractContextManager[None]:
        """While so many items of one request are decoded, wait or are embedded. Raises as `Budget.take`."""
        return self.items.taken(count, is_small=count <= SMALL_REQUEST)

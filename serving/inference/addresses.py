"""What one client may ask while others ask, too: so many requests a second, and a share of whatever is limited.

A client is known by its key, or else by its address. Behind a proxy that is by the `X-Forwarded-For` that the proxy sends, if uvicorn
was told to trust it (`--forwarded-allow-ips`); otherwise all who come through it are one client.
"""

import asyncio
import time
from dataclasses import dataclass

from .errors import RequestRejectedError

ACTIVE = 5.0  # seconds after its last request in which a client counts as one who asks
LONGEST = 1.0  # seconds that a request waits for its turn; beyond it the answer is 429
KNOWN = 4096  # clients that are remembered


@dataclass
class _Seen:
    free: float  # requests that may come at once; negative: how many too many came
    at: float


class AddressLimit:
    """Lets a client ask `rate` requests a second, and `burst` at once, while it is not the only one. Only for the event loop.

    A client that asks a little too fast is slowed down; only who keeps on is refused, and not before a second has passed, so that
    asking on at once gains nothing. Who is alone is not limited: it takes nothing from anybody.

    Args:
        always: limit also who is alone.
    """

    def __init__(self, rate: float, burst: int, *, always: bool = False) -> None:
        self.rate, self.burst, self.always = rate, burst, always
        self._seen: dict[str, _Seen] = {}

    async def admit(self, client: str, weight: int = 1) -> None:
        """Wait for the turn of a client's request, which counts as so many. Raises RequestRejectedError (429)."""
        wait = self._wait(client, weight)
        if wait <= 0:
            return
        await asyncio.sleep(min(wait, LONGEST))
        if wait > LONGEST:
            raise RequestRejectedError(
                429, f"You asked more than {self.rate:g} requests a second while others ask, too.", "too_often",
                headers={"Retry-After": "1"},
            )  # fmt: skip

    def _wait(self, client: str, weight: int) -> float:
        """Seconds until a client may go on; its request is counted."""
        now = time.monotonic()
        seen = self._seen.pop(client, None) or _Seen(self.burst, now)
        is_alone = not self.always and (not self._seen or now - next(reversed(self._seen.values())).at > ACTIVE)
        seen.free = min(self.burst, seen.free + self.rate * (now - seen.at))
        seen.at = now
        self._seen[client] = seen  # the last one asked last
        if len(self._seen) > KNOWN:
            self._seen.pop(next(iter(self._seen)))
        wait = (weight - seen.free) / self.rate
        if is_alone or wait <= LONGEST:  # what is refused costs nothing more
            seen.free = max(seen.free - weight, -self.rate * LONGEST)
        return 0.0 if is_alone else wait

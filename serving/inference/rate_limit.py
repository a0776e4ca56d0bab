"""How often something may happen."""

import time


class RateLimit:
    """Lets `rate` things a second through, and `burst` at once after a pause. Not for several threads at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self._free, self._at = float(burst), time.monotonic()

    def admits(self, count: int) -> bool:
        """Whether `count` more may go now: all or none; the last to fit may overdraw."""
        now = time.monotonic()
        self._free = min(self.burst, self._free + self.rate * (now - self._at))
        self._at = now
        if self._free < 1:
            return False
        self._free -= count
        return True

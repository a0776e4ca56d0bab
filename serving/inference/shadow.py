"""Shadow and canary: a challenger sees a share of real traffic, first without answering, then answering.

In shadow the champion answers and the challenger is asked the same afterwards, so no request waits for it. As canary it answers
its share; should it fail, the champion answers instead.
"""

import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .loaded_model import Live

LEASE = 900.0  # seconds without being asked for again after which a trial ends by itself
KEPT = 1000  # latencies behind a percentile


@dataclass
class Shadow:
    """A challenger beside the champion.

    Attributes:
        share: of requests that it sees. answers: whether it is a canary.
        requests: that it saw; agreed: images of them on which both named the same class; errors: that it could not answer.
    """

    live: Live
    share: float
    answers: bool
    until: float = field(default_factory=lambda: time.monotonic() + LEASE)
    requests: int = 0
    images: int = 0
    agreed: int = 0
    errors: int = 0
    _seconds: dict[str, deque[float]] = field(
        default_factory=lambda: {w: deque(maxlen=KEPT) for w in ("champion", "challenger")}
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def renew(self) -> None:
        self.until = time.monotonic() + LEASE

    def chosen(self) -> bool:
        """Whether the next request is one of its own; none is once nobody asks for the trial any more."""
        return time.monotonic() < self.until and random.random() < self.share

    def compared(self, champion: np.ndarray, challenger: np.ndarray, seconds: tuple[float, float]) -> None:
        """What both said of a request's images (class numbers), and how long each took."""
        with self._lock:
            self.requests += 1
            self.images += len(champion)
            self.agreed += int((champion == challenger).sum())
            self._seconds["champion"].append(seconds[0])
            self._seconds["challenger"].append(seconds[1])

    def answered(self, seconds: float) -> None:
        """A canary's own answer."""
        with self._lock:
            self.requests += 1
            self._seconds["challenger"].append(seconds)

    def usual(self, seconds: float) -> None:
        """An answer of the champion beside a canary."""
        with self._lock:
            self._seconds["champion"].append(seconds)

    def failed(self) -> None:
        with self._lock:
            self.requests += 1
            self.errors += 1

    def report(self) -> dict[str, Any]:
        with self._lock:
            p95 = {w: float(np.quantile(s, 0.95)) if s else None for w, s in self._seconds.items()}
            return {
                "domain": self.live.domain,
                "version": self.live.version,
                "share": self.share,
                "answers": self.answers,
                "requests": self.requests,
                "images": self.images,
                "agreement": self.agreed / self.images if self.images else None,
                "errors": self.errors,
                "seconds_p95": p95,
            }

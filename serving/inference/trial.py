"""Trials on live traffic: a challenger sees a share of it, first without answering (a shadow), then answering (a canary).

In shadow the champion answers and the challenger is asked the same afterwards, so no request waits for it. As canary it answers
its share; should it fail, the champion answers instead.
"""

import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from clipft_tasks.contracts.serving import TrialLatency, TrialReport

from .loaded_model import LoadedModel

LEASE = 900.0  # seconds without being asked for again after which a trial ends by itself
KEPT = 1000  # latencies behind a percentile


def _latencies() -> deque[float]:
    return deque(maxlen=KEPT)


@dataclass
class Trial:
    """A challenger, compared with the champion.

    Attributes:
        share: of requests that it sees. answers: whether it is a canary.
        requests: that it saw; agreed: images of them on which both named the same class; errors: that it could not answer.
    """

    model: LoadedModel
    share: float
    answers: bool
    until: float = field(default_factory=lambda: time.monotonic() + LEASE)
    requests: int = 0
    images: int = 0
    agreed: int = 0
    errors: int = 0
    _champion: deque[float] = field(default_factory=_latencies)
    _challenger: deque[float] = field(default_factory=_latencies)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def renew(self) -> None:
        self.until = time.monotonic() + LEASE

    def draw(self) -> bool:
        """Whether the next request is one of its own; none is once the trial's lease has run out."""
        return time.monotonic() < self.until and random.random() < self.share

    def record_comparison(
        self, champion: np.ndarray, challenger: np.ndarray, champion_seconds: float, challenger_seconds: float
    ) -> None:
        """What both said of a request's images (class numbers), and how long each took."""
        with self._lock:
            self.requests += 1
            self.images += len(champion)
            self.agreed += int((champion == challenger).sum())
            self._champion.append(champion_seconds)
            self._challenger.append(challenger_seconds)

    def record_canary_latency(self, seconds: float) -> None:
        """The canary answered a request."""
        with self._lock:
            self.requests += 1
            self._challenger.append(seconds)

    def record_champion_latency(self, seconds: float) -> None:
        """The champion answered a request that the canary did not get."""
        with self._lock:
            self._champion.append(seconds)

    def record_error(self) -> None:
        with self._lock:
            self.requests += 1
            self.errors += 1

    def report(self) -> TrialReport:
        with self._lock:
            return TrialReport(
                domain=self.model.domain,
                version=self.model.version,
                share=self.share,
                answers=self.answers,
                requests=self.requests,
                images=self.images,
                agreement=self.agreed / self.images if self.images else None,
                errors=self.errors,
                seconds_p95=TrialLatency(champion=_p95(self._champion), challenger=_p95(self._challenger)),
            )


def _p95(seconds: deque[float]) -> float | None:
    return float(np.quantile(seconds, 0.95)) if seconds else None

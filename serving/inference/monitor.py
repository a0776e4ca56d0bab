"""Watching what the live versions see: a window each, measured in a thread of its own, published for Prometheus.

Requests only append rows; all arithmetic happens beside them, on a copy, every few seconds and only when something new came.
"""

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipft_tasks.drift.window import DriftMetrics, Window

from .loaded_model import Live
from .metrics import Metrics

log = logging.getLogger("uvicorn.error")
REMEMBERED = 20_000  # answers that feedback can refer to


class Unknown(Exception):
    """Feedback about something that this server does not remember."""


@dataclass
class _Answer:
    domain: str
    version: str
    labels: list[str]
    told: set[int] = field(default_factory=set)


class Pace:
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


@dataclass
class _Watched:
    live: Live
    window: Window
    pace: Pace
    measured: int = -1  # the window's changes at the last measurement
    at: float = 0.0


class Monitor:
    """The windows of one server process.

    Args:
        every: seconds between measurements; 0 measures only when asked.
        rate: images a second that a window takes in, beyond a burst that fills it, so that watching costs the same however
            much there is to see.
        on: False keeps no windows at all.
    """

    def __init__(
        self, metrics: Metrics, every: float, size: int, least: int, seconds: float, rate: float, on: bool = True
    ) -> None:
        self.metrics, self.every, self.rate, self.on = metrics, every, rate, on
        self.options = {"size": size, "least": least, "seconds": seconds}
        self._live: dict[str, Live] = {}
        self._watched: dict[str, _Watched] = {}
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)
        if every and on:
            self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def follow(self, live: Live) -> None:
        """A version went live: its window starts empty, with its own reference. Metrics of the one before are taken away."""
        with self._lock:
            self._watched.pop(live.domain, None)
            if before := self._live.get(live.domain):
                self.metrics.forget(before.domain, before.version)
            self._live[live.domain] = live
            if self.on and live.reference is not None:
                window = Window(live.reference, **self.options)  # type: ignore[arg-type]
                self._watched[live.domain] = _Watched(live, window, Pace(self.rate, window.size))
        if not self.on:
            return
        self.metrics.measured.labels(live.domain, live.version).set(live.reference is not None)
        if live.reference is not None and live.reference.facts["promised"]["rows"]:
            self.metrics.promised.labels(live.domain, live.version).set(live.reference.facts["promised"]["value"])

    def wants(self, live: Live, count: int) -> bool:
        """Whether the next `count` images of a version are for its window; where not, they need not be looked at."""
        with self._lock:
            watched = self._of(live)
            return watched is not None and watched.pace.admits(count)

    def add_images(self, live: Live, image: np.ndarray, looks: np.ndarray | None) -> None:
        """Images that were encoded: embeddings (n, d), appearance (n, 5); None: they were not wanted."""
        if looks is None:
            return
        classes = live.own_class_texts
        similarity = live.similarity(image, classes) if classes is not None else np.zeros((len(image), 0), np.float32)
        with self._lock:
            if watched := self._of(live):
                watched.window.add_images(image, looks, similarity)
        self.metrics.looked(live.domain, live.version, looks)

    def texts(self, live: Live, text: np.ndarray) -> None:
        with self._lock:
            if watched := self._of(live):
                watched.window.add_texts(text)

    def pairs(self, live: Live, similarity: np.ndarray) -> None:
        """Similarity (n,) of images with the text that came along with each."""
        with self._lock:
            if watched := self._of(live):
                watched.window.add_pairs(similarity.tolist())

    def answered(self, live: Live, request_id: str, labels: list[str]) -> None:
        """Remember an answer, so that feedback may say whether it was right."""
        with self._lock:
            self._answers[request_id] = _Answer(live.domain, live.version, labels)
            self._answers.move_to_end(request_id)
            while len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)

    def feedback(self, request_id: str, index: int, label: str) -> tuple[_Answer, bool]:
        """The true label of an answer; returns the answer and whether this was news.

        Each image of a request counts once, however often it is told, and only for the version that answered.

        Raises: Unknown when no such answer is remembered.
        """
        with self._lock:
            answer = self._answers.get(request_id)
            if answer is None or not 0 <= index < len(answer.labels):
                raise Unknown
            new = index not in answer.told
            answer.told.add(index)
            watched = self._watched.get(answer.domain)
            if new and watched and watched.live.version == answer.version:
                watched.window.add_feedback(answer.labels[index] == label)
        if new:
            right = "right" if answer.labels[index] == label else "wrong"
            self.metrics.feedback.labels(answer.domain, answer.version, right).inc()
        return answer, new

    def drift_metrics(self, domain: str) -> tuple[str, dict[str, float], DriftMetrics] | None:
        """The watched version, the accuracy promised of it, and what its window says now; None when nothing is watched."""
        with self._lock:
            watched = self._watched.get(domain)
        if watched is None:
            return None
        return watched.live.version, watched.window.reference.facts["promised"], self._measure(watched)

    def rows(self, domain: str) -> dict[str, Any] | None:
        """The window's images as the suggestion needs them: appearance, similarity with the classes."""
        with self._lock:
            watched = self._watched.get(domain)
            if watched is None:
                return None
            rows = watched.window.rows()
        return {"appearance": rows.appearance.tolist(), "similarity": rows.similarity.tolist()}

    def _of(self, live: Live) -> _Watched | None:
        watched = self._watched.get(live.domain)
        return watched if watched and watched.live is live else None

    def _run(self) -> None:
        while not self._stop.wait(self.every):
            with self._lock:
                due = [w for w in self._watched.values() if w.window.changes != w.measured or time.time() - w.at > 30]
            for watched in due:
                try:
                    self._measure(watched)
                except Exception:  # a window that cannot be measured must not end the watching of the others
                    log.exception("the window of %s cannot be measured", watched.live.domain)

    def _measure(self, watched: _Watched) -> DriftMetrics:
        with self._lock:
            changes, window = watched.window.changes, watched.window.copy()
        began = time.perf_counter()
        measured = window.measure()
        self.metrics.measuring.observe(time.perf_counter() - began)
        with self._lock:
            watched.measured, watched.at = changes, time.time()
            if self._watched.get(watched.live.domain) is watched:  # or it was replaced meanwhile
                self.metrics.publish(watched.live.domain, watched.live.version, measured)
        return measured

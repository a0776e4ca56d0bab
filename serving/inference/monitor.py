"""What the live versions see: a window each, measured in a thread of its own, published for Prometheus.

Requests only append rows; all arithmetic happens in the monitor's thread, on a copy, every few seconds and only when something
new came.
"""

import logging
import threading
import time
from dataclasses import dataclass

import numpy as np

from clipft_tasks.contracts.drift import BaselineAccuracy, DriftSnapshot, WindowRows
from clipft_tasks.drift.window import DriftMetrics, Window

from .answer_memory import Answer, AnswerMemory
from .drift_snapshots import snapshot
from .errors import UnknownAnswerError
from .loaded_model import LoadedModel
from .metrics import Metrics
from .rate_limit import RateLimit
from .window_memory import ANSWER, WindowMemory

log = logging.getLogger("uvicorn.error")
KEPT_EVERY = 30.0  # seconds between writes of a window's new rows


@dataclass(frozen=True)
class Judgment:
    """Feedback on an image: what a version had predicted, and whether this was the first word about it."""

    domain: str
    version: str
    predicted: str
    is_new: bool


@dataclass
class _Watched:
    model: LoadedModel
    window: Window
    baseline: BaselineAccuracy
    limit: RateLimit
    measured: int = -1  # the window's changes at the last measurement
    at: float = 0.0
    last: DriftMetrics | None = None
    kept: int = -1  # the window's changes when it was last written
    kept_at: float = 0.0


class Monitor:
    """The windows of one server process.

    Args:
        every: seconds between measurements; 0 measures only when asked.
        size, least, seconds: of a window, see `Window`.
        rate: images a second that a window takes in, beyond a burst that fills it, so that watching costs the same however
            much there is to see.
        enabled: False keeps no windows at all.
        answers: what feedback can refer to; None remembers them until the process ends.
        windows: where windows are kept; None keeps them until the process ends.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        every: float,
        size: int,
        least: int,
        seconds: float,
        rate: float,
        enabled: bool = True,
        answers: AnswerMemory | None = None,
        windows: WindowMemory | None = None,
    ) -> None:
        self.metrics, self.every, self.rate, self.enabled = metrics, every, rate, enabled
        self.size, self.least, self.seconds = size, least, seconds
        self._live: dict[str, LoadedModel] = {}
        self._watched: dict[str, _Watched] = {}
        self.answers, self.windows = answers or AnswerMemory(), windows or WindowMemory()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)
        if every and enabled:
            self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs, where there is to be one."""
        return self._thread.is_alive() or not (self.every and self.enabled)

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._keep(0)
        self.windows.close()
        self.answers.close()

    def watch(self, model: LoadedModel) -> None:
        """A version went live: its window starts empty, with its own reference, unless the process starts with it: then it goes on
        with what was kept. Metrics of the one before are taken away."""
        reference = model.reference
        baseline = reference.facts.baseline if reference else None
        with self._lock:
            self._watched.pop(model.domain, None)
            if before := self._live.get(model.domain):
                self.metrics.forget(before.domain, before.version)
                self.windows.drop(model.domain, model.version)
            self._live[model.domain] = model
            if self.enabled and reference and baseline:
                window = Window(reference, self.size, self.least, self.seconds)
                if before is None:
                    self.windows.load(model.domain, model.version, window)
                self._watched[model.domain] = _Watched(model, window, baseline, RateLimit(self.rate, window.size))
        if not self.enabled:
            return
        self.metrics.measured.labels(model.domain, model.version).set(reference is not None)
        if baseline and baseline.rows:
            self.metrics.baseline.labels(model.domain, model.version).set(baseline.value)

    def should_sample(self, model: LoadedModel, count: int) -> bool:
        """Whether the next `count` images of a version are for its window; where not, their statistics need not be computed."""
        with self._lock:
            watched = self._watched_of(model)
            return watched is not None and watched.limit.admits(count)

    def add_images(
        self, model: LoadedModel, image: np.ndarray, appearance: np.ndarray | None, similarity: np.ndarray | None = None
    ) -> None:
        """Images that were encoded.

        Args:
            image: embeddings, (n, d).
            appearance: image statistics, (n, 5); None: the window does not sample these images.
            similarity: with the model's own classes, (n, c), where it is known already.
        """
        if appearance is None:
            return
        if similarity is None:
            similarity = model.class_similarity(image)
        with self._lock:
            if watched := self._watched_of(model):
                watched.window.add_images(image, appearance, similarity, ANSWER.get())
        self.metrics.observe_appearance(model.domain, model.version, appearance)

    def add_texts(self, model: LoadedModel, text: np.ndarray) -> None:
        """Texts that were encoded: embeddings, (n, d)."""
        with self._lock:
            if watched := self._watched_of(model):
                watched.window.add_texts(text, ANSWER.get())

    def add_pairs(self, model: LoadedModel, similarity: np.ndarray) -> None:
        """Similarity (n,) of images with the text that came along with each."""
        with self._lock:
            if watched := self._watched_of(model):
                watched.window.add_pairs(similarity.tolist(), ANSWER.get())

    def remember_answer(self, model: LoadedModel, answer_id: str, labels: list[str]) -> None:
        """Remember a prediction for each image, so that feedback may say whether it was right, also next week."""
        self.answers.remember(answer_id, Answer(model.domain, model.version, labels))

    def add_feedback(self, answer_id: str, index: int, label: str) -> Judgment:
        """The true label of an image. Each image of a request counts once, and only for the version that answered.

        Raises: UnknownAnswerError when no such answer is remembered.
        """
        answer = self.answers.get(answer_id)
        if answer is None or not 0 <= index < len(answer.labels):
            raise UnknownAnswerError
        is_new, predicted = self.answers.judge(answer_id, index), answer.labels[index]
        if is_new:
            with self._lock:
                watched = self._watched.get(answer.domain)
                if watched and watched.model.version == answer.version:
                    watched.window.add_feedback(predicted == label, answer_id)
            verdict = "right" if predicted == label else "wrong"
            self.metrics.feedback.labels(answer.domain, answer.version, verdict).inc()
        return Judgment(answer.domain, answer.version, predicted, is_new)

    def forget(self, answer_id: str) -> bool:
        """Forget an answer, and what windows hold of it; whether anything was known."""
        with self._lock:
            found = sum(watched.window.forget(answer_id) for watched in self._watched.values())
        self.windows.forget(answer_id)
        return self.answers.forget(answer_id) or found > 0

    def measure(self, domain: str, oldest: float = 0.0) -> DriftSnapshot | None:
        """What the window of a domain's live version says; None when nothing is watched.

        Args:
            oldest: seconds since the measurement that is good enough; 0 measures now.
        """
        with self._lock:
            watched = self._watched.get(domain)
            last = watched.last if watched and time.time() - watched.at < oldest else None
        if watched is None:
            return None
        return snapshot(domain, watched.model.version, last or self._measure(watched), watched.baseline)

    def window_rows(self, domain: str) -> WindowRows | None:
        """The images of a window, as the suggestion needs them; None when nothing is watched."""
        with self._lock:
            watched = self._watched.get(domain)
            if watched is None:
                return None
            rows = watched.window.rows()
        return WindowRows(appearance=rows.appearance.tolist(), similarity=rows.similarity.tolist())

    def _watched_of(self, model: LoadedModel) -> _Watched | None:
        watched = self._watched.get(model.domain)
        return watched if watched and watched.model is model else None

    def _keep(self, every: float = KEPT_EVERY) -> None:
        """Write what came to the windows since, where the last time is long enough ago."""
        with self._lock:
            for watched in self._watched.values():
                if watched.window.changes != watched.kept and time.time() - watched.kept_at >= every:
                    self.windows.save(watched.model.domain, watched.model.version, watched.window)
                    watched.kept, watched.kept_at = watched.window.changes, time.time()

    def _run(self) -> None:
        while not self._stop.wait(self.every):
            self._keep()
            with self._lock:
                watched_now = list(self._watched.values())
            for watched in watched_now:
                if watched.window.changes == watched.measured and time.time() - watched.at <= 30:
                    continue
                try:
                    self._measure(watched)
                except Exception:  # a window that cannot be measured must not end the watching of the others
                    log.exception("the window of %s cannot be measured", watched.model.domain)

    def _measure(self, watched: _Watched) -> DriftMetrics:
        with self._lock:
            changes, window = watched.window.changes, watched.window.copy()
        began = time.perf_counter()
        measured = window.measure()
        self.metrics.measuring.observe(time.perf_counter() - began)
        with self._lock:
            watched.measured, watched.at, watched.last = changes, time.time(), measured
            if self._watched.get(watched.model.domain) is watched:  # or it was replaced meanwhile
                self.metrics.publish(watched.model.domain, watched.model.version, measured)
        return measured

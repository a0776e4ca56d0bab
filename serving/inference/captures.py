"""Captured requests: images kept for labeling, a bounded sample without anything about who sent them.

A domain turns it on (`Domain.capture_share`, or CLIPFT_SERVING_CAPTURE). Kept is a random share of the images; of those that look new
or that the model was unsure of, four times that share. Every image is one file, named by a hash, with a JSON beside it; the folder may lie on an
encrypted disk. Deleting, by request or by age, deletes the bytes.
"""

import hashlib
import json
import logging
import os
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from clipft_tasks.domains import get_domain

from .loaded_model import Ranking
from .metrics import Metrics
from .schemas import ImageIn

log = logging.getLogger("uvicorn.error")
TIDY = 600.0  # seconds without anything new after which the old is looked at


@dataclass(frozen=True)
class Capture:
    """What is known about a captured image.

    Attributes:
        id: hash of the request's id and the image's place in it.
        request: hash of the request's id alone.
        why: random, new or unsure.
        sha256: of the bytes: the same image sent twice is one image.
        label: the true class, once somebody told.
    """

    id: str
    request: str
    domain: str
    version: str
    time: float
    predicted: str
    confidence: float
    novelty: float
    why: str
    sha256: str = ""
    label: str = ""


def hashed(request_id: str) -> str:
    """A name that says nothing about the request and can be no path."""
    return hashlib.sha256(request_id.encode()).hexdigest()[:24]


class Captures:
    """The captured images of this server.

    Args:
        root: folder; one below it for each domain.
        most_bytes: of each domain, most_seconds: age; beyond either the oldest go first.
        share: of requests that is kept; None leaves it to each domain.
    """

    def __init__(self, root: Path, metrics: Metrics, most_bytes: int, most_seconds: float, share: float | None = None) -> None:
        self.root, self.metrics, self.share = root, metrics, share
        self.most_bytes, self.most_seconds = most_bytes, most_seconds
        self.asked: dict[str, float] = {}  # shares set while running, by domain
        self._shelves: dict[str, deque[tuple[float, Path, int]]] = {}  # (time, JSON, bytes), oldest first
        self._queue: queue.Queue[tuple[str, str, Callable[[], None]] | None] = queue.Queue(256)  # domain, outcome, work
        self._writing = threading.Lock()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="captures", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(timeout=10)

    def consider(self, request_id: str, said: Ranking, images: list[ImageIn]) -> None:
        """Offer a request's images for keeping, saying which look new and which the model was unsure of."""
        live = said.live
        usual = self.share if self.share is not None else get_domain(live.domain).capture_share
        share = self.asked.get(live.domain, usual)
        if share <= 0:
            return
        reference = live.reference  # without one, nothing tells what is new or doubtful: chance alone chooses
        novelty = reference.novelty(said.image) if reference else np.zeros(len(images))
        ranked = np.sort(said.scores, axis=1)
        unsure = ranked[:, -1] - ranked[:, -2] < (reference.unsure_below if reference else 0.0)
        key, now, labels = hashed(request_id), time.time(), said.labels
        for i, image in enumerate(images):
            why = "new" if novelty[i] > 1 else "unsure" if unsure[i] else ""
            found = Capture(
                f"{key}-{i}",
                key,
                live.domain,
                live.version,
                now,
                labels[i],
                float(said.odds[i].max()),
                float(novelty[i]),
                why,
            )
            self.offer(found, image.data, share)

    def offer(self, capture: Capture, data: bytes, share: float) -> None:
        """Keep an image, perhaps; never makes a request wait.

        Args:
            capture: `why` is "" or what makes this one worth keeping.
            share: of requests that the domain wants kept.
        """
        if share <= 0 or random.random() >= (share if not capture.why else min(1.0, 4 * share)):
            return
        kept = replace(capture, why=capture.why or "random", sha256=hashlib.sha256(data).hexdigest())
        try:
            self._queue.put_nowait((kept.domain, kept.why, partial(self._keep, kept, data)))
        except queue.Full:
            self.metrics.captures.labels(capture.domain, "skipped").inc()

    def flush(self) -> None:
        """Wait until what was offered is written."""
        self._queue.join()

    def all(self, domain: str) -> list[Capture]:
        """What is kept of a domain, oldest first. Whatever cannot be read is passed over."""
        with self._writing:
            self._shelves.pop(domain, None)  # as the folder is now, should somebody else have tidied it
            self._bound(domain)
        found = []
        for path in self._folder(domain).glob("*.json"):
            try:
                found.append(Capture(**json.loads(path.read_text())))
            except (OSError, ValueError, TypeError):
                continue
        return sorted(found, key=lambda c: (c.time, c.id))

    def image_bytes(self, domain: str, name: str) -> bytes:
        """The bytes of one. Raises KeyError when there is none."""
        try:
            return self._place(domain, name).with_suffix(".image").read_bytes()
        except OSError:
            raise KeyError(name) from None

    def label(self, domain: str, name: str, label: str) -> None:
        """Say what an image shows. Raises KeyError when there is none, OSError when it cannot be written."""
        with self._writing:
            self._label(domain, name, label)

    def judged(self, domain: str, name: str, label: str) -> None:
        """Say what an image shows that may still be on its way; it need not have been kept."""

        def work() -> None:
            with suppress(KeyError):
                self._label(domain, name, label)

        try:
            self._queue.put((domain, "", work), timeout=5)
        except queue.Full:
            self.metrics.captures.labels(domain, "skipped").inc()

    def delete(self, request_id: str) -> int:
        """Delete every image of a request, whatever its domain; returns how many."""
        self.flush()
        wanted, count = hashed(request_id), 0
        with self._writing:
            for path in self.root.glob(f"*/{wanted}-*.json"):
                self._remove(path)
                count += 1
                shelf = self._shelves.get(path.parent.name)
                if shelf is not None:
                    self._shelves[path.parent.name] = deque(entry for entry in shelf if entry[1] != path)
        return count

    def _folder(self, domain: str) -> Path:
        if not domain.isidentifier():
            raise KeyError(domain)
        return self.root / domain

    def _place(self, domain: str, name: str) -> Path:
        if not all(c in "0123456789abcdef-" for c in name):
            raise KeyError(name)
        return self._folder(domain) / name

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=TIDY)
            except queue.Empty:
                self._tidy()
                continue
            if item is None:
                self._queue.task_done()
                return
            domain, outcome, work = item
            try:
                with self._writing:
                    work()
                self._failing = False
            except Exception as error:  # a full disk costs captures, never answers, and never this thread
                outcome = "failed"
                if not self._failing:  # said once, not for every image
                    log.error("captures of %s cannot be kept: %r; answers go on", domain, error)
                self._failing = True
            if outcome:
                self.metrics.captures.labels(domain, outcome).inc()
            self._queue.task_done()

    def _tidy(self) -> None:
        """What is too old goes even when nothing new comes."""
        try:
            for folder in [f for f in self.root.glob("*") if f.is_dir()]:
                with self._writing:
                    self._bound(folder.name)
        except OSError:
            pass

    def _label(self, domain: str, name: str, label: str) -> None:
        path = self._place(domain, name).with_suffix(".json")
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            raise KeyError(name) from None
        _write(path, json.dumps(content | {"label": label}).encode())

    def _keep(self, capture: Capture, data: bytes) -> None:
        place = self._folder(capture.domain) / capture.id
        if place.with_suffix(".json").exists():
            return  # a request of the same name was kept, perhaps labeled
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shelf = self._shelf(capture.domain)
        _write(place.with_suffix(".image"), data)
        try:
            _write(place.with_suffix(".json"), json.dumps(asdict(capture)).encode())  # last: what has a JSON is whole
        except OSError:
            self._remove(place.with_suffix(".json"))  # or its image would stay where nothing finds it
            raise
        shelf.append((capture.time, place.with_suffix(".json"), len(data)))
        self._bound(capture.domain)

    def _shelf(self, domain: str) -> "deque[tuple[float, Path, int]]":
        """What is kept of a domain, oldest first; read from the folder once."""
        if domain not in self._shelves:
            found = []
            for path in self._folder(domain).glob("*.json"):
                try:
                    found.append((float(json.loads(path.read_text())["time"]), path, _size(path.with_suffix(".image"))))
                except (OSError, ValueError, KeyError):
                    continue
            self._shelves[domain] = deque(sorted(found))
        return self._shelves[domain]

    def _bound(self, domain: str) -> None:
        shelf, now = self._shelf(domain), time.time()
        total = sum(size for _, _, size in shelf)
        while shelf and (total > self.most_bytes or now - shelf[0][0] > self.most_seconds):
            _, path, size = shelf.popleft()
            total -= size
            self._remove(path)

    def _remove(self, path: Path) -> None:
        path.with_suffix(".image").unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise

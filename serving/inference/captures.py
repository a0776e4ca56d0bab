"""Captured requests: images kept for labeling, a bounded sample without anything about who sent them.

A domain turns it on (`Domain.capture_share`, or CLIPFT_SERVING_CAPTURE). Kept is a random share of the images; of those that look new
or that the model was unsure of, four times that share. Every image is one file, named by a hash, with a JSON next to it; the folder may lie on an
encrypted disk. Deleting, by request or by age, deletes the bytes.
"""

import hashlib
import json
import logging
import math
import os
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from clipft_tasks.contracts.drift import Capture, answer_hash
from clipft_tasks.core.errors import TransientError
from clipft_tasks.core.files import rename_suffix
from clipft_tasks.domains import get_domain

from .loaded_model import Ranking
from .metrics import Metrics

log = logging.getLogger("uvicorn.error")
FLUSH_SECONDS = 20.0  # that somebody waits for what was sampled to be written
ORPHANED = 3600.0  # seconds after which a file without the other half was left behind
LONGEST = 64  # characters of a domain or of a capture's name
TIDY = 600.0  # seconds without anything new after which the old is looked at
FAVORED = 4  # times the share, of images that look new or that the model was unsure of


class Captures:
    """The captured images of this server.

    Args:
        root: folder; one below it for each domain.
        most_bytes: of each domain, most_seconds: age; beyond either the oldest go first.
        share: of requests that is kept; None leaves it to each domain.
    """

    def __init__(
        self, root: Path, metrics: Metrics, *, most_bytes: int, most_seconds: float, share: float | None = None
    ) -> None:
        rename_suffix(root, ".picture", ".image")  # of an earlier release
        self.root, self.metrics, self.share = root, metrics, share
        self.most_bytes, self.most_seconds = most_bytes, most_seconds
        self._shares: dict[str, float] = {}  # set while running, by domain
        self._shelves: dict[str, deque[tuple[float, Path, int]]] = {}  # (time, JSON, bytes), oldest first
        self._queue: queue.Queue[tuple[str, str, Callable[[], None]] | None] = queue.Queue(256)  # domain, outcome, work
        self._writing = threading.Lock()
        self._failing = False
        self.busy_since: float | None = None  # monotonic; None while nothing is written
        self._thread = threading.Thread(target=self._run, name="captures", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        with suppress(queue.Full):
            self._queue.put(None, timeout=5)
        self._thread.join(timeout=10)

    def set_share(self, domain: str, share: float | None) -> float | None:
        """Keep this share of a domain's requests until the process ends (None: what is configured); returns the one before."""
        before = self._shares.pop(domain, None)
        if share is not None:
            self._shares[domain] = share
        return before

    def sample(self, answer_id: str, ranking: Ranking, images: Sequence[bytes]) -> None:
        """Keep some of a request's images, saying which look new and which the model was unsure of; never makes a request wait.

        Chance decides first: where it keeps nothing, nothing is computed and no image is touched.
        """
        model = ranking.model
        configured = self.share if self.share is not None else get_domain(model.domain).capture_share
        share = self._shares.get(model.domain, configured)
        favored = min(1.0, FAVORED * share)
        draws = [random.random() for _ in images]
        if min(draws) >= favored:
            return
        reference = model.reference  # without one, nothing tells what is new or doubtful: chance alone chooses
        novelty = reference.novelty(ranking.image) if reference else np.zeros(len(images))
        ranked = np.sort(ranking.scores, axis=1)
        unsure = ranked[:, -1] - ranked[:, -2] < (reference.uncertainty_threshold if reference else 0.0)
        request, now, labels = answer_hash(answer_id), time.time(), ranking.labels
        for i, (image, draw) in enumerate(zip(images, draws, strict=True)):
            why = "new" if novelty[i] > 1 else "unsure" if unsure[i] else ""
            if draw >= (favored if why else share):
                continue
            capture = Capture(
                id=f"{request}-{i}",
                request=request,
                domain=model.domain,
                version=model.version,
                time=now,
                predicted=labels[i],
                confidence=float(ranking.probabilities[i].max()),
                novelty=float(novelty[i]),
                why=why or "random",
                sha256=hashlib.sha256(image).hexdigest(),
                label="",
            )
            try:
                self._queue.put_nowait((capture.domain, capture.why, partial(self._keep, capture, image)))
            except queue.Full:
                self.metrics.captures.labels(capture.domain, "skipped").inc()

    def flush(self) -> None:
        """Wait until what was sampled is written. Raises TransientError when that takes too long: a disk that hangs, say."""
        until = time.monotonic() + FLUSH_SECONDS
        with self._queue.all_tasks_done:
            while self._queue.unfinished_tasks:
                left = until - time.monotonic()
                if left <= 0 or not self.alive:
                    raise TransientError("Captures are not being written at the moment; the server's log says why. Ask again.")
                self._queue.all_tasks_done.wait(min(left, 1.0))

    def all(self, domain: str) -> list[Capture]:
        """What is kept of a domain, oldest first. Whatever cannot be read is passed over."""
        with self._writing:
            self._shelves.pop(domain, None)  # as the folder is now, in case another process removed files
            self._bound(domain)
        found = []
        for path in self._folder(domain).glob("*.json"):
            with suppress(OSError, ValueError):
                found.append(Capture.model_validate_json(path.read_bytes()))
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

    def label_later(self, domain: str, answer_id: str, index: int, label: str) -> None:
        """Say what an image shows that may still be in the queue; it need not have been kept."""

        def work() -> None:
            with suppress(KeyError):
                self._label(domain, f"{answer_hash(answer_id)}-{index}", label)

        try:
            self._queue.put((domain, "", work), timeout=5)
        except queue.Full:
            self.metrics.captures.labels(domain, "skipped").inc()

    def remove(self, domain: str, name: str) -> int:
        """Delete one image; returns how many there were. Raises KeyError for what is no name."""
        path = self._place(domain, name).with_suffix(".json")
        with self._writing:
            there = path.exists()
            self._remove(path)
            self._shelves.pop(domain, None)
        return int(there)

    def delete(self, answer_id: str) -> int:
        """Delete every image of a request, whatever its domain; returns how many."""
        self.flush()
        wanted, count = answer_hash(answer_id), 0
        with self._writing:
            for path in self.root.glob(f"*/{wanted}-*"):
                if path.is_dir():
                    continue  # not ours
                count += path.suffix == ".json"
                path.unlink(missing_ok=True)  # also what a process that was killed left of it
                shelf = self._shelves.get(path.parent.name)
                if shelf is not None:
                    self._shelves[path.parent.name] = deque(entry for entry in shelf if entry[1] != path)
        return count

    def _folder(self, domain: str) -> Path:
        if not domain.isidentifier() or len(domain) > LONGEST:
            raise KeyError(domain)
        return self.root / domain

    def _place(self, domain: str, name: str) -> Path:
        if len(name) > LONGEST or not all(c in "0123456789abcdef-" for c in name):
            raise KeyError(name)
        return self._folder(domain) / name

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=TIDY)
            except queue.Empty:
                self._do("", "", self._tidy)
                continue
            if item is not None:
                self._do(*item)
            self._queue.task_done()
            if item is None:
                return

    def _do(self, domain: str, outcome: str, work: Callable[[], None]) -> None:
        """Do something with the folder. A full disk, or whatever lies there, costs captures, never answers, and never this thread."""
        self.busy_since = time.monotonic()
        try:
            with self._writing:
                work()
            self._failing = False
        except Exception as error:
            outcome = outcome and "failed"
            if not self._failing:  # said once, not for every image
                log.error("captures of %s cannot be kept: %r; answers go on", domain or "a domain", error)
            self._failing = True
        self.busy_since = None
        if outcome:
            self.metrics.captures.labels(domain, outcome).inc()

    def _tidy(self) -> None:
        """What is too old goes even when nothing new comes, and so does what a process that was killed left half-written."""
        before = time.time() - ORPHANED
        for folder in self.root.glob("*"):
            if not folder.name.isidentifier() or not folder.is_dir():
                continue  # not ours: lost+found, a trash
            self._bound(folder.name)
            for path in folder.iterdir():
                is_left = path.suffix == ".part" or (path.suffix == ".image" and not path.with_suffix(".json").exists())
                if is_left and path.is_file() and path.stat().st_mtime < before:
                    path.unlink(missing_ok=True)

    def _label(self, domain: str, name: str, label: str) -> None:
        path = self._place(domain, name).with_suffix(".json")
        try:
            capture = Capture.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            raise KeyError(name) from None
        _write(path, capture.model_copy(update={"label": label}).model_dump_json().encode())

    def _keep(self, capture: Capture, image: bytes) -> None:
        place = self._folder(capture.domain) / capture.id
        record = place.with_suffix(".json")
        if record.exists():
            return  # a request of the same name was kept, perhaps labeled
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shelf = self._shelf(capture.domain)
        _write(place.with_suffix(".image"), image)
        try:
            _write(record, capture.model_dump_json().encode())  # last: what has a JSON is whole
        except OSError:
            self._remove(record)  # or its image would stay where nothing finds it
            raise
        shelf.append((capture.time, record, len(image)))
        self._bound(capture.domain)

    def _shelf(self, domain: str) -> "deque[tuple[float, Path, int]]":
        """What is kept of a domain, oldest first; read from the folder once."""
        if domain not in self._shelves:
            found = []
            for path in self._folder(domain).glob("*.json"):
                try:
                    kept = float(json.loads(path.read_bytes())["time"])
                except Exception:  # whatever lies there: what is no capture is passed over
                    continue
                if math.isfinite(kept):
                    found.append((kept, path, _size(path.with_suffix(".image"))))
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
    """Write a file whole or not at all. Only one thread writes here, so the part has one name: a part that a killed process
    left behind is overwritten and does not pile up."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise

"""A run that another machine may go on with: its newest checkpoint goes to MLflow now and then, while it trains."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from ..core.console import say
from ..core.errors import TransientError
from .step_log import Log, Row


class CheckpointUploader:
    """Sends checkpoints in a thread of its own, the newest only, at most one every `seconds`. A context manager: leaving it sends
    what is left, so that a task that was asked to stop uploads its last step.

    Args:
        send: sends one file; raises when it cannot, which costs nothing but this one time.
        folder: a file waits here under a second name, since the training removes its own old ones.
        seconds: between two; 0 sends none.
    """

    def __init__(self, send: Callable[[Path], None], folder: Path, seconds: float) -> None:
        self._send, self._folder, self._seconds = send, folder, seconds
        self._wake, self._lock = threading.Condition(), threading.Lock()
        self._waiting: Path | None = None
        self._closed = False
        self._last = -float("inf")
        self._thread = threading.Thread(target=self._run, daemon=True, name="checkpoint upload")

    def __enter__(self) -> "CheckpointUploader":
        if self._seconds:
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in self._folder.iterdir():
                left.unlink()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._seconds:
            return
        with self._wake:
            self._closed = True
            if kind is None:  # the training is over, and so is what checkpoints are for
                self._drop()
            self._wake.notify()
        self._thread.join()

    def saved(self, path: Path) -> None:
        """Take note of a new checkpoint; returns at once."""
        if not self._seconds:
            return
        waiting = self._folder / path.name
        with self._wake:
            self._drop()
            waiting.unlink(missing_ok=True)
            try:
                os.link(path, waiting)
            except OSError:  # exFAT and network shares have no second names
                shutil.copyfile(path, waiting)
            self._waiting = waiting
            self._wake.notify()

    def _drop(self) -> None:
        if self._waiting:
            self._waiting.unlink(missing_ok=True)
        self._waiting = None

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._closed and (self._waiting is None or (self._due() > 0)):
                    self._wake.wait(self._due() if self._waiting else None)
                path, self._waiting = self._waiting, None
                if path is None:
                    return
            self._last = time.monotonic()
            try:
                self._send(path)
            except Exception as error:  # whatever it is, the training is worth more
                say(f"Checkpoint {path.name} did not reach MLflow ({error}); the next one may.")
            path.unlink(missing_ok=True)

    def _due(self) -> float:
        return self._last + self._seconds - time.monotonic()


class BufferedLogger:
    """Logs metrics, and keeps those that cannot be sent for the next time: a network that is away for a minute ends no training.

    Args:
        log: sends rows; raises TransientError when nobody answers.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._kept: list[Row] = []

    def __call__(self, rows: list[Row]) -> None:
        self._kept += rows
        try:
            self.flush()
        except TransientError as error:
            say(f"{len(self._kept)} steps' metrics wait for MLflow: {error}")

    def flush(self) -> None:
        """Send what is kept. Raises when it still cannot be."""
        if self._kept:
            self._log(self._kept)
            self._kept = []

"""Checkpoints: written whole or not at all beside the training, the last few kept, the newest readable one found again."""

import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from ..core.console import say
from ..core.errors import ClipftError
from .state import RunState

FORMAT = 4
READABLE = (3, FORMAT)  # 3: of the release before, with the weights that do not train too
SETTLED = ("best",)  # parts of a state whose tensors are on the host, and are replaced and never changed
SHARE = 0.05  # of a run's time that checkpoints may take, about


class Checkpoint(RunState):
    """A run after `step` steps. key: identity of the run."""

    format: int
    key: str
    step: int


@dataclass
class _Writing:
    """A checkpoint on its way to the disk.

    Attributes:
        seconds: of the cores that writing it took.
        error: what went wrong.
    """

    thread: threading.Thread | None = None
    seconds: float = 0.0
    error: list[Exception] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run, in one folder. A context manager: leaving it waits for what is being written.

    Args:
        folder: created when missing.
        key: identity of the run; a checkpoint of another key is never resumed from.
        keep: how many to keep.
        saved: called with each checkpoint's path once it stands there, in the thread that wrote it.

    Attributes:
        seconds: that the training waited for checkpoints, all together.
    """

    def __init__(self, folder: Path, key: str, keep: int = 2, saved: Callable[[Path], None] | None = None) -> None:
        self.folder, self.key, self.keep, self.saved = folder, key, keep, saved
        self.seconds = 0.0
        self._waited = 0.0  # seconds that the training waited for the last one
        self._writing = _Writing()
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.wait()
        except Exception as late:
            if kind is None:
                raise
            say(str(late))  # what ends the run already says why

    def save(self, step: int, state: Mapping[str, object]) -> None:
        """Write the state at `step`, and wait for it. Raises ClipftError when the disk is full; earlier checkpoints stay."""
        self.begin(step, state, room=0)
        self.wait()

    def begin(self, step: int, state: Mapping[str, object], *, room: int, then: Callable[[], None] | None = None) -> None:
        """Begin to write the state at `step`: a copy of it in the host's memory is written while the training goes on.

        Args:
            state: its tensors may change as soon as this returns.
            room: bytes that the copy may take; where that is too little, this waits for the file and copies nothing.
            then: called once the checkpoint stands there, in the thread that wrote it.
        Raises: ClipftError when this one, or the one before, cannot be written.
        """
        self.wait()
        began = time.monotonic()
        writing = self._writing = _Writing()
        if size_of({name: part for name, part in state.items() if name not in SETTLED}) <= room:
            arguments = (writing, step, on_host(state), then)
            writing.thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
            writing.thread.start()
        else:
            self._write(writing, step, state, then)
        self._waited = time.monotonic() - began
        self.seconds += self._waited
        if not writing.thread:
            self.wait()

    def wait(self) -> None:
        """Wait for what is being written. Raises ClipftError when it cannot be."""
        began, writing = time.monotonic(), self._writing
        if writing.thread:
            writing.thread.join()
            writing.thread = None
            self.seconds += time.monotonic() - began
        if writing.error:
            raise writing.error.pop()

    def is_due(self, since: float, seconds: float, left: float = math.inf) -> bool:
        """Whether to begin the next one.

        Args:
            since: `time.monotonic()` of the last one.
            seconds: between two that are asked for; more where they take more than their share; 0 for one a step.
            left: until the run ends, when one is written anyway.
        """
        writing = self._writing
        if seconds and writing.thread and writing.thread.is_alive():
            return False
        cost = self._waited + writing.seconds
        if seconds and left < cost:
            return False
        return time.monotonic() - since >= (max(seconds, cost * (1 / SHARE - 1)) if seconds else 0.0)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read and belongs to this run, or None. One that is broken is said and skipped."""
        for path in reversed(self._paths()):
            try:
                state: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # a cut file raises anything from EOFError to RuntimeError
                say(f"Checkpoint {path.name} cannot be read ({error}); falling back to the one before.")
                continue
            if state.get("key") == self.key and state.get("format") in READABLE:
                return state
        return None

    def _write(self, writing: _Writing, step: int, state: Mapping[str, object], then: Callable[[], None] | None) -> None:
        began = time.thread_time()
        path = self.folder / f"step-{step:08d}.pt"
        part = path.with_suffix(".part")
        try:
            for left in self.folder.glob("*.part"):  # of a try that was killed
                left.unlink()
            with part.open("wb") as file:
                torch.save({"format": FORMAT, "key": self.key, "step": step, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            for old in self._paths()[: -self.keep]:
                old.unlink()
            if self.saved:
                self.saved(path)
            if then:
                then()
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            refused = ClipftError(
                f"checkpoint {path}",
                f"it cannot be written: {error}",
                "Free some space; the run resumes from the one before.",
                code="train.checkpoint_not_writable",
            )
            refused.__cause__ = error
            writing.error.append(refused)
        except Exception as error:  # raised where somebody waits for it
            writing.error.append(error)
        writing.seconds = time.thread_time() - began

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))


def size_of(state: object) -> int:
    """Bytes of all tensors in a tree."""
    return sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))


def on_host(state: Mapping[str, object]) -> Mapping[str, object]:
    """A state with copies of its tensors in the host's memory, which nobody else changes. The host waits for them."""
    own = {name: part for name, part in state.items() if name not in SETTLED}
    return {**state, **tree_map_only(torch.Tensor, lambda t: t.detach().to("cpu", copy=True), own)}

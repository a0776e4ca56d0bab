"""Checkpoints: written whole or not at all, the last few kept, the newest readable one found again."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..core.console import say
from ..core.errors import ClipftError
from .state import RunState

FORMAT = 3
SHARE = 0.05  # of a run's time that writing checkpoints may take, about


class Checkpoint(RunState):
    """A run after `step` steps. key: identity of the run."""

    format: int
    key: str
    step: int


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
        folder: created when missing.
        key: identity of the run; a checkpoint of another key is never resumed from.
        keep: how many to keep.
        saved: called with each checkpoint's path once it stands there.
    """

    def __init__(self, folder: Path, key: str, keep: int = 2, saved: Callable[[Path], None] | None = None) -> None:
        self.folder, self.key, self.keep, self.saved = folder, key, keep, saved
        self._cost = 0.0  # seconds that the last one took
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, state: Mapping[str, object]) -> Path:
        """Write the state at `step`. Raises ClipftError when the disk is full; earlier checkpoints stay."""
        began = time.monotonic()
        path = self.folder / f"step-{step:08d}.pt"
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                torch.save({"format": FORMAT, "key": self.key, "step": step, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise ClipftError(
                f"checkpoint {path}",
                f"it cannot be written: {error}",
                "Free some space; the run resumes from the one before.",
                code="train.checkpoint_not_writable",
            ) from error
        for old in self._paths()[: -self.keep]:
            old.unlink()
        if self.saved:
            self.saved(path)
        self._cost = time.monotonic() - began
        return path

    def due_after(self, seconds: float) -> float:
        """Seconds until the next one is due: those that are asked for, or more where the last one took long; 0 stays 0."""
        return max(seconds, self._cost * (1 / SHARE - 1)) if seconds else 0.0

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read and belongs to this run, or None. One that is broken is said and skipped."""
        for path in reversed(self._paths()):
            try:
                state: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # a cut file raises anything from EOFError to RuntimeError
                say(f"Checkpoint {path.name} cannot be read ({error}); falling back to the one before.")
                continue
            if state.get("key") == self.key and state.get("format") == FORMAT:
                return state
        return None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

"""Backups that follow one another in a folder: which is the newest to go on from, and which may go."""

from pathlib import Path

from ..core.errors import ClipftError
from ..core.settings import settings
from .backup_manifest import Manifest

NAME = "%Y%m%d-%H%M%S"  # of a backup's folder, by the time when it was made (UTC)


def series(folder: Path) -> list[Path]:
    """The whole backups of this installation below a folder, oldest first. What else lies there is left out."""
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        try:
            made = Manifest.read(path) if path.is_dir() else None
        except ClipftError:  # cut short, damaged, or something else
            continue
        if made and made.home == str(settings().root):
            found.append((made.made, path))
    return [path for _, path in sorted(found)]


def newest(folder: Path) -> Path | None:
    """The newest whole backup of this installation below a folder; None where there is none."""
    return next(iter(series(folder)[::-1]), None)


def prune(folder: Path, keep: int) -> list[Path]:
    """Delete the oldest backups of this installation below a folder; returns which.

    Args:
        keep: how many stay; 0 for all of them.
    """
    from .erase import backups

    gone = series(folder)[:-keep] if keep else []
    backups.prune(map(str, gone))
    return gone

"""maintenance: a backup, and after it what may go. Of the whole installation, whatever the spec says."""

from datetime import UTC, datetime
from pathlib import Path

from ..contracts.stages import BackupResult, GarbageResult
from ..core.console import say
from ..core.errors import ClipftError
from ..core.settings import settings
from ..spec import RunSpec


def backup(spec: RunSpec, folder: str = "") -> BackupResult:
    """Make a backup in a new folder, going on from the one before, and look at every byte of it; then let the oldest go.

    Args:
        folder: below which each backup gets a folder; "": `backups` under home.
    Raises: ClipftError when it cannot be made or is not whole; TransientError when a database does not answer.
    """
    from ..ops import backup as backups
    from ..ops import backup_series

    below = Path(folder).expanduser().resolve() if folder else settings().folder("backups")
    place = below / f"{datetime.now(UTC):{backup_series.NAME}}"
    before = backup_series.newest(below)
    backups.backup(place, since=before)
    made, problems = backups.verify(place)
    if problems:
        raise ClipftError(
            f"backup {place}", f"it is not whole: {problems[0]}", "Look at the disk, and run this again.", code="backup.damaged"
        )
    gone = backup_series.prune(below, settings().backups_kept)
    for path in gone:
        say(f"Removed {path}: the newest {settings().backups_kept} backups are kept.")
    return BackupResult(
        folder=str(place),
        bytes=made.bytes,
        warnings=made.warnings,
        not_copied=made.references,
        removed=[str(path) for path in gone],
    )


def collect_garbage(spec: RunSpec) -> GarbageResult:
    """Remove what may go, and say how much space came back.

    Raises: ClipftError while another backup, restore, gc or upgrade runs, or when a database cannot be read.
    """
    from ..ops import gc

    found = gc.find()
    done = gc.clear(found)
    return GarbageResult(freed=done.freed, removed=done.removed, failed=done.failed, skipped=found.skipped)

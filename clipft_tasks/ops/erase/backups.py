"""Backups that hold erased rows: they are copies of what was there when they were made, so they are named, and deleted when asked.

A backup is never changed: one without some of its files would be damaged.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ...contracts.erasure import Erasure
from ...core.errors import ClipftError
from ...core.settings import settings
from ...data import erased_copies, repository
from ..backup_manifest import MANIFEST, Manifest

CUT_SHORT = ".part"  # what a killed backup left


def places(more: Iterable[Path] = ()) -> list[Path]:
    """The folders below which backups lie: that under home, and others."""
    return list(dict.fromkeys([settings().root / "backups", *(folder.expanduser().resolve() for folder in more)]))


def found(folders: Iterable[Path]) -> Iterator[tuple[Path, Manifest | None]]:
    """Each backup below some folders, or that is one itself; None for what a killed one left, or one that cannot be read."""
    for place in folders:
        for folder in [place, *sorted(place.glob("*/"))]:
            made = None
            with suppress(ClipftError):
                made = Manifest.read(folder)
            if made or (folder / MANIFEST).exists() or (folder.suffix == CUT_SHORT and (folder / "databases").is_dir()):
                yield folder, made


@dataclass
class Holding:
    """Which backups hold rows that were erased since they were made.

    Args:
        named: what the versions of today name.
    """

    named: erased_copies.Named
    _looked: dict[str, bool] = field(default_factory=dict)  # objects of the remote, by MD5: several backups hold the same

    def among(self, folders: Iterable[Path]) -> dict[str, str]:
        """By folder: when it was made, and what it holds."""
        out = {}
        for folder, made in found(folders):
            if holds := self._holds(folder, made):
                out[str(folder)] = f"made {made.made}: {holds}" if made else holds
        return out

    def _holds(self, folder: Path, made: Manifest | None) -> str:
        erasures = [e for tombstones in self.named.tombstones.values() for e in tombstones.erasures]
        since = [e for e in erasures if made is None or _moment(e.at) >= _moment(made.made)]
        if not since:
            return ""
        images = sum(self._file_holds(path) for path in folder.glob("dvc-remote/**/*") if path.is_file())
        images += sum(self._is_of(path) for path in folder.glob("captures/*/*.json"))
        if images:
            return f"{images} files with erased images"
        if made is None:
            return "it is not whole, and may hold them"
        return "" if _is_from_before(folder, since) else "databases and pages in which names and captions of them may stand"

    def _file_holds(self, path: Path) -> bool:
        md5 = path.parent.name + path.name
        if md5 in self.named.objects:
            return False
        if md5 not in self._looked:
            with path.open("rb") as content:
                self._looked[md5] = erased_copies.holds(content, self.named.is_erased)
        return self._looked[md5]

    def _is_of(self, path: Path) -> bool:
        with suppress(OSError, ValueError):
            return self.named.is_erased(str(json.loads(path.read_text()).get("sha256", "")))
        return False


def prune(held: Iterable[str]) -> None:
    """Delete backups. One that is half deleted when this is killed still has its manifest, and is found again."""
    for folder in map(Path, held):
        for child in folder.iterdir():
            if child.name != MANIFEST:
                shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
        (folder / MANIFEST).unlink(missing_ok=True)
        folder.rmdir()


def _is_from_before(folder: Path, since: list[Erasure]) -> bool:
    """Whether a backup is older than every version that held the rows. A backup of databases alone does not say."""
    bundle = folder / "datasets.bundle"
    if not bundle.is_file():
        return False
    heads = repository.git(folder, "bundle", "list-heads", str(bundle)).split()
    return not {f"refs/tags/{tag}" for erasure in since for tag in erasure.rows} & set(heads)


def _moment(said: str) -> datetime:
    at = datetime.fromisoformat(said)
    return at if at.tzinfo else at.replace(tzinfo=UTC)

"""The journal of an erasure: what is to be erased, until all of it is. What a killed process left is finished from it.

It lies under home, readable by its owner only, since it names what is to be erased; it is the last thing that goes.
"""

import json
import shutil
from pathlib import Path
from typing import ClassVar

from ...contracts.base import VersionedRecord
from ...contracts.drift import Capture
from ...contracts.erasure import SeenIn
from ...core.errors import ClipftError
from ...core.files import atomic_write
from ...core.settings import settings
from .traces import Traces

FILE = "journal.json"


class Journal(VersionedRecord):
    """One erasure under way.

    Args:
        images, groups: by domain, what is erased. how: as in `Erasure.chosen`.
        captures: that go. requests: answer ids.
        old: what the old history named, by MD5; known once its successor is ready. traces: likewise.
        rows: erased rows by version and split. models: who saw them.
        packages: whether packages are packed again.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "the journal of an erasure"

    id: str
    at: str
    by: str
    how: list[str]
    images: dict[str, list[str]]
    groups: dict[str, list[str]] = {}
    captures: list[Capture] = []
    requests: list[str] = []
    old: list[str] = []
    traces: Traces = Traces()
    rows: dict[str, dict[str, int]] = {}
    models: list[SeenIn] = []
    packages: bool = True

    @property
    def folder(self) -> Path:
        return root() / self.id

    def write(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(self.folder / FILE, json.dumps(self.to_json()), mode=0o600, durable=True)

    def remove(self) -> None:
        """The journal goes after everything else in its folder."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != FILE:
                path.unlink()
        shutil.rmtree(self.folder)


def root() -> Path:
    return settings().root / "erasing"


def unfinished() -> list[Journal]:
    """Erasures that were begun and not finished, the oldest first. Raises ClipftError for a journal that cannot be read."""
    found = []
    for folder in root().glob("*/"):
        path = folder / FILE
        if not path.exists():
            continue
        try:
            found.append(Journal.from_json(json.loads(path.read_text()), str(path)))
        except ValueError as error:
            fix = "Remove its folder, and give the erasure again."
            raise ClipftError(f"journal {path}", f"it cannot be read ({error})", fix, code="erase.damaged_journal") from None
    return sorted(found, key=lambda journal: journal.at)


def remove_leftovers() -> None:
    """Remove folders of erasures that were killed before their journal was written, or after it went."""
    for folder in root().glob("*/"):
        if not (folder / FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)

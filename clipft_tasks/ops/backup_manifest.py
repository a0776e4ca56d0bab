"""What a backup holds, file by file; and how one goes on from an earlier one."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

from ..core.errors import ClipftError

FORMAT = 1
MANIFEST = "manifest.json"


class CopiedFile(TypedDict):
    """A file of a backup, as its manifest knows it."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Earlier:
    """An earlier backup, and its files by path; none where there is none to go on from."""

    folder: Path | None
    files: Mapping[str, CopiedFile]

    def link(self, source: Path, target: Path, name: str) -> tuple[str, str] | None:
        """Make `target` another name of the earlier backup's file of that path, where it has the bytes of `source`.

        Returns: SHA-256 and MD5 of the bytes; None where it must be copied.
        """
        known = self.files.get(name)
        if self.folder is None or known is None or source.stat().st_size != known["bytes"]:
            return None
        found = file_digests(source)
        if found[0] != known["sha256"]:
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.folder / name, target)
        except OSError:  # another disk, or one that knows no links
            return None
        if file_digests(target)[0] != known["sha256"]:  # damaged since
            target.unlink()
            return None
        return found


NONE = Earlier(None, {})


@dataclass
class Manifest:
    """What a backup holds.

    Attributes:
        made: when, UTC.
        home: the folder that it was taken of.
        versions: of the programs whose state it is.
        revisions: of the databases' tables, by name.
        files: bytes and SHA-256 of each, by path.
        references: what was not copied, and where it is.
        warnings: what was found damaged or left out.
    """

    made: str
    home: str
    versions: dict[str, str]
    revisions: dict[str, str] = field(default_factory=dict)
    files: dict[str, CopiedFile] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        return sum(f["bytes"] for f in self.files.values())

    def holds(self, part: str) -> bool:
        return any(name == part or name.startswith(part + "/") for name in self.files)

    def write(self, folder: Path) -> None:
        content = asdict(self)
        (folder / MANIFEST).write_text(
            json.dumps(content | {"digest": _manifest_digest(content)}, indent=1, sort_keys=True) + "\n"
        )

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises ClipftError: there is none, it was changed, or a newer release wrote it."""
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text())
            said = content.pop("digest")
        except FileNotFoundError:
            fix = "Name the folder that `clipft backup` made; one that was cut short is none."
            raise ClipftError(f"backup {folder}", f"it has no {MANIFEST}", fix, code="backup.not_one") from None
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ClipftError(
                f"{path}", f"it cannot be read ({error!r})", "Use another backup.", code="backup.damaged"
            ) from None
        if content.get("format", 0) > FORMAT:
            fix = f"Install clipft {content.get('versions', {}).get('clipft', 'of that release')} and restore with it."
            raise ClipftError(
                f"backup {folder}", f"a newer release made it (format {content['format']})", fix, code="backup.newer_release"
            )
        if said != _manifest_digest(content):
            raise ClipftError(f"{path}", "it is not as it was written", "Use another backup.", code="backup.damaged")
        return cls(**content)


def file_digests(path: Path) -> tuple[str, str]:
    """SHA-256 and MD5 of a file."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
            md5.update(block)
    return sha256.hexdigest(), md5.hexdigest()


def _manifest_digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

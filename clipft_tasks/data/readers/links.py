"""Where links of a source may lead: into the source itself, and into the places where tools keep the files that they link to."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...core.errors import ClipftError


@dataclass(frozen=True)
class Root:
    """The folder of a source.

    Attributes:
        linked: folders elsewhere that its links may lead to, resolved.
    """

    path: Path
    linked: tuple[Path, ...] = ()

    def __truediv__(self, name: str | Path) -> Path:
        return self.path / name

    def __str__(self) -> str:
        return str(self.path)

    def resolved(self, name: str) -> Path:
        """A path below it without links, `..` and the like. Folders are looked at once: a source has many files in each."""
        path = self.path / name
        if path.parent not in self._folders:
            self._folders[path.parent] = path.parent.resolve()
        found = self._folders[path.parent] / path.name
        plain = path.name not in ("", os.pardir) and "\0" not in name and not found.is_symlink()
        return found if plain else path.resolve()

    def holds(self, resolved: Path) -> bool:
        """Whether a path without links in it lies in the source, or where its links may lead."""
        path = str(resolved)
        return any(path == place or path.startswith(f"{place.rstrip(os.sep)}{os.sep}") for place in self._places)

    @cached_property
    def _folders(self) -> dict[Path, Path]:
        return {}

    @cached_property
    def _places(self) -> list[str]:
        return [str(self.path.resolve()), *map(str, self.linked)]


def root_of(path: Path, asked: str) -> Root:
    """A source's folder, and where links may lead: `data.links_root`, and the caches of the Hugging Face hub and of DVC that it is part of.

    Raises: ClipftError where `asked` is no folder.
    """
    linked = [*_caches(path.resolve())]
    if asked:
        named = Path(asked).expanduser()
        if not named.is_dir():
            raise ClipftError(
                f"data.links_root {asked}",
                "there is no such folder",
                "Name what the source's links lead to.",
                code="source.not_found",
            )
        linked.append(named.resolve())
    return Root(path, tuple(linked))


def _caches(path: Path) -> Iterator[Path]:
    for folder in (path, *path.parents):
        if folder.name == "snapshots" and (blobs := folder.with_name("blobs")).is_dir():
            yield blobs.resolve()  # of a repository of the hub: snapshots/<revision>/x.png -> ../../blobs/<hash>
        if (cache := folder / ".dvc" / "cache").is_dir():
            yield cache
            return

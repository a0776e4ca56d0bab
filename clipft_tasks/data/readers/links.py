"""Where links of a source may lead: into the source itself, and into the places where tools keep the files that they link to."""

import os
import stat
import unicodedata
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

    def find(self, name: str) -> tuple[str, os.stat_result | None]:
        """A path below it without links, `..` and the like, and what the system says of it; None where that is yet to be asked.

        Folders are looked at once: a source has many files in each.
        """
        folder, slash, base = name.rpartition("/")
        if base not in ("", os.curdir, os.pardir) and "\0" not in name:
            folder = folder or slash
            if folder not in self._folders:
                self._folders[folder] = f"{str((self.path / folder).resolve()).rstrip(os.sep)}{os.sep}"
            path = self._folders[folder] + base
            try:
                if not stat.S_ISLNK((about := os.lstat(path)).st_mode):
                    return path, about
            except OSError:
                return path, None
        return str((self.path / name).resolve()), None

    def holds(self, resolved: str | Path) -> bool:
        """Whether a path without links in it lies in the source, or where its links may lead."""
        path = str(resolved)
        return path in self._places or path.startswith(self._below)

    def find_composed(self, name: str) -> tuple[str, os.stat_result | None]:
        """The same as `find`, where the disk composes letters otherwise than `name` does (`ü` as one letter or as two, as a Mac writes it)."""
        here = self.path
        for part in Path(name).parts:
            here /= part if (here / part).exists() else self._names(here).get(unicodedata.normalize("NFC", part), part)
        return self.find(str(here.relative_to(self.path)))

    def like(self, path: Path) -> str:
        """The name beside `path` that only differs in case or ending; "" where there is none, or several."""
        plain, whole = Path(path.name).stem.casefold(), path.name.casefold()
        names = self._names(path.parent).values()
        return next(
            (
                found[0]
                for found in (
                    [n for n in names if n.casefold() == whole],
                    [n for n in names if Path(n).stem.casefold() in (plain, whole)],
                )
                if len(found) == 1
            ),
            "",
        )

    def _names(self, folder: Path) -> dict[str, str]:
        """What lies in a folder, by composed names."""
        if folder not in self._listed:
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            self._listed[folder] = {unicodedata.normalize("NFC", name): name for name in names}
        return self._listed[folder]

    @cached_property
    def _listed(self) -> dict[Path, dict[str, str]]:
        return {}

    @cached_property
    def _folders(self) -> dict[str, str]:
        return {}

    @cached_property
    def _places(self) -> list[str]:
        return [str(self.path.resolve()), *map(str, self.linked)]

    @cached_property
    def _below(self) -> tuple[str, ...]:
        return tuple(f"{place.rstrip(os.sep)}{os.sep}" for place in self._places)


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

"""Folders: images, each with its caption beside it (`x.jpg`, `x.txt`), and the subfolder as its label.

A first level called train, val or test is read as the split.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ...core.errors import ClipftError
from ...spec import DataSpec
from ..splits import SPLITS
from .base import Reader, Row, Source, read_inside

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


class Folder(Reader):
    """A folder tree of images."""

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        """Open the folder at a path. Raises ClipftError when it holds no image."""
        root = Path(argument).expanduser()
        found = sorted(
            Path(parent, name).relative_to(root)
            for parent, _, names in os.walk(root)
            for name in names
            if Path(name).suffix.lower() in IMAGES
        )
        if not found:
            raise ClipftError(
                f"folder {root}",
                "there are no images in it",
                f"Known: {', '.join(sorted(IMAGES))}; shards are webdataset:<folder>, DICOM is dicom:<folder>.",
                code="source.no_images",
            )

        def rows() -> Iterator[Row]:
            for path in found:
                split, label = labeled(path)
                yield Row(
                    where=f"{root.name}/{path}",
                    image_bytes=partial(read_inside, root, str(path)),
                    key=str(path),
                    caption=beside(root, path),
                    label=label,
                    split=split,
                )

        return Source(rows, name=root.name, total=len(found))


def labeled(path: Path) -> tuple[str, str]:
    """(split, label) that the folders of a path, relative to its root, give it."""
    parents = list(path.parent.parts)
    split = parents.pop(0).lower() if parents and parents[0].lower() in SPLITS else ""
    return split, "/".join(parents)


def beside(root: Path, path: Path) -> str:
    """The text of the same name; "" where there is none, or where it leads out of `root`."""
    caption = root / path.with_suffix(".txt")
    inside = caption.is_file() and caption.resolve().is_relative_to(root.resolve())
    return caption.read_text("utf-8", errors="replace").strip() if inside else ""

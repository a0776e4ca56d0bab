"""DICOM trees: each file with pixels is a row, whatever it is called. Patients become pseudonyms that hold splits together.

A first level called train, val or test is the split, the other folders are the label, a text of the same name (`x.dcm`, `x.txt`)
is the caption: as in a folder of images. Where neither says anything, the caption is what the header says without naming anyone.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ...core.errors import ClipftError
from ...spec import DataSpec
from .. import dicom
from ..images import BadImage
from .base import Reader, Row, Source, read_inside
from .folder import beside, labeled


class Dicom(Reader):
    """A folder tree with DICOM files."""

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        """Open the folder at a path. Raises ClipftError when there is none, or no DICOM file in it."""
        root = Path(argument).expanduser()
        if not root.is_dir():
            raise ClipftError(
                f"source dicom:{root}",
                "there is no such folder",
                "Check the path; it is read on the worker.",
                code="source.not_found",
            )
        found = sorted(path for path in _files(root) if _begins_like_dicom(root / path))
        if not found:
            raise ClipftError(
                f"source dicom:{root}",
                "there is no DICOM file in it",
                "Files need the preamble of PS3.10.",
                code="source.no_images",
            )

        def rows() -> Iterator[Row]:
            for path in found:
                split, label = labeled(path)
                caption = beside(root, path)
                group = ""
                try:
                    header = dicom.read_header(read_inside(root, str(path), as_it_is=True))
                    group = dicom.pseudonym(header)
                    caption = caption or ("" if label else dicom.caption_of(header))
                except (BadImage, OSError):
                    pass  # reading its image fails the same way, and is where the reason is kept
                yield Row(
                    where=f"{root.name}/{path}",
                    image_bytes=partial(read_inside, root, str(path)),
                    key=str(path),
                    caption=caption,
                    label=label,
                    group=group,
                    split=split,
                )

        return Source(rows, name=root.name, total=len(found))


def _files(root: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(root):
        yield from (Path(parent, name).relative_to(root) for name in names if name != "DICOMDIR")


def _begins_like_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return dicom.is_dicom(file.read(132))
    except OSError:
        return True  # it stays a row, and is refused with the reason

"""What a reader is, and what it makes of its source."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...spec import DataSpec
from .. import dicom
from ..account import Account
from ..images import BadImage, Limits


@dataclass(frozen=True)
class Row:
    """One image as its source describes it, before anyone has looked inside.

    Args:
        where: how a person finds the row again ("images.csv line 17").
        image_bytes: reads the bytes; raises OSError or BadImage.
        key: the source's own name for the row; must be unique.
        caption, label, group, split: "" where the source says nothing.
    """

    where: str
    image_bytes: Callable[[], bytes]
    key: str
    caption: str = ""
    label: str = ""
    group: str = ""
    split: str = ""


@dataclass(frozen=True)
class Source:
    """A source opened: its rows and what must be said about it. The account is whole when all rows were read."""

    rows: Callable[[], Iterator[Row]]
    license: str = ""
    name: str = ""
    total: int | None = None  # rows, where the source knows
    account: Account = field(default_factory=Account)


class Reader(ABC):
    """A kind of source, by name in `--source name:argument`.

    Example:
        class Nightly(Reader):
            @classmethod
            def open(cls, argument, options):
                return Folder.open(f"/archive/{argument}/images", options)
    """

    @classmethod
    @abstractmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        """Open a source without reading its images.

        Args:
            argument: what stands after the reader's name and the colon, or the path where the source is a plain one.
            options: columns and the like, from the spec.
        Raises:
            ClipftError: it is missing, or not of this kind. Transient: what it comes from is away.
        """


def read_inside(root: Path, name: str, as_it_is: bool = False) -> bytes:
    """The bytes of `name` below `root`; anything that would leave `root` is refused, links included.

    A DICOM file comes as the PNG of its pixels, so that no header, and nobody's name, goes any further.

    Args:
        as_it_is: a DICOM file comes as it is.
    Raises:
        BadImage: when the path leaves the root or is no plain file.
        OSError: when it cannot be read.
    """
    if Path(name).is_absolute():
        raise BadImage(f"path {name!r} is absolute; paths are relative to the table's folder")
    try:
        path = (root / name).resolve()
        name.encode()
    except (ValueError, RuntimeError) as error:  # a null byte, half a character, a circle of links
        raise BadImage(f"path {name!r} cannot be followed: {error}") from error
    if not path.is_relative_to(root.resolve()):
        raise BadImage(f"path {name!r} leads outside {root}")
    if not path.is_file():
        raise BadImage(f"no such file: {name}" if not path.exists() else f"{name} is not a plain file")
    if path.stat().st_size > Limits().bytes:
        raise BadImage(f"{name} has {path.stat().st_size:,} bytes, more than the limit of {Limits().bytes:,}")
    data = path.read_bytes()
    return data if as_it_is or not dicom.is_dicom(data) else dicom.as_png(data)

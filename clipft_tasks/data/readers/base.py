"""What a reader is, and what it makes of its source."""

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from ...spec import DataSpec
from .. import deep_jpeg, dicom
from ..account import Account
from ..images import BadImageError, Limits
from .links import Root


@dataclass(frozen=True)
class Row:
    """One image as its source describes it, before anyone has looked inside.

    Args:
        where: how a person finds the row again ("images.csv line 17").
        image_bytes: reads the bytes; raises OSError or BadImageError.
        key: the source's own name for the row; must be unique.
        caption, label, group, split: "" where the source says nothing.
        kin: other names of what it belongs to (the study of a patient who has two numbers): rows that share one share a split.
    """

    where: str
    image_bytes: Callable[[], bytes]
    key: str
    caption: str = ""
    label: str = ""
    group: str = ""
    split: str = ""
    kin: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A source opened: its rows and what must be said about it. The account is whole when all rows were read."""

    rows: Callable[[], Iterator[Row]]
    license: str = ""
    origin: str = ""
    consent: str = ""
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
            ClipftError: it is missing, or not of this kind. TransientError: what it comes from is away.
        """


def refuse(reason: str, kind: str = "other reasons") -> bytes:
    """The bytes of a row that is refused before it is read. Raises BadImageError, always."""
    raise BadImageError(reason, kind)


def as_image(data: bytes, limits: Limits = Limits()) -> bytes:
    """The bytes of a file as those of an image: of DICOM the PNG of its pixels, so that no header, and no name, goes further.

    Of a JPEG that Pillow does not read likewise.
    """
    if len(data) > limits.bytes:
        raise BadImageError(f"{len(data):,} bytes, more than the limit of {limits.bytes:,}", "too large")
    if dicom.is_dicom(data):
        return dicom.as_png(data)
    return deep_jpeg.as_png(data) if deep_jpeg.is_deep(data) else data


def read_inside(root: Path | Root, name: str, as_it_is: bool = False, limit: int = Limits().bytes) -> bytes:
    """The bytes of `name` below `root`; anything that would leave `root` is refused, links included.

    A DICOM file comes as the PNG of its pixels, see `as_image`.

    Args:
        root: a `Root` says where links may lead besides.
        name: relative to `root`, or absolute and below it.
        as_it_is: a DICOM file comes as it is.
        limit: of bytes.
    Raises:
        BadImageError: when the path leaves the root or is no plain file.
        OSError: when it cannot be read.
    """
    path, _ = find_inside(root, name, limit)
    data = Path(path).read_bytes()
    return data if as_it_is else as_image(data)


def find_inside(root: Path | Root, name: str, limit: int) -> tuple[str, os.stat_result]:
    """The file of `name` below `root`, without links in its path, and what the system says of it. Arguments and errors as `read_inside`."""
    root = root if isinstance(root, Root) else Root(root)
    try:
        name.encode()
        path, about = root.find(name)
        if "\\" in name and not about and not Path(path).exists():  # as Windows writes paths
            path, about = root.find(name.replace("\\", "/"))
        if not about and not name.isascii() and not os.path.lexists(path) and not Path(name).is_absolute():
            path, about = root.find_composed(name.replace("\\", "/"))
    except (ValueError, RuntimeError) as error:  # a null byte, half a character, a circle of links
        raise BadImageError(f"path {name!r} cannot be followed: {error}", "path that cannot be followed") from error
    if not root.holds(path):
        outside = f"path {name!r} is absolute and not below {root}; see data.images_root"
        linked = f"path {name!r} leads outside {root}; see data.links_root"
        raise BadImageError(outside if Path(name).is_absolute() else linked, "outside the source")
    try:
        about = about or Path(path).stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        if PureWindowsPath(name).drive:
            raise BadImageError(
                f"path {name!r} is one of Windows; write it relative to {root}", "outside the source"
            ) from error
        like = root.like(Path(path))
        raise BadImageError(f"no such file: {name}" + (f" (there is {like})" if like else ""), "no such file") from error
    if not stat.S_ISREG(about.st_mode):
        raise BadImageError(f"{name} is not a plain file", "not a plain file")
    if about.st_size > limit:
        raise BadImageError(f"{name} has {about.st_size:,} bytes, more than the limit of {limit:,}", "too large")
    return path, about


@dataclass(frozen=True)
class ImageFile:
    """Reads the bytes of an image from a file below a root, when called: they are the same as long as the file is. Raises as `read_inside`.

    Args:
        part: of a file with several images, which one, and all else that decides what comes out of it.
        limit: of the file's bytes.
    """

    root: Path | Root
    name: str
    part: str = ""
    limit: int = Limits().bytes

    def __call__(self) -> bytes:
        return read_inside(self.root, self.name, limit=self.limit)

    def find(self) -> tuple[str, os.stat_result]:
        """The file, and what the system says of it. Raises as `read_inside`."""
        return find_inside(self.root, self.name, self.limit)

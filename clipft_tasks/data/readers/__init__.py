"""Readers: whatever a source is, it becomes a stream of `Row`s. `open_source` is the menu."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import ClipftError
from ...spec import DataSpec

SPLITS = ("train", "val", "test")


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
    """A source opened: its rows and what must be said about it."""

    rows: Callable[[], Iterator[Row]]
    license: str = ""
    name: str = ""
    total: int | None = None  # rows, where the source knows


def open_source(source: str, data: DataSpec) -> Source:
    """The reader for a source: a table (.csv, .jsonl, .parquet), a folder, `webdataset:<folder or .tar>`, `dicom:<folder>`,
    `elpv:<type>`, `molecules[:<number>]` or `captures:<domain>`.

    Raises:
        ClipftError: the source is missing or of no known kind.
    """
    from . import captures, dicom, elpv, folder, molecules, table, webdataset

    if not source:
        raise ClipftError("source", "nothing was given to ingest", "Name a table, a folder, or elpv:mono.")
    if source.startswith("elpv:"):
        return elpv.open_elpv(source.removeprefix("elpv:"))
    kind, _, limit = source.partition(":")
    if kind == "molecules":
        return molecules.open_molecules(limit)
    if source.startswith("captures:"):
        return captures.open_captures(source.removeprefix("captures:"))
    if kind == "dicom":
        return dicom.open_tree(Path(limit).expanduser())
    if kind == "webdataset" or source.endswith(".tar"):
        return webdataset.open_shards(Path(source.removeprefix("webdataset:")).expanduser(), data)
    path = Path(source.removeprefix("file://")).expanduser()
    if path.is_dir():
        return folder.open_folder(path)
    if path.suffix.lower() in table.KINDS:
        if not path.is_file():
            raise ClipftError(f"source {source}", "there is no such file", "Check the path; it is read on the worker.")
        return table.open_table(path, data)
    raise ClipftError(
        f"source {source}",
        "it is neither an existing folder nor a table ("
        + ", ".join(table.KINDS)
        + ") nor webdataset:<folder>, dicom:<folder>, elpv:<type>, molecules[:<number>] or captures:<domain>",
        "Check the spelling.",
    )


def read_inside(root: Path, name: str, as_it_is: bool = False) -> bytes:
    """The bytes of `name` below `root`; anything that would leave `root` is refused, links included.

    A DICOM file comes as the PNG of its pixels, so that no header, and nobody's name, goes any further.

    Args:
        as_it_is: a DICOM file comes as it is.
    Raises:
        BadImage: when the path leaves the root or is no plain file.
        OSError: when it cannot be read.
    """
    from .. import dicom
    from ..images import BadImage, Limits

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

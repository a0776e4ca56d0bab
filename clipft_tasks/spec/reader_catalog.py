"""The readers that ship: how a source of each is written, what it reads, and where its class is. Loads no reader.

A new one is its file and an entry here. The form's text for `source`, `clipft_tasks.data.readers` and the table in docs/data.md
read this.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What ships under a name.

    Attributes:
        path: `module:Class` below `clipft_tasks.data.readers`, imported when it is asked for.
        source: how a source is written, Markdown.
        reads: what it takes from there, Markdown.
        suffixes: of plain paths that are sources of this reader.
        examples: for forms.
        files: whether its argument is a path, which may lie elsewhere or be packed.
    """

    path: str
    source: str
    reads: str
    suffixes: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    files: bool = False


READERS: Mapping[str, Entry] = {
    "table": Entry(
        "table:Table",
        "a table (CSV, TSV, JSONL, JSON, Parquet, xlsx, npz)",
        "a column of image paths, relative to the table, or of bytes, and captions or labels; columns for group and split are optional",
        suffixes=(".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", ".npz"),
        examples=("/data/images.csv",),
        files=True,
    ),
    "folder": Entry(
        "folder:Folder",
        "a folder of images",
        "the caption of `x.png` is in `x.txt`; subfolders are split, class and group; or the table in it says so (`metadata.csv`)",
        examples=("/data/images",),
        files=True,
    ),
    "webdataset": Entry(
        "webdataset:WebDataset",
        "`webdataset:<folder or .tar>`",
        "WebDataset shards: `x.jpg` with `x.txt`, `x.cls` or `x.json`",
        suffixes=(".tar",),
        files=True,
    ),
    "dicom": Entry(
        "dicom:Dicom",
        "`dicom:<folder>`",
        "DICOM files of any name; folders and texts as in a folder of images",
        examples=("dicom:/data/studies",),
        files=True,
    ),
    "slides": Entry(
        "slides:Slides",
        "`slides:<folder or slide>`",
        "whole slides (SVS, NDPI, MRXS, pyramidal TIFF), cut into tiles; folders and texts as in a folder of images",
        examples=("slides:/data/biopsies",),
        files=True,
    ),
    "elpv": Entry(
        "elpv:Elpv",
        "`elpv:mono`",
        "photos of solar cells from PyPI; also `elpv:poly` and `elpv:all` (CC-BY-NC-SA-4.0: not for commercial use)",
        examples=("elpv:mono", "elpv:poly"),
    ),
    "molecules": Entry(
        "molecules:Molecules",
        "`molecules:2000`",
        "structures that RDKit draws, with their names; `molecules` for all",
        examples=("molecules:2000",),
    ),
    "captures": Entry(
        "captures:Captures",
        "`captures:<domain>` (the newest version and what was captured and labeled since)",
        "the domain's newest version, and the captures that were labeled since ([Drift](drift.md))",
    ),
}


def reader_of(suffix: str) -> str:
    """The reader of a plain path that ends like this; "" for none."""
    return next((name for name, entry in READERS.items() if suffix.lower() in entry.suffixes), "")


def sources() -> str:
    """How a source may be written, as one phrase."""
    *first, last = (entry.source for entry in READERS.values())
    return f"{', '.join(first)}, or {last}"


def examples() -> list[str]:
    """Sources of the readers that ship, for forms."""
    return [example for entry in READERS.values() for example in entry.examples]


def table() -> str:
    """Markdown, for docs/data.md."""
    rows = []
    for name, entry in READERS.items():
        written = f"`{name}:" in entry.source
        example = "" if written else ": " + ", ".join(f"`{e}`" for e in entry.examples)
        rows.append(f"| {entry.source.partition(' (the')[0]}{example} | {entry.reads} |")
    return "\n".join(["| `--source` | what it reads |", "|---|---|", *rows])

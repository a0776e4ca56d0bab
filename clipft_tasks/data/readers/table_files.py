"""Files of tables as records: CSV and the like, JSON lines, JSON, COCO, Parquet. A cell keeps its type; nothing is guessed."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ...core.errors import ClipftError
from ..images import BadImageError
from ..splits import SPLITS
from .sheets import sheet
from .table_record import Record, TableFile
from .text import decoded, split_of

SEPARATORS = (",", ";", "\t", "|")
MOST_BEFORE = 20  # lines: titles that a report has before its table
MAX_CELL = 1 << 24  # letters
BATCH = 64  # rows of Parquet at once: they may hold images


def open_table(path: Path, image_column: str, separator: str = "") -> TableFile:
    """Open a file by its ending. Raises ClipftError where it cannot be read."""
    try:
        found = _opened(path, image_column, separator)
        if twice := sorted(name for name, count in Counter(found.columns).items() if name and count > 1):
            raise ValueError(f"it has several columns called {twice[0][:100]!r}, which may differ; give each a name of its own")
        return found
    except ClipftError:
        raise
    except Exception as error:  # csv, json, pyarrow and Unicode each raise their own
        raise ClipftError(
            f"table {path}",
            f"it cannot be read: {str(error)[:200]}",
            "Is the file whole and UTF-8?",
            code="source.unreadable_file",
        ) from error


def _opened(path: Path, image_column: str, separator: str) -> TableFile:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt"):
        return _separated(path, image_column, separator)
    if suffix in (".jsonl", ".ndjson"):
        return _lines(path)
    if suffix == ".npz":
        return _arrays(path)
    if suffix == ".xlsx":
        return sheet(path, image_column)
    return _parquet(path) if suffix == ".parquet" else _json(path)


def _separated(path: Path, image_column: str, separator: str) -> TableFile:
    csv.field_size_limit(MAX_CELL)
    text = decoded(path.read_bytes())
    before, said = _before_head(text, image_column, separator)
    text = text[before:]
    first = text.partition("\n")[0]
    heads = {sep: [name.strip() for name in next(csv.reader([first], delimiter=sep), [])] for sep in SEPARATORS}
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    found = [sep for sep, head in heads.items() if image_column.casefold() in map(str.casefold, head)]
    sep = separator or said or (usual if usual in found or not found else max(found, key=lambda s: len(heads[s])))
    if not text:
        raise ValueError("it is empty")
    columns = heads.get(sep) or next(csv.reader([first], delimiter=sep))

    lines, open_quote = len(text.splitlines()), text.count('"') % 2 == 1

    def records() -> Iterator[Record | BadImageError]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=sep)
        next(reader)
        for cells in reader:
            if not cells:
                continue
            extra = cells[len(columns) :]
            if any(cell.strip() for cell in extra):
                yield BadImageError(
                    f"line {reader.line_num} has {len(cells)} fields, the head {len(columns)}: is a {_named(sep)} not in quotes?",
                    "more fields than columns",
                )
            elif open_quote and any("\n" in cell for cell in cells) and reader.line_num >= lines:
                yield BadImageError(
                    f"a quote in it is never closed, so it holds all lines from there to line {reader.line_num}",
                    "quote that is not closed",
                )
            else:
                yield dict(zip(columns, cells, strict=False))

    return TableFile(
        path,
        path.parent,
        columns,
        records,
        warning="Lines before the head of the table were left out." * (before > 0 and not said),
    )


def _before_head(text: str, image_column: str, separator: str) -> tuple[int, str]:
    """How many letters stand before the row of names, and the separator that Excel's own first line (`sep=;`) names."""
    if found := re.match(r'"?sep=(.)"?\r?\n', text):
        return found.end(), found[1]
    start = 0
    for line in text.split("\n", MOST_BEFORE)[:MOST_BEFORE]:
        for sep in (separator,) if separator else SEPARATORS:
            if image_column.casefold() in (name.strip().casefold() for name in next(csv.reader([line], delimiter=sep), [])):
                return start, ""
        start += len(line) + 1
    return 0, ""


def _named(separator: str) -> str:
    return {",": "comma", ";": "semicolon", "\t": "tab"}.get(separator, f"separator {separator!r}")


def _lines(path: Path) -> TableFile:
    lines = [line for line in decoded(path.read_bytes()).split("\n") if line.strip()]

    def record(line: str) -> Record | BadImageError:
        try:
            found = json.loads(line)
        except ValueError as error:
            return BadImageError(f"its line is no JSON: {error}", "no JSON")
        return found if isinstance(found, dict) else BadImageError("its line is no JSON object", "no JSON")

    columns: dict[str, None] = {}
    for found in map(record, lines):
        columns |= dict.fromkeys(found) if not isinstance(found, BadImageError) else {}
    if not columns:
        raise ValueError("not one line is a JSON object")
    return TableFile(path, path.parent, list(columns), lambda: map(record, lines), len(lines))


def _json(path: Path) -> TableFile:
    try:
        found = json.loads(decoded(path.read_bytes()))
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return _lines(path)  # JSON lines under another ending
    if isinstance(found, dict) and isinstance(found.get("images"), list) and isinstance(found.get("annotations"), list):
        return _coco(path, found["images"], found["annotations"])
    rows = found
    if isinstance(found, dict):
        lists = {
            key: rows
            for key, rows in found.items()
            if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) and rows
        }
        if len(lists) > 1 and not {split_of(key) for key in lists} <= set(SPLITS):
            raise ValueError(
                f"it holds several lists ({', '.join(map(repr, lists))[:100]}), which are not train, val and test; keep one"
            )
        named = {key: {"split": split_of(key)} if len(lists) > 1 else {} for key in lists}
        rows = [named[key] | row for key, rows in lists.items() for row in rows]
    if not rows or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is neither a list of objects nor captions as COCO has them")
    columns: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(row)
    return TableFile(path, path.parent, list(columns), partial(iter, rows), len(rows))


def _coco(path: Path, images: list[dict[str, object]], annotations: list[dict[str, object]]) -> TableFile:
    """Captions as COCO has them: a record an image, with all its captions."""
    captions: dict[object, list[object]] = {}
    for note in annotations:
        if note.get("caption"):
            captions.setdefault(note.get("image_id"), []).append(note["caption"])
    if not captions:
        raise ValueError(
            "its annotations hold no caption; of boxes and masks, make a table with a column of captions or labels"
        )
    known = Counter(str(image.get("id")) for image in images)
    several = BadImageError(
        "other images of the file have its id, so nobody knows whose caption is whose", "ids of several images"
    )
    rows = [
        {
            "image": image.get("file_name", ""),
            "caption": captions.get(image.get("id"), []) if known[str(image.get("id"))] == 1 else [several],
        }
        for image in images
    ]
    lost = sum(len(said) for id, said in captions.items() if str(id) not in known)
    warning = f"{lost} captions name an image that the file does not list." if lost else ""
    part = path.stem.rpartition("_")[2]  # captions_train2017.json, images in train2017 beside its folder
    folders = [
        path.parent,
        path.parent / "images",
        path.parent / part,
        path.parent.parent / part,
        path.parent.parent / "images",
    ]
    first = str(rows[0]["image"]) if rows else ""
    folder = next((f for f in folders if (f / first).is_file()), path.parent)
    split = split_of(part)
    return TableFile(
        path, folder, ["image", "caption"], partial(iter, rows), len(rows), split if split in SPLITS else "", warning=warning
    )


def _arrays(path: Path) -> TableFile:
    """Arrays as MedMNIST has them: `train_images` (n, rows, columns[, 3]) and `train_labels` (n, 1), likewise val and test."""
    import numpy as np
    from PIL import Image

    with np.load(path) as arrays:
        names = [name.removesuffix("_images") for name in arrays.files if name.endswith("_images")]
        there = [name for name in names if f"{name}_labels" in arrays.files]
        total = sum(len(arrays[f"{name}_labels"]) for name in there)
    if not there:
        raise ValueError("it has no arrays called train_images and train_labels, as MedMNIST has them")

    def records() -> Iterator[Record | BadImageError]:
        for name in there:
            with np.load(path) as opened:
                images, labels = opened[f"{name}_images"], opened[f"{name}_labels"]
            for image, label in zip(images, labels, strict=True):
                out = io.BytesIO()
                Image.fromarray(image).save(out, "PNG")
                yield {"image": out.getvalue(), "label": label.ravel().tolist(), "split": name}

    return TableFile(path, path.parent, ["image", "label", "split"], records, total)


def _parquet(path: Path) -> TableFile:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        schema, total = file.schema_arrow, file.metadata.num_rows

    def records() -> Iterator[Record | BadImageError]:
        with pq.ParquetFile(path) as opened:
            for batch in opened.iter_batches(batch_size=BATCH):
                yield from batch.to_pylist()

    split = split_of(path.stem.partition("-")[0])  # train-00000-of-00002.parquet
    kept = schema.metadata or {}
    return TableFile(
        path,
        path.parent,
        schema.names,
        records,
        total,
        split if split in SPLITS else "",
        _class_names(kept.get(b"huggingface")),
    )


def _class_names(told: bytes | None) -> dict[str, Sequence[str]]:
    try:
        features = json.loads(told or b"{}")["info"]["features"]
        return {name: kind["names"] for name, kind in features.items() if isinstance(kind, dict) and kind.get("names")}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}

"""Tables: one row an image, the image's path relative to the table's folder."""

from collections.abc import Hashable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from ...core.errors import ClipftError
from ...spec import DataSpec
from .base import Reader, Row, Source, read_inside


class Table(Reader):
    """A CSV, JSONL or Parquet table."""

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        """Open the table at a path. Raises ClipftError for a missing or unreadable one, or missing columns."""
        path = Path(argument).expanduser()
        if not path.is_file():
            raise ClipftError(
                f"source {argument}",
                "there is no such file",
                "Check the path; it is read on the worker.",
                code="source.not_found",
            )
        frame = _frame(path, options)
        return Source(lambda: _rows(path, frame, options), name=path.name, total=len(frame))


def _frame(path: Path, options: DataSpec) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".csv":
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        elif path.suffix.lower() == ".jsonl":
            frame = pd.read_json(path, lines=True, dtype=False, convert_dates=False)
        else:
            frame = pd.read_parquet(path)
    except Exception as error:  # pandas raises its own, pyarrow's and Unicode errors
        raise ClipftError(
            f"table {path}", f"it cannot be read: {error}", "Is the file whole and UTF-8?", code="source.unreadable_file"
        ) from error
    if options.image_column not in frame.columns:
        raise ClipftError(
            f"table {path}",
            f"it has no column {options.image_column!r} (it has: {', '.join(map(str, frame.columns))})",
            "Set data.image_column.",
            code="source.missing_columns",
        )
    if options.caption_column not in frame.columns and options.label_column not in frame.columns:
        raise ClipftError(
            f"table {path}",
            f"it has neither captions ({options.caption_column!r}) nor labels ({options.label_column!r})",
            "Set data.caption_column or data.label_column.",
            code="source.missing_columns",
        )
    return frame


def _rows(path: Path, frame: pd.DataFrame, options: DataSpec) -> Iterator[Row]:
    def text(record: Mapping[Hashable, object], column: str) -> str:
        value = record.get(column, "")
        if value is None or value is pd.NA or value != value:
            return ""
        return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()

    for number, record in enumerate(frame.to_dict("records")):
        name = text(record, options.image_column)
        yield Row(
            where=f"{path.name} row {number + 1}",
            image_bytes=partial(read_inside, path.parent, name),
            key=name,
            caption=text(record, options.caption_column),
            label=text(record, options.label_column),
            group=text(record, options.group_column),
            split=text(record, options.split_column).lower(),
        )

"""Tables: one row an image, the image's path relative to the table's folder."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd

from ...core.errors import ClipftError
from ...spec import DataSpec
from . import Row, Source, read_inside

KINDS = (".csv", ".jsonl", ".parquet")


def open_table(path: Path, data: DataSpec) -> Source:
    """Rows of a CSV, JSONL or Parquet table. Raises ClipftError for an unreadable table or missing columns."""
    try:
        if path.suffix.lower() == ".csv":
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        elif path.suffix.lower() == ".jsonl":
            frame = pd.read_json(path, lines=True, dtype=False, convert_dates=False)
        else:
            frame = pd.read_parquet(path)
    except Exception as error:  # pandas raises its own, pyarrow's and Unicode errors
        raise ClipftError(f"table {path}", f"it cannot be read: {error}", "Is the file whole and UTF-8?") from error
    if data.image_column not in frame.columns:
        raise ClipftError(
            f"table {path}",
            f"it has no column {data.image_column!r} (it has: {', '.join(map(str, frame.columns))})",
            "Set data.image_column.",
        )
    if data.caption_column not in frame.columns and data.label_column not in frame.columns:
        raise ClipftError(
            f"table {path}",
            f"it has neither captions ({data.caption_column!r}) nor labels ({data.label_column!r})",
            "Set data.caption_column or data.label_column.",
        )

    def rows() -> Iterator[Row]:
        def text(record: dict[str, object], column: str) -> str:
            value = record.get(column, "")
            if value is None or value is pd.NA or value != value:
                return ""
            return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()

        for number, record in enumerate(frame.to_dict("records")):
            name = text(record, data.image_column)
            yield Row(
                where=f"{path.name} row {number + 1}",
                image_bytes=partial(read_inside, path.parent, name),
                key=name,
                caption=text(record, data.caption_column),
                label=text(record, data.label_column),
                group=text(record, data.group_column),
                split=text(record, data.split_column).lower(),
            )

    return Source(rows, name=path.name, total=len(frame))

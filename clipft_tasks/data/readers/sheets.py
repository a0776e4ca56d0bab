"""Sheets of Excel (.xlsx) as records: a cell is what a person sees in it, so dates stay dates and numbers of cases keep their digits."""

import datetime
import re
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from ..images import BadImageError
from .table_record import Record, TableFile

DIGITS = 10**15  # Excel keeps fifteen
MOST_BYTES = 2**31  # of what the file unpacks to
ZEROS = re.compile(r'"?0+"?')  # a format that fills numbers up with zeros


def sheet(path: Path, image_column: str) -> TableFile:
    """The first sheet whose first row names the column of images, else the first. Raises ValueError where there is none."""
    import openpyxl

    with zipfile.ZipFile(path) as packed:
        if sum(member.file_size for member in packed.infolist()) > MOST_BYTES:
            raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
    with closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as workbook:
        heads = {
            name: _head(next(workbook[name].iter_rows(max_row=1), ()))
            for name in workbook.sheetnames
            if _is_table(workbook[name])
        }
    chosen = next((name for name, head in heads.items() if image_column in head), next(iter(heads), ""))
    if not chosen or not any(heads[chosen]):
        raise ValueError("it has no sheet with a row of names")
    columns = heads[chosen]

    def records() -> Iterator[Record | BadImageError]:
        with closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as opened:
            for row in opened[chosen].iter_rows(min_row=2):
                cells = {name: _value(cell) for name, cell in zip(columns, row, strict=False) if name}
                if any(value is not None for value in cells.values()):
                    yield cells

    warning = f"Of {len(heads)} sheets one was read." if len(heads) > 1 else ""
    return TableFile(path, path.parent, [name for name in columns if name], records, warning=warning)


def _is_table(one: object) -> bool:
    return hasattr(one, "iter_rows")  # a sheet may be a chart


def _head(row: tuple[object, ...]) -> list[str]:
    return ["" if (value := _value(cell)) is None else str(value).strip() for cell in row]


def _value(cell: object) -> object:
    """What a cell shows: text, a number, None for nothing; what cannot be known is a BadImageError, raised where it is used."""
    value, form = getattr(cell, "value", None), str(getattr(cell, "number_format", "") or "")
    if getattr(cell, "data_type", "") == "e":
        return BadImageError(f"a cell of it holds the error {value}", "cells that hold an error")
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ", "seconds")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return str(value)
    if isinstance(value, int | float):
        if abs(value) >= DIGITS:
            why = f"its number {value:.0f} has more than the fifteen digits that Excel keeps; write it as text"
            return BadImageError(why, "numbers that lost digits")
        if float(value).is_integer():
            return str(int(value)).zfill(len(form.strip('"')) if ZEROS.fullmatch(form) else 0)
        return repr(value)
    return value

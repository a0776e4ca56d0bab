"""A table opened: what every kind of file of tables becomes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..images import BadImageError

Record = Mapping[str, object]


@dataclass(frozen=True)
class TableFile:
    """A table opened.

    Attributes:
        records: gives each row, or the reason why it is none.
        total: rows, where that is known. split: of all rows, from the file's name.
        class_names: of columns that hold numbers, as Hugging Face keeps them.
        folder: that its paths are relative to.
        warning: what a person should look at.
    """

    path: Path
    folder: Path
    columns: Sequence[str]
    records: Callable[[], Iterator[Record | BadImageError]]
    total: int | None = None
    split: str = ""
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    warning: str = ""

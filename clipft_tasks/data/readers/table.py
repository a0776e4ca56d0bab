"""Tables: one row an image, by its path relative to the table's folder (or `data.images_root`), or by its bytes."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from ...core.errors import ClipftError
from ...spec import DataSpec
from ..account import MISSING, Account
from ..addresses import check, is_remote, shown
from ..images import BadImageError
from ..remote import Mirror
from .base import Reader, Row, Source, as_image, refuse
from .fetched import Fetched
from .links import Root, root_of
from .stacks import images_of
from .table_files import open_table
from .table_record import Record, TableFile
from .text import captions_of, cell, split_of

# Columns as others call them, taken where the spec's own is the default and not there.
ALSO_IMAGE = ("file_name", "filepath")
ALSO_CAPTION = ("text", "title", "captions", "sentences")
LIKE_GROUP = re.compile(
    r"(patients?|subjects?|person|donor|animal|case|lesion|stud(y|ies)|series|specimen|sample|slide|lot|batch|wafer|module|part|serial|"
    r"participant|paziente|paciente|patienten?|fall|fallnummer|charge|los|bauteil|serien|werkstück|dossier|pièce|numéro|患者|ロット|症例|部品)"
    r"[-_ .]?(id|no\.?|nr\.?|number|nummer|uid|name|番号)?|pid|mrn|groups?|group[-_ ]?id",
    re.I,
)
LIKE_SPLIT = re.compile(r"splits?|folds?|subset|partition|phase|dataset[-_ ]?split|is_?(train|test|valid(ation)?)|set", re.I)


class Table(Reader):
    """A CSV, TSV, JSONL, JSON (a list, or captions as COCO has them) or Parquet table."""

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
        return cls.of_files([path], options, path.name, alone=True)

    @classmethod
    def of_files(
        cls, paths: Sequence[Path], options: DataSpec, name: str, root: Path | None = None, alone: bool = False
    ) -> Source:
        """Tables that are one source. Raises ClipftError, see `open`.

        Args:
            root: of their images; None for each table's own folder.
            alone: nothing beside them was looked at: where a table was brought, its images are still to be.
        """
        account = Account()
        parts = [_Part.open(path, options, root, account, alone) for path in paths]
        counts = [part.file.total for part in parts]
        total = None if None in counts else sum(count or 0 for count in counts)

        def rows() -> Iterator[Row]:
            for part in parts:
                yield from part.rows(account)

        return Source(rows, name=name, total=total, account=account)


class _Part:
    """One file of a table, with the columns that it has."""

    def __init__(
        self, file: TableFile, options: DataSpec, root: Path, fetched: Fetched, image: str, caption: str, label: str
    ) -> None:
        self.file, self.options, self.fetched = file, options, fetched
        self.root: Path | Root = root_of(root, options.links_root)
        self.image, self.caption, self.label = image, caption, label

    @classmethod
    def open(cls, path: Path, options: DataSpec, root: Path | None, account: Account, alone: bool) -> "_Part":
        file = open_table(path, options.image_column, options.separator)
        image = _column(file, options, "image_column", ALSO_IMAGE)
        caption = _column(file, options, "caption_column", ALSO_CAPTION)
        label = _column(file, options, "label_column", ())
        group, split = (_column(file, options, field, ()) for field in ("group_column", "split_column"))
        options = options.model_copy(update={"group_column": group, "split_column": split})
        if not image:
            raise ClipftError(
                f"table {path}",
                f"it has no column {options.image_column!r} (it has: {', '.join(map(str, file.columns))})",
                "Set data.image_column, or data.separator where these are not the columns.",
                code="source.missing_columns",
            )
        if not caption and not label:
            raise ClipftError(
                f"table {path}",
                f"it has neither captions ({options.caption_column!r}) nor labels ({options.label_column!r})",
                "Set data.caption_column or data.label_column.",
                code="source.missing_columns",
            )
        used = {"images": image, "captions": caption, "labels": label, "groups": group, "splits": split}
        there = [f"{what} from {name!r}" for what, name in used.items() if name]
        account.understand(f"Columns: {', '.join(there)}.")
        _tell_others([name for name in map(str, file.columns) if name not in used.values()], used, file, account)
        if file.warning:
            account.warn(file.warning)
        folder = Path(options.images_root).expanduser() if options.images_root else root or file.folder
        if away := is_remote(options.images_root):
            folder = Mirror(check(options.images_root)).folder
        return cls(file, options, folder, Fetched(folder, alone or away), image, caption, label)

    def rows(self, account: Account) -> Iterator[Row]:
        for number, record in enumerate(self.fetched.before(self.file.records(), self._path), 1):
            account.seen += 1
            where = f"{self.file.path.name} row {number}"
            try:
                if isinstance(record, BadImageError):
                    raise record
                found = list(self._rows(where, number, record, account))
            except Exception as error:  # an odd cell is its row's matter
                key = str(record.get(self.image, ""))[:200] if isinstance(record, dict) else where
                kind = getattr(error, "kind", "cannot be read")
                found = [Row(where, partial(refuse, str(error), kind), key if isinstance(key, str) else where, caption=where)]
            yield from found

    def _rows(self, where: str, number: int, record: Record, account: Account) -> Iterator[Row]:
        images = self._images(number, record.get(self.image), account)
        label = cell(self._named(self.label, record.get(self.label)), "label") if self.label else ""
        group = cell(record.get(self.options.group_column), "group")
        if group.casefold() in MISSING:
            account.pass_over("groups that read like a missing value (nan, none, n/a)")
            group = ""
        split = split_of(cell(record.get(self.options.split_column), "split")) or self.file.split
        captions = captions_of(record.get(self.caption)) if self.caption else [""]
        if len(images) > 1 and not group:
            group = images[0][0].rpartition("#")[0]
        for key, read in images:
            for caption in captions or [""]:
                yield Row(where, read, key, cell(caption, "caption"), label, group, split)

    def _images(self, number: int, value: object, account: Account) -> list[tuple[str, Callable[[], bytes]]]:
        """What the row's images are called, and how their bytes are read; several of a stack where all are asked for."""
        path = value.get("path") if isinstance(value, dict) else None
        data = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(data, bytes):
            name = path if isinstance(path, str) and path else f"{self.file.path.stem} row {number}"
            return [(name, partial(as_image, data))]
        name = cell(path if isinstance(value, dict) else value, "image")
        root, shown_as = self.root, name
        if "://" in name:
            shown_as, found = shown(name), self.fetched.at(name)
            if isinstance(found, partial):
                return [(shown_as, found)]
            root, name = found
        elif failure := self.fetched.failed.get(name.replace("\\", "/")):
            return [(name, partial(refuse, f"no such file: {name} ({failure.why})", "no such file"))]
        return [(shown_as + place, read) for place, read in images_of(root, name, self.options.frames, account)]

    def _path(self, record: Record | BadImageError) -> str:
        """The path or address of a record's image; "" where it holds the image itself, or names none."""
        value = record.get(self.image) if isinstance(record, Mapping) else None
        if isinstance(value, Mapping):
            value = None if value.get("bytes") else value.get("path")
        return value.strip() if isinstance(value, str) else ""

    def _named(self, column: str, value: object) -> object:
        names = self.file.class_names.get(column)
        if names and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
            return names[value]
        return value


def _tell_others(others: Sequence[str], used: Mapping[str, str], file: TableFile, account: Account) -> None:
    """Say which columns are not used; those that read like groups or splits, where none was found, are worth a look."""
    if not others:
        return
    account.understand(
        f"Columns that are not used: {', '.join(map(repr, others[:10]))}{' and others' if len(others) > 10 else ''}."
    )
    for what, pattern, field in (("groups", LIKE_GROUP, "group_column"), ("splits", LIKE_SPLIT, "split_column")):
        if used[what] not in file.columns and (found := [name for name in others if pattern.fullmatch(name.strip())]):
            account.warn(f"Column {found[0]!r} reads like {what} and is not used; is it data.{field}?")


def _column(file: TableFile, options: DataSpec, field: str, others: Sequence[str]) -> str:
    asked = str(getattr(options, field))
    if asked in file.columns:
        return asked
    default = type(options).model_fields[field].default
    for name in (asked, *(others if asked == default else ())):
        there = [column for column in file.columns if str(column).strip().casefold() == name.casefold()]
        if name and len(there) == 1:
            return there[0]
    return ""

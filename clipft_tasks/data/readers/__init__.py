"""Readers: whatever a source is, it becomes a stream of `Row`s. One file each; which there are is in `spec.reader_catalog`.

One of your own: `--source my_package.readers:MyReader:argument`, a subclass of `Reader`; or an entry point of the group
`clipft.readers`, then `--source name:argument`.
"""

import re
from pathlib import Path

from ...core.errors import ClipftError
from ...core.plugins import classes
from ...spec import DataSpec
from ...spec.reader_catalog import READERS, reader_of, sources
from .base import Reader, Row, Source, read_inside

__all__ = ["REGISTRY", "Reader", "Row", "Source", "open_source", "read_inside"]

REGISTRY = classes("reader", Reader, {name: f"{__name__}.{entry.path}" for name, entry in READERS.items()})  # type: ignore[type-abstract]  # only subclasses are made
OF_ONES_OWN = re.compile(r"(?P<reader>[A-Za-z_][\w.]*:[A-Z]\w*)(?::(?P<argument>.*))?", re.DOTALL)  # module:Class[:argument]


def open_source(source: str, options: DataSpec) -> Source:
    """Open what `source` names: a path, `reader:argument`, or `module:Class:argument`.

    Raises:
        ClipftError: the source is missing or of no known kind.
    """
    if not source:
        raise ClipftError(
            "source", "nothing was given to ingest", "Name a table, a folder, or elpv:mono.", code="source.not_given"
        )
    reader, argument = _reader_and_argument(source)
    return REGISTRY.load(reader).open(argument, options)


def _reader_and_argument(source: str) -> tuple[str, str]:
    name, colon, argument = source.partition(":")
    known = REGISTRY.names()
    if colon and name in known:
        return name, argument
    if name != "file" and (own := OF_ONES_OWN.fullmatch(source)):
        return own["reader"], own["argument"] or ""
    plain = source.removeprefix("file://")
    path = Path(plain).expanduser()
    if path.is_dir() and path.suffix.lower() != ".tar":
        return "folder", plain
    if reader := reader_of(path.suffix):
        return reader, plain
    if source in known:
        return source, ""
    why = f"it is neither an existing folder nor a table, and no reader is called so; a source is {sources()}"
    raise ClipftError(f"source {source}", why, "Check the spelling.", code="source.unknown")

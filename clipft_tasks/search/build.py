"""Making an index: every image of a source through one version's image tower."""

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import tracking
from ..contracts.search import IndexCard
from ..core.console import say
from ..core.errors import ClipftError
from ..data.images import BadImageError, square
from .index import CARD, ROWS, TABLE, VECTORS, Index, cards, folder_of, put, vectors_of

if TYPE_CHECKING:
    from ..data.readers import Row

BATCH = 32


def build(domain: str, source: str = "", version: str = "") -> Index:
    """Make the index of a version, beside those that there are; it takes its place when it is whole.

    Args:
        source: a dataset version (`industrial/v1`; "": the newest), or what a reader opens: a folder, a table, …
        version: of the model; "": the champion.
    Raises: ClipftError where there is no such version or source, or nothing in it can be read.
    """
    import torch

    from ..model import build as models
    from ..model import package

    number = version or _champion(domain)
    registered = tracking.resolve_version(f"models:/{tracking.model_name(domain)}/{number}")
    folder = tracking.fetch_package(registered)
    card, clip = package.read_card(folder), models.from_folder(folder, source=f"{registered.name}/{number}")
    assert clip.similarity is not None
    vectors = vectors_of(clip.similarity.name, clip.embed_dim)
    named, rows = _rows(domain, source)
    folder_of(domain).mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".part-", dir=folder_of(domain)))
    refused = count = 0
    try:
        with closing(sqlite3.connect(made / ROWS)) as db:
            db.execute(TABLE)
            while some := list(islice(rows, BATCH)):
                taken: list[Row] = []
                squares: list[np.ndarray] = []
                for row in some:
                    try:
                        rgb = clip.open_image(row.image_bytes()).rgb
                    except (BadImageError, OSError) as error:
                        refused += 1
                        say(f"{row.where}: passed over, {error}.")
                        continue
                    squares.append(square(rgb, card.resolutions.serve, clip.aspect))
                    taken.append(row)
                if not taken:
                    continue
                with torch.inference_mode():
                    embedded = clip.encode_images(torch.from_numpy(np.stack(squares))).numpy()
                numbers = _insert(db, taken, count)
                vectors.add(np.array(list(numbers), np.uint64), embedded[list(numbers.values())])
                count += len(taken)
            db.commit()
        if not len(vectors):
            raise ClipftError(f"source {named}", "no image of it can be read", "Check what it names.", code="search.nothing")
        vectors.save(str(made / VECTORS))
        about = IndexCard(
            domain=domain, version=number, source=named, similarity=clip.similarity.name, dimensions=clip.embed_dim,
            rows=len(vectors), refused=refused, made=time.time(),
        )  # fmt: skip
        (made / CARD).write_text(about.model_dump_json(indent=1))
        return Index.open(put(about, made))
    finally:
        shutil.rmtree(made, ignore_errors=True)


def refresh(domain: str, version: str = "") -> Index | None:
    """Make the index of a version from the source of the domain's newest index, unless there is one already.

    Returns: the index; None where the domain has none.
    """
    known = cards(domain)
    if not known:
        return None
    number = version or _champion(domain)
    if any(card.version == number for card in known):
        return Index.open(folder_of(domain, number))
    return build(domain, known[0].source, number)


def _insert(db: sqlite3.Connection, rows: "Sequence[Row]", first: int) -> dict[int, int]:
    """Write rows; their numbers, and which of the rows each is. Of two rows with one id the first counts."""
    numbers = {}
    for n, row in enumerate(rows):
        done = db.execute(
            "insert or ignore into row (number, id, label, caption) values (?, ?, ?, ?)",
            (first + n, row.key, row.label, row.caption),
        )
        if done.rowcount:
            numbers[first + n] = n
    return numbers


def _rows(domain: str, source: str) -> "tuple[str, Iterator[Row]]":
    """What a source is called, and its rows."""
    from ..data import versioning
    from ..data.readers import open_source
    from ..data.readers.version_rows import rows_again
    from ..spec import DataSpec

    if not source or versioning.TAG.match(source):
        found = versioning.find(source, domain)
        return found.tag, rows_again(versioning.fetch(found), splits=True)
    path = Path(source).expanduser()
    named = str(path.resolve()) if path.exists() else source
    return named, open_source(named, DataSpec()).rows()


def _champion(domain: str) -> str:
    found = tracking.champions().get(domain)
    if not found:
        raise ClipftError(
            f"the champion of {domain}", "there is none", "Name a version: --version 1.", code="search.no_champion"
        )
    return found

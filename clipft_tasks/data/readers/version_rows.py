"""The rows of a dataset version as a source's rows: what a re-split and a re-adaptation read again."""

from collections.abc import Iterator
from functools import partial

from ..versioning import Dataset
from .base import Row


def rows_again(dataset: Dataset, *, splits: bool) -> Iterator[Row]:
    """Every row of a fetched version. splits: whether each keeps the split that it has."""
    for row in dataset.frame.itertuples():
        yield Row(
            where=f"{dataset.version.tag} {row.name}",
            image_bytes=partial(dataset.image_bytes, row),
            key=str(row.name),
            caption=str(row.caption),
            label=str(row.label),
            group=str(row.group),
            split=str(row.split) if splits else "",
        )

"""The rows of a dataset version as a source's rows: what a re-split and a re-adaptation read again."""

from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType

from ..versioning import Dataset
from .base import Row


def rows_again(dataset: Dataset, *, splits: bool, kin: Mapping[str, tuple[str, ...]] = MappingProxyType({})) -> Iterator[Row]:
    """Every row of a fetched version. splits: whether each keeps the split that it has. kin: of rows, by sha256."""
    for row in dataset.frame.itertuples():
        yield Row(
            where=f"{dataset.version.tag} {row.name}",
            image_bytes=partial(dataset.image_bytes, row),
            key=str(row.name),
            caption=str(row.caption),
            label=str(row.label),
            group=str(row.group),
            split=str(row.split) if splits else "",
            kin=kin.get(str(row.sha256), ()),
        )

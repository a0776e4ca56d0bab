"""Parts of the test rows that are looked at by themselves: better on the whole must not mean worse on a part."""

import numpy as np

from ..data.versioning import Dataset
from ..domains import Domain

FEWEST = 10  # rows, below which an interval says nothing
MOST = 8  # values of a column, the commonest first


def slices(dataset: Dataset, domain: Domain) -> dict[str, np.ndarray]:
    """Row numbers of the test split by slice.

    `old` and `new` where captures made the data set grow; then `column=value` for the domain's columns, where a column has
    at least two values with ten rows; `size=small` and `size=large` split at the median of the images' shorter sides;
    `class=unseen` has the rows whose class no training row has.
    """
    test = dataset.split("test")
    found: dict[str, np.ndarray] = {}
    if dataset.version.card.captured:
        is_new = dataset.added(test)
        found |= {"old": ~is_new, "new": is_new}
    seen = set(dataset.split("train")["label"])
    unseen = ~test["label"].isin(seen | {""}).to_numpy()
    if not unseen.all():
        found["class=unseen"] = unseen
    for column in domain.slices:
        if column == "size":
            side = test[["width", "height"]].min(axis=1)
            values = np.where(side < side.median(), "small", "large")
        else:
            values = test[column].to_numpy(dtype=str)
        names, counts = np.unique(values, return_counts=True)
        common = [n for n, c in sorted(zip(names, counts, strict=True), key=lambda nc: -nc[1]) if n and c >= FEWEST]
        if len(names) > 1:
            found |= {f"{column}={name}": values == name for name in common[:MOST]}
    return {name: np.flatnonzero(rows) for name, rows in found.items() if rows.any()}

"""Small shards put together: versions that add a few images each would name ever more of them.

A shard is small where a version still uses less than `SMALL_BYTES` of it, because it came with little or its images are gone. When a new version
would name more than `MOST_SMALL` of them, their images are packed anew. Versions before keep their shards.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from . import shards

SMALL_BYTES, MOST_SMALL = shards.TARGET_BYTES // 8, 16


def small(rows: pd.DataFrame) -> list[str]:
    """The shards whose images should be packed anew; none where they are not many.

    Args:
        rows: of a manifest.
    """
    used = rows.drop_duplicates(["shard", "offset"]).groupby("shard")["length"].sum()
    found: list[str] = sorted(used.index[used < SMALL_BYTES])
    return found if len(found) > MOST_SMALL else []


def packed(rows: pd.DataFrame, names: Sequence[str], folders: Sequence[Path], into: Path) -> pd.DataFrame:
    """The rows with the places that their images have once those of some shards are packed together.

    Args:
        folders: the first that has a shard is read. into: for new ones.
    Raises: ClipftError for a shard that is nowhere or damaged.
    """
    images = rows[rows["shard"].isin(set(names))].sort_values(["shard", "offset"]).drop_duplicates("sha256")

    def entries() -> Iterator[shards.Entry]:
        for row in images.itertuples():
            place = shards.Place(row.shard, int(row.offset), int(row.length))
            folder = next((f for f in folders if (f / row.shard).is_file()), folders[-1])
            yield shards.Entry(row.sha256, shards.extension(row.format), shards.read(folder, place))

    places = dict(shards.pack(entries(), into))
    moved = rows["shard"].isin(set(names))
    new = [places[sha256] for sha256 in rows.loc[moved, "sha256"]]
    out = rows.copy()
    for column in ("shard", "offset", "length"):
        out.loc[moved, column] = [getattr(place, column) for place in new]
    return out

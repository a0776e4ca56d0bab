"""What the data report shows of the images: some of each class, near-duplicates, odd ones, those left out. Never more than fit a page."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from . import shards
from .images import open_image, thumbnail
from .splits import SPLITS
from .versioning import Packed

SIDE = 144  # of an image, pixels
CLASSES, PER_CLASS = 24, 8  # the commonest, and the rarest half as many again
GROUPS, PER_GROUP = 20, 6  # of near-duplicates
ODD, LEFT_OUT = 24, 24
FAR = 6.0  # robust standard deviations from the median, beyond which an image is odd
FAR_FROM_ALL, LEAST_SPREAD = 4.0, 0.01  # likewise, of embeddings; 1 less a cosine
FEW_GROUPS = 5  # of a class: intervals need more
LONGEST = 200  # letters of a caption


@dataclass(frozen=True)
class Shown:
    """An image on the page: `src` is a data URL, "" where its bytes are not at hand; `text` what is said of it."""

    src: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Strip:
    """Images under a heading, of `of` that there are."""

    title: str
    of: int
    images: list[Shown]
    note: str = ""

    @property
    def count(self) -> str:
        return f"showing {len(self.images):,} of {self.of:,}"


@dataclass(frozen=True)
class Gallery:
    """All of them; `classes` of `class_count`, `alike` of `alike_count` groups."""

    classes: list[Strip]
    class_count: int
    alike: list[Strip]
    alike_count: int
    odd: Strip
    left_out: Strip
    far: Strip


@dataclass(frozen=True)
class Thumbnails:
    """Small copies of rows' images, of shards in the first of `folders` that has them; `asked` counts the images by shard."""

    folders: list[Path]
    gray_bits: int
    asked: Counter[str] = field(default_factory=Counter)

    def of(self, row: Packed) -> str:
        self.asked[row.shard] += 1
        for folder in self.folders:
            if (folder / row.shard).is_file():
                data = shards.read(folder, shards.Place(row.shard, int(row.offset), int(row.length)))
                return thumbnail(open_image(data, gray_bits=self.gray_bits).rgb, SIDE)
        return ""

    def shown(self, rows: pd.DataFrame, notes: list[str] | None = None) -> list[Shown]:
        """One a row; `notes` stand under them in place of the splits."""
        said = notes if notes is not None else rows["split"].tolist()
        return [
            Shown(self.of(cast(Packed, row)), str(row.caption)[:LONGEST], note)
            for row, note in zip(rows.itertuples(), said, strict=True)
        ]


def gallery(frame: pd.DataFrame, left_out: pd.DataFrame, images: Thumbnails, far: pd.Series | None = None) -> Gallery:
    """Choose and draw.

    Args:
        frame: from `expectations.describe`: the manifest, and `alike`, the group of near-duplicates of each row.
        left_out: rows that were read and are in no split, with `reason`.
        far: of rows that a model embedded, by index: how far each is from those most like it.
    """
    counts = frame["label"].value_counts()
    names = [*counts.index[:CLASSES], *counts.index[CLASSES:][-CLASSES // 2 :]]
    different = frame[~frame["sha256"].duplicated()]
    several = different[different.groupby("alike")["sha256"].transform("size") > 1]
    groups = several["alike"].value_counts()
    chosen = left_out.head(LEFT_OUT)
    return Gallery(
        classes=[_of_class(str(name), frame[frame["label"] == name], images) for name in names],
        class_count=len(counts),
        alike=[_alike(several[several["alike"] == group], images) for group in groups.index[:GROUPS]],
        alike_count=len(groups),
        odd=_odd(different, images),
        left_out=Strip("Left out", len(left_out), images.shown(chosen, chosen["reason"].tolist())),
        far=_far_from_all(frame, pd.Series(dtype=float) if far is None else far, images),
    )


def embeddable(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """A row of each image, or of as many as may be embedded: always the same, whatever order they came in."""
    return frame[~frame["sha256"].duplicated()].sort_values("sha256").head(most)


def _far_from_all(frame: pd.DataFrame, far: pd.Series, images: Thumbnails) -> Strip:
    """Images that a model sees as unlike all others, the farthest first."""
    spread = 1.4826 * float((far - far.median()).abs().median()) if len(far) else 0.0
    away = (far - far.median()) / max(spread, LEAST_SPREAD)
    found = away[away > FAR_FROM_ALL].sort_values(ascending=False, kind="stable")
    chosen = frame.loc[found.index[:ODD]]
    said = [f"{label or '(no label)'} · {far[i]:.2f} from the nearest" for i, label in chosen["label"].items()]
    return Strip("Far from all others", len(found), images.shown(chosen, said))


def _of_class(name: str, rows: pd.DataFrame, images: Thumbnails) -> Strip:
    """Some rows of a class: of each split in turn, of as many groups as there are."""
    turn = rows.groupby("split").cumcount() + 1000 * rows.groupby(["split", "group"]).cumcount() * (rows["group"] != "")
    order = rows.assign(turn=turn, at=rows["split"].map({split: i for i, split in enumerate(SPLITS)}))
    counts = rows["split"].value_counts()
    note = ", ".join(f"{split} {counts.get(split, 0):,}" for split in SPLITS)
    return Strip(name, len(rows), images.shown(order.sort_values(["turn", "at"]).head(PER_CLASS)), note)


def _alike(rows: pd.DataFrame, images: Thumbnails) -> Strip:
    labels = rows["label"].nunique()
    note = f"{labels} classes: is one of them wrong?" if labels > 1 else ""
    shown = rows.head(PER_GROUP)
    said = [f"{label or '(no label)'} · {name}" for label, name in zip(shown["label"], shown["name"], strict=True)]
    return Strip(f"{len(rows):,} images", len(rows), images.shown(shown, said), note)


def _odd(rows: pd.DataFrame, images: Thumbnails) -> Strip:
    """Images far from all others in what is known of them without decoding: size, shape, bytes a pixel (blank, noise)."""
    pixels = (rows["width"] * rows["height"]).clip(lower=1)
    density = np.log((rows["length"].clip(lower=1)) / pixels)
    measured = {
        "bytes a pixel": density - density.groupby(rows["format"]).transform("median"),
        "size": np.log(pixels),
        "shape": np.log(rows["width"].clip(lower=1) / rows["height"].clip(lower=1)),
    }
    found = pd.DataFrame({name: _far(values) for name, values in measured.items()}, index=rows.index)
    most = found.max(axis=1)
    odd = most[most > FAR].sort_values(ascending=False, kind="stable")
    chosen = rows.loc[odd.index[:ODD]]
    why = [
        f"unusual {found.loc[i].idxmax()}: {r['width']}x{r['height']}, {r['length'] / max(1, r['width'] * r['height']):.2f} bytes a pixel"
        for i, r in chosen.iterrows()
    ]
    return Strip("Odd images", len(odd), images.shown(chosen, why))


def _far(values: pd.Series) -> pd.Series:
    """How far from the median, in standard deviations of a normal distribution with the same quartiles; at least 2% count as one."""
    apart = (values - values.median()).abs()
    return apart / max(1.4826 * float(apart.median()), 0.02)


def few_groups(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Each class with too few groups for intervals to say much, and a sentence on it."""
    named = frame[(frame["label"] != "") & (frame["group"] != "")]
    found = []
    for label, rows in named.groupby("label"):
        groups, test = rows["group"].nunique(), rows.loc[rows["split"] == "test", "group"].nunique()
        if groups < FEW_GROUPS or test < 2:
            said = f"{groups} groups in {len(rows):,} rows, {test} of them in test; what is measured of it is uncertain."
            found.append((str(label), said))
    return found

"""What differs between two dataset versions, image by image: from their manifests, without an image."""

import itertools

import numpy as np
import pandas as pd

from ..contracts.dataset import ChangedImages, DatasetDiff, Range
from . import splits, versioning

EXAMPLES = 20  # names of each kind of change


def compare(old: versioning.Version, new: versioning.Version) -> DatasetDiff:
    """Compare two versions. An image is the same where its bytes are. Raises as `versioning.fetch`."""
    return compare_rows(
        versioning.read_manifest(old), versioning.read_manifest(new), old.tag, new.tag, old.card.major == new.card.major
    )


def compare_rows(before: pd.DataFrame, after: pd.DataFrame, old: str, new: str, comparable: bool) -> DatasetDiff:
    """The same of two manifests."""
    size = len(before)
    image = _numbered(before, after, "sha256")
    there, here = np.unique(image[:size]), np.unique(image[size:])
    both = np.intersect1d(there, here)
    first = np.unique(image[::-1], return_index=True)[1]  # a row of each image, of the new version where that holds it
    names = pd.concat([before["name"], after["name"]]).to_numpy()[::-1][first]

    def changed(images: np.ndarray) -> ChangedImages:
        return ChangedImages(count=len(images), examples=sorted(names[images].tolist())[:EXAMPLES])

    def said_otherwise(column: str) -> np.ndarray:
        """Images in both versions of which other things are said; several rows of one image count together."""
        said = _numbered(before, after, column)
        kinds = int(said.max(initial=0)) + 1
        pairs = image * kinds + said
        old_pairs, new_pairs = (pairs[part][np.isin(image[part], both)] for part in (slice(size), slice(size, None)))
        return np.unique(np.setxor1d(old_pairs, new_pairs) // kinds)

    split = pd.concat([before["split"], after["split"]]).to_numpy()
    where = {name: [np.unique(image[p][split[p] == name]) for p in (slice(size), slice(size, None))] for name in splits.SPLITS}
    moves = {(a, b): np.intersect1d(where[a][0], where[b][1]) for a, b in itertools.permutations(splits.SPLITS, 2)}
    return DatasetDiff(
        old=old,
        new=new,
        comparable=comparable,
        images=(len(there), len(here)),
        rows=(len(before), len(after)),
        added=changed(np.setdiff1d(here, there)),
        removed=changed(np.setdiff1d(there, here)),
        relabeled=changed(said_otherwise("label")),
        recaptioned=changed(said_otherwise("caption")),
        regrouped=changed(said_otherwise("group")),
        moved=changed(np.unique(np.concatenate(list(moves.values())))),
        moves={f"{a} to {b}": len(images) for (a, b), images in moves.items() if len(images)},
        counts={s: (int((before["split"] == s).sum()), int((after["split"] == s).sum())) for s in splits.SPLITS},
        classes=_classes(before, after),
        shorter_side=(_range(before), _range(after)),
    )


def _numbered(before: pd.DataFrame, after: pd.DataFrame, column: str) -> np.ndarray:
    """A number for each value of a column, over the rows of both (n,)."""
    numbers: np.ndarray = pd.factorize(pd.concat([before[column], after[column]]))[0].astype(np.int64)
    return numbers


def _classes(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Rows of each class before and after, of those where they differ."""
    counts = [frame.loc[frame["label"] != "", "label"].value_counts() for frame in (before, after)]
    table = pd.concat(counts, axis=1, keys=["old", "new"]).fillna(0).astype(int).sort_index()
    return {str(name): (int(row.old), int(row.new)) for name, row in table.iterrows() if row.old != row.new}


def _range(frame: pd.DataFrame) -> Range:
    side = frame[["width", "height"]].min(axis=1)
    low, middle, high = (int(pick(side)) if len(side) else 0 for pick in (pd.Series.min, pd.Series.median, pd.Series.max))
    return Range(low=low, median=middle, high=high)


def _arrow(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,} -> {pair[1]:,}"


def as_text(diff: DatasetDiff) -> str:
    """The difference for a person to read."""
    lines = [
        f"{diff.old} -> {diff.new}: {diff.images[0]:,} -> {diff.images[1]:,} images, {diff.rows[0]:,} -> {diff.rows[1]:,} rows"
    ]
    if not diff.comparable:
        lines.append("  of different majors: test rows of one may be training rows of the other; scores are not comparable")
    kinds: list[tuple[str, ChangedImages]] = [
        ("added", diff.added), ("removed", diff.removed), ("other labels", diff.relabeled), ("other captions", diff.recaptioned),
        ("other groups", diff.regrouped), ("other splits", diff.moved),
    ]  # fmt: skip
    for title, found in kinds:
        more = f" and {found.count - 3:,} more" if found.count > 3 else ""
        lines.append(f"  {title}: {found.count:,}" + (f" ({', '.join(found.examples[:3])}{more})" if found.count else ""))
    lines += [f"    {title}: {count:,}" for title, count in diff.moves.items()]
    lines.append("  rows by split: " + ", ".join(f"{name} {_arrow(pair)}" for name, pair in diff.counts.items()))
    lines += [f"  class {name}: {_arrow(pair)} rows" for name, pair in diff.classes.items()]
    sides = [f"{r.low} to {r.high}, median {r.median}" for r in diff.shorter_side]
    lines.append(
        f"  shorter side, pixels: {sides[0]} -> {sides[1]}" if sides[0] != sides[1] else f"  shorter side, pixels: {sides[0]}"
    )
    return "\n".join(lines)

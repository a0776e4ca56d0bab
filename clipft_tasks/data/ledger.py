"""The split ledger: every image that any version of a domain ever held, its split, and what it is known again by.

An image is known again by its bytes (sha256), by how it looks (perceptual hash), and by its group. Whatever is known again in
one of these ways keeps the split that it had, or is left out: what was trained on is never tested on later, nor the other way
round. `clipft resplit` begins a ledger anew, and with it a new major version.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pandas as pd

from ..domains import Augment
from . import resemblance, splits
from .groups import KIN

COLUMNS = ("sha256", "phash", "group", "split")
BEYOND = 1.5  # times the limit of near-duplicates
STRADDLES = "it resembles, or shares a group with, rows of two different splits"
OTHER_SIDE = "it resembles, or shares a group with, rows of {there}, and the source puts it into {said}"
PARTED = "its split is {own}; what it resembles, or shares a group with, is {there}. `clipft resplit {domain}` splits anew"


@dataclass(frozen=True)
class Ledger:
    """What a domain's versions ever held, each image once for every group that it was in: a frame of `COLUMNS`."""

    frame: pd.DataFrame

    @classmethod
    def empty(cls) -> Self:
        return cls(pd.DataFrame({column: pd.Series(dtype="str") for column in COLUMNS}))

    @classmethod
    def upgraded(cls, before: pd.DataFrame, manifests: Sequence[pd.DataFrame]) -> Self:
        """The ledger of a release that knew images by their bytes only, made whole from the manifests of all versions.

        Args:
            before: sha256 and split. manifests: oldest first; they also have the images that two runs at once left out of it.
        """
        held = pd.concat([frame[list(COLUMNS)] for frame in manifests], ignore_index=True)
        own = dict(zip(held["sha256"][::-1], held["split"][::-1], strict=True))  # the first version's
        own |= dict(zip(before["sha256"], before["split"], strict=True))
        lost = before[~before["sha256"].isin(held["sha256"])]
        return cls.empty().joined(pd.concat([held.assign(split=held["sha256"].map(own)), lost]).fillna(""))

    def joined(self, rows: pd.DataFrame) -> Self:
        """This ledger with more rows, in an order that does not depend on who came first."""
        both = pd.concat([self.frame, rows[list(COLUMNS)]]).astype("str").drop_duplicates()
        return type(self)(both.sort_values(list(COLUMNS), ignore_index=True))

    def joined_kin(self, rows: pd.DataFrame) -> Self:
        """This ledger with what else rows belong to, as groups of theirs. Rows that were staged by an earlier release say none."""
        if "kin" not in rows:
            return self
        each = rows.assign(group=rows["kin"].str.split("\n")).explode("group")
        each = each[each["group"].fillna("") != ""]
        return self.joined(each.assign(group=KIN + each["group"].astype("str"))) if len(each) else self

    def kin(self) -> dict[str, tuple[str, ...]]:
        """What else images belong to, by sha256."""
        own = self.frame[self.frame["group"].str.startswith(KIN)]
        found: dict[str, tuple[str, ...]] = {}
        for sha256, name in zip(own["sha256"], own["group"], strict=True):
            found[sha256] = (*found.get(sha256, ()), name.removeprefix(KIN))
        return found

    def beside(self, rows: pd.DataFrame) -> pd.DataFrame:
        """What it knows beside some rows: of images, groups and splits that are none of theirs."""
        own = rows[list(COLUMNS)].astype("str").drop_duplicates()
        both = pd.concat([self.frame[list(COLUMNS)].astype("str").drop_duplicates(), own, own])
        return both.drop_duplicates(keep=False).reset_index(drop=True)

    @cached_property
    def splits(self) -> dict[str, str]:
        """The split of each image, by sha256."""
        return dict(zip(*(self.frame[name].to_numpy(object) for name in ("sha256", "split")), strict=True))


@dataclass(frozen=True)
class Likeness:
    """Which images count as near-duplicates: see `splits.near_duplicates`."""

    bits: int
    augment: Augment | None = None


@dataclass(frozen=True)
class Placement:
    """Which split each row gets.

    Attributes:
        splits: by row; "" for one that is left out.
        reasons: why, of those.
        overruled: rows whose source names another split than the ledger's, which they keep.
        parted: of the rows left out, those that earlier versions, or the source itself, have on two sides.
    """

    splits: list[str]
    reasons: dict[int, str]
    overruled: int
    parted: int


def place(
    rows: pd.DataFrame, ledger: Ledger, alike: Likeness, shares: dict[str, float], seed: int, domain: str = "DOMAIN"
) -> Placement:
    """Give each row a split that contradicts neither the ledger nor another row.

    A row that the ledger knows by its bytes keeps its split, whatever the source says now. One that is known by its look or its
    group takes theirs. What is left takes the source's split, or that of an image that it nearly resembles, or is dealt class
    by class. Left out are rows that belong to two
    sides at once: new ones, and of old ones (a group that became known later, say) those whose loss costs their split least.

    Args:
        rows: sha256, phash, group, label, and split: the source's own or ""; also kin, where a reader knows of any.
        shares, seed: as in `splits.assign`.
    """
    rows, ledger = rows.astype(object), Ledger(ledger.frame.astype(object))  # which is quicker to go through one by one
    known = pd.concat([rows[["sha256", "phash", "group"]], ledger.frame[["sha256", "phash", "group"]]], ignore_index=True)
    known["kin"] = [*rows.get("kin", [""] * len(rows)), *[""] * len(ledger.frame)]
    component = _components(known, alike)
    here, held = component[: len(rows)], defaultdict(set)
    for part, split in zip(component[len(rows) :].tolist(), ledger.frame["split"], strict=True):
        held[part].add(split)

    said_of: dict[str, str] = {}  # of an image that the source puts into several splits: test before val before train
    for sha256, said in zip(rows["sha256"], rows["split"], strict=True):
        said_of[sha256] = max(said_of.get(sha256, ""), said, key=("", *splits.SPLITS).index)

    likely = _likely(rows, ledger, here, held, alike.bits)
    also, deal = _resembling(known, component, here, held, rows["split"].tolist(), alike)
    likely = also | likely
    fixed, reasons, overruled = [], {}, 0
    for i, (sha256, named, part) in enumerate(zip(rows["sha256"], rows["split"], here.tolist(), strict=True)):
        own, said, there = ledger.splits.get(sha256, ""), said_of[sha256], held[part]
        if not own and len(there) > 1:
            reasons[i] = STRADDLES
        elif not own and there and said and said not in there:
            reasons[i] = OTHER_SIDE.format(there=next(iter(there)), said=said)
        fixed.append(own or ("" if i in reasons else next(iter(there), said or likely.get(part, ""))))
        overruled += bool(named and fixed[i] and named != fixed[i])

    parted = _parted(rows, here, fixed, alike, domain)
    reasons |= parted
    still = _divided(here, ["" if i in parted else split for i, split in enumerate(fixed)])
    reasons |= {i: STRADDLES for i, part in enumerate(here.tolist()) if part in still and not fixed[i]}
    kept = [i for i in range(len(rows)) if i not in reasons]
    dealt = splits.assign(deal[kept], rows["label"].iloc[kept].tolist(), [fixed[i] for i in kept], shares, seed).splits
    placed = dict(zip(kept, dealt, strict=True))
    return Placement([placed.get(i, "") for i in range(len(rows))], reasons, overruled, len(parted))


def _likely(
    rows: pd.DataFrame, ledger: Ledger, component: np.ndarray, held: Mapping[int, set[str]], bits: int
) -> dict[int, str]:
    """Where components that the ledger does not hold belong, if the nearest image that it holds is not far beyond the limit.

    An image that was compressed hard may differ from itself by more bits than two images that count as near-duplicates. To
    follow the nearest parts nothing and joins nothing; where it is another image after all, its split is as good as any.
    """
    parts = component.tolist()
    asked = [i for i, (part, said) in enumerate(zip(parts, rows["split"], strict=True)) if not said and not held.get(part)]
    known = ledger.frame[ledger.frame["phash"] != ""]
    found: dict[int, tuple[int, str]] = {}
    near = splits.nearest(rows["phash"].iloc[asked].tolist(), known["phash"].tolist(), int(BEYOND * bits))
    for i, (which, apart) in zip(asked, near, strict=True):
        if which >= 0:
            found[parts[i]] = min(found.get(parts[i], (apart + 1, "")), (apart, known["split"].iloc[which]))
    return {part: split for part, (_, split) in found.items()}


def _resembling(
    known: pd.DataFrame,
    component: np.ndarray,
    here: np.ndarray,
    held: Mapping[int, set[str]],
    said: Sequence[str],
    alike: Likeness,
) -> tuple[dict[int, str], np.ndarray]:
    """What follows of images that resemble others beyond the limit, of rows that are free and in no group.

    Args:
        known: the rows, and then those of the ledger. component: of each; here: of the rows. said: the source's own splits.
    Returns: where components belong that resemble what is in a split already; and the components to be dealt as one.
    """
    taken = {part: split for part, split in zip(here.tolist(), said, strict=True) if split}
    taken |= {part: min(there) for part, there in held.items() if len(there) == 1}
    closed = taken.keys() | held.keys() | set(here[known["group"].iloc[: len(here)] != ""].tolist())
    first = dict(zip(known["phash"][::-1], known.index[::-1], strict=True))  # of each look
    first.pop("", None)
    place = list(first.values())
    asked = [i for i, at in enumerate(place) if at < len(here) and here[at] not in closed]
    pairs = resemblance.resembling([*first], component[place], asked, alike.augment)
    likely: dict[int, str] = {}
    edges = []
    for i, j in pairs:
        one, other = int(component[place[i]]), int(component[place[j]])
        if other in taken:
            likely.setdefault(one, taken[other])
        elif other not in held:
            edges.append((one, other))
    edges = [(one, other) for one, other in edges if one not in likely and other not in likely]
    return likely, splits.components(int(component.max(initial=-1)) + 1, edges, [])[here]


def _components(rows: pd.DataFrame, alike: Likeness) -> np.ndarray:
    """Connected components (n,) of rows joined by bytes, look, group or kin."""
    hashes = [phash for phash in rows["phash"].unique() if phash]
    first = {phash: i for i, phash in reversed(list(enumerate(rows["phash"])))}
    pairs = [(first[hashes[a]], first[hashes[b]]) for a, b in splits.near_duplicates(hashes, alike.bits, alike.augment)]
    pairs += [(first[phash], i) for i, phash in enumerate(rows["phash"]) if phash and first[phash] != i]
    image: dict[str, int] = {}
    pairs += [(j, i) for i, sha256 in enumerate(rows["sha256"]) if (j := image.setdefault(sha256, i)) != i]
    groups = rows["group"].tolist()
    if "kin" not in rows or not any(rows["kin"]):
        return splits.components(len(rows), pairs, groups)
    # A row for each further name of a row, joined to it; they are not asked about.
    more = [(i, name) for i, names in enumerate(rows["kin"]) if names for name in names.split("\n")]
    pairs += [(i, len(rows) + place) for place, (i, _) in enumerate(more)]
    return splits.components(len(rows) + len(more), pairs, groups + [name for _, name in more])[: len(rows)]


def _divided(component: np.ndarray, fixed: Sequence[str]) -> dict[int, Counter[str]]:
    """Components with rows fixed to different splits, and how many to each."""
    there: dict[int, Counter[str]] = defaultdict(Counter)
    for part, split in zip(component.tolist(), fixed, strict=True):
        if split:
            there[part][split] += 1
    return {part: found for part, found in there.items() if len(found) > 1}


def _parted(rows: pd.DataFrame, component: np.ndarray, fixed: list[str], alike: Likeness, domain: str) -> dict[int, str]:
    """The fixed rows to leave out so that nothing that belongs together stands in two splits, with the reasons."""
    divided = _divided(component, fixed)
    if not divided:
        return {}
    suspects = np.array([i for i, part in enumerate(component.tolist()) if part in divided and fixed[i]])
    own = [fixed[i] for i in suspects]
    part_of = _components(rows.iloc[suspects].reset_index(drop=True), alike)  # without the rows between them
    total, kept = Counter(fixed), {}
    for part, there in _divided(part_of, own).items():

        def lost(keep: str, there: Counter[str] = there) -> float:
            return sum(count / total[split] for split, count in there.items() if split != keep)

        kept[part] = min((split for split in reversed(splits.SPLITS) if split in there), key=lost)
    return {
        i: PARTED.format(own=split, there=kept[part], domain=domain)
        for i, split, part in zip(suspects.tolist(), own, part_of.tolist(), strict=True)
        if split != kept.get(part, split)
    }

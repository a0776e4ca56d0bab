"""The split ledger: every image that any version of a domain ever held, its split, and what it is known again by.

An image is known again by its bytes (sha256), by how it looks (perceptual hash), and by its group. Whatever is known again in
one of these ways keeps the split that it had, or is left out: what was trained on is never tested on later, nor the other way
round. `clipft resplit` begins a ledger anew, and with it a new major version.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
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
        some = rows[rows["kin"].fillna("") != ""]
        each = some.assign(group=some["kin"].str.split("\n")).explode("group")
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
    here, at = component[: len(rows)], component[len(rows) :]
    held = np.zeros(int(component.max(initial=-1)) + 1, np.uint8)
    in_ledger = splits.held(at, splits.numbered(ledger.frame["split"]))
    held[: len(in_ledger)] = in_ledger

    image, _ = rows["sha256"].factorize()
    named = splits.numbered(rows["split"])
    most = np.zeros(int(image.max(initial=-1)) + 1, np.int8)
    np.maximum.at(most, image, named)
    said = most[image]  # of an image that the source puts into several splits: test before val before train

    likely = np.zeros(len(held), np.int8)
    near = _likely(rows, ledger, here, held, alike.bits)
    also, deal = _resembling(known, component, here, held, named, alike)
    for part, split in (also | near).items():
        likely[part] = splits.NUMBER[split]
    own = splits.numbered(rows["sha256"].map(ledger.splits).fillna(""))
    there = splits.ONLY[held][here]
    straddles = (own == 0) & (held[here] > 0) & (there == 0)
    other_side = (own == 0) & (there > 0) & (said > 0) & (said != there)
    reasons = dict.fromkeys(np.flatnonzero(straddles).tolist(), STRADDLES)
    names = ("", *splits.SPLITS)
    reasons |= {i: OTHER_SIDE.format(there=names[there[i]], said=names[said[i]]) for i in np.flatnonzero(other_side).tolist()}
    fixed = np.select([own > 0, straddles | other_side, there > 0, said > 0], [own, 0, there, said], likely[here]).astype(
        np.int8
    )
    overruled = int(((named > 0) & (fixed > 0) & (named != fixed)).sum())

    parted = _parted(rows, here, fixed, alike, domain)
    reasons |= parted
    left = fixed.copy()
    left[list(parted)] = 0
    still = splits.held(here, left)
    divided = (still & (still - 1)) > 0
    reasons |= dict.fromkeys(np.flatnonzero(divided[here] & (fixed == 0)).tolist(), STRADDLES)
    is_kept = np.ones(len(rows), bool)
    is_kept[list(reasons)] = False
    kept = np.flatnonzero(is_kept)
    of_kept = [names[number] for number in fixed[kept].tolist()]
    dealt = splits.assign(deal[kept], rows["label"].iloc[kept].tolist(), of_kept, shares, seed).splits
    placed = np.full(len(rows), "", object)
    placed[kept] = dealt
    return Placement(placed.tolist(), reasons, overruled, len(parted))


def _likely(rows: pd.DataFrame, ledger: Ledger, component: np.ndarray, held: np.ndarray, bits: int) -> dict[int, str]:
    """Where components that the ledger does not hold belong, if the nearest image that it holds is not far beyond the limit.

    An image that was compressed hard may differ from itself by more bits than two images that count as near-duplicates. To
    follow the nearest parts nothing and joins nothing; where it is another image after all, its split is as good as any.
    """
    known = ledger.frame[ledger.frame["phash"] != ""]
    if not len(known):
        return {}
    asked = np.flatnonzero((rows["split"] == "").to_numpy(bool) & (held[component] == 0))
    found: dict[int, tuple[int, str]] = {}
    near = splits.nearest(rows["phash"].iloc[asked].tolist(), known["phash"].tolist(), int(BEYOND * bits))
    for part, (which, apart) in zip(component[asked].tolist(), near, strict=True):
        if which >= 0:
            found[part] = min(found.get(part, (apart + 1, "")), (apart, known["split"].iloc[which]))
    return {part: split for part, (_, split) in found.items()}


def _resembling(
    known: pd.DataFrame, component: np.ndarray, here: np.ndarray, held: np.ndarray, said: np.ndarray, alike: Likeness
) -> tuple[dict[int, str], np.ndarray]:
    """What follows of images that resemble others beyond the limit, of rows that are free and in no group.

    Args:
        known: the rows, and then those of the ledger. component: of each; here: of the rows.
        held: the ledger's splits by component (splits.held). said: the source's own splits (splits.numbered).
    Returns: where components belong that resemble what is in a split already; and the components to be dealt as one.
    """
    taken = np.zeros(len(held), np.int8)
    taken[here[said > 0]] = said[said > 0]  # of several, the last row's
    taken = np.where(splits.ONLY[held] > 0, splits.ONLY[held], taken)
    closed = (taken > 0) | (held > 0)
    closed[here[(known["group"].iloc[: len(here)] != "").to_numpy(bool)]] = True
    codes, looks = known["phash"].factorize()
    order = np.argsort(np.unique(codes[::-1], return_index=True)[1])  # the last first, as ever: ties follow it
    order = order[looks[order] != ""]
    place, looks = np.unique(codes, return_index=True)[1][order], looks[order]
    asked = np.flatnonzero(place < len(here))
    asked = asked[~closed[component[place[asked]]]]
    pairs = resemblance.resembling(looks.tolist(), component[place], asked.tolist(), alike.augment)
    likely: dict[int, str] = {}
    edges = []
    for i, j in pairs:
        one, other = int(component[place[i]]), int(component[place[j]])
        if taken[other]:
            likely.setdefault(one, splits.SPLITS[taken[other] - 1])
        elif not held[other]:
            edges.append((one, other))
    edges = [(one, other) for one, other in edges if one not in likely and other not in likely]
    return likely, splits.components(len(held), edges, [])[here]


def _components(rows: pd.DataFrame, alike: Likeness) -> np.ndarray:
    """Connected components (n,) of rows joined by bytes, look, group or kin."""
    codes, looks = rows["phash"].factorize()
    first = np.unique(codes, return_index=True)[1]
    first, looks = first[looks != ""], looks[looks != ""]
    near = np.array(splits.near_duplicates(looks.tolist(), alike.bits, alike.augment), dtype=int).reshape(-1, 2)
    same = [splits.repeats(rows[name]) for name in ("phash", "sha256")]
    groups = rows["group"].tolist()
    # A row for each further name of a row, joined to it; they are not asked about.
    kin = enumerate(rows["kin"]) if "kin" in rows else ()
    more = [(i, name) for i, names in kin if names for name in names.split("\n")]
    others = np.array([(i, len(rows) + place) for place, (i, _) in enumerate(more)], dtype=int).reshape(-1, 2)
    edges = np.concatenate([first[near], *same, others])
    return splits.components(len(rows) + len(more), edges, groups + [name for _, name in more])[: len(rows)]


def _divided(component: np.ndarray, fixed: np.ndarray) -> dict[int, Counter[str]]:
    """Components with rows fixed to different splits (splits.numbered), and how many to each."""
    bits = splits.held(component, fixed)
    concerned = np.flatnonzero(((bits & (bits - 1)) > 0)[component] & (fixed > 0)) if len(component) else np.zeros(0, int)
    there: dict[int, Counter[str]] = defaultdict(Counter)
    for part, number in zip(component[concerned].tolist(), fixed[concerned].tolist(), strict=True):
        there[part][splits.SPLITS[number - 1]] += 1
    return dict(there)


def _parted(rows: pd.DataFrame, component: np.ndarray, fixed: np.ndarray, alike: Likeness, domain: str) -> dict[int, str]:
    """The fixed rows to leave out so that nothing that belongs together stands in two splits, with the reasons."""
    divided = _divided(component, fixed)
    if not divided:
        return {}
    suspects = np.flatnonzero(np.isin(component, list(divided)) & (fixed > 0))
    own = fixed[suspects]
    part_of = _components(rows.iloc[suspects].reset_index(drop=True), alike)  # without the rows between them
    total, kept = Counter(("", *splits.SPLITS)[number] for number in fixed.tolist()), {}
    for part, there in _divided(part_of, own).items():

        def lost(keep: str, there: Counter[str] = there) -> float:
            return sum(count / total[split] for split, count in there.items() if split != keep)

        kept[part] = min((split for split in reversed(splits.SPLITS) if split in there), key=lost)
    names = [splits.SPLITS[number - 1] for number in own.tolist()]
    return {
        i: PARTED.format(own=split, there=kept[part], domain=domain)
        for i, split, part in zip(suspects.tolist(), names, part_of.tolist(), strict=True)
        if split != kept.get(part, split)
    }

"""Splits that hold: groups and near-duplicates stay together, and a row keeps its split in every later version."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..domains import Augment
from .groups import same_group

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "val", "test")
BLOCK = 4096  # rows that are compared at a time
FEW = 32  # rows with one code that are compared all at once
NUMBER = {name: number for number, name in enumerate(("", *SPLITS))}
ONLY = np.array([0, 1, 2, 0, 3, 0, 0, 0], np.int8)  # by the bits of `held`: the split where it is one


def near_duplicates(
    hashes: Sequence[str], bits: int, augment: Augment | None = None, part: int = 0, of: int = 1
) -> list[tuple[int, int]]:
    """Pairs that join all rows whose 256-bit hashes (hexadecimal) differ in at most `bits` bits, directly or through others.

    Exact, not approximate: hashes are cut into `bits + 1` bands, and two that differ in at most `bits` bits agree in at
    least one band (pigeonhole), so only rows that share a band are compared. What is joined already is not compared again, so
    a thousand frames of one scene cost about a thousand comparisons and give 999 pairs.

    Args:
        augment: mirrored and turned images are alike too, where training may mirror and turn them.
        part, of: only rows that share a band of the part's are compared; what the pairs of all parts join is what those of one join.
    """
    if not hashes:
        return []
    count = len(hashes)
    given = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(count, -1)
    packed = np.concatenate(list(orientations(given, augment)))  # the first rows as they came; row i of each is of image i
    words = packed.view(np.uint64)
    first_word = words[:, 0].copy()
    parent = np.arange(count)  # of a forest: images with one root are joined

    def roots(images: np.ndarray) -> np.ndarray:
        above: np.ndarray = parent[images]
        while ((higher := parent[above]) != above).any():
            above = higher
        parent[images] = above
        return above

    pairs: list[tuple[int, int]] = []

    def join(ones: np.ndarray, others: np.ndarray) -> None:
        """Pairs of rows, where they are alike and not joined yet."""
        near = (
            np.bitwise_count(first_word[ones] ^ first_word[others]) <= bits
        )  # hardly any of them is: look at the rest of those
        ones, others = ones[near], others[near]
        near = np.bitwise_count(words[ones] ^ words[others]).sum(axis=1) <= bits
        ones, others = ones[near] % count, others[near] % count
        apart = roots(ones) != roots(others)
        for one, other in zip(ones[apart].tolist(), others[apart].tolist(), strict=True):
            root, above = roots(np.array([one, other])).tolist()
            if root != above:
                parent[above] = root
                pairs.append((min(one, other), max(one, other)))

    bands = np.arange(bits + 1)[:, None] == np.arange(packed.shape[1] * 8) * (bits + 1) // (packed.shape[1] * 8)
    for band in np.packbits(bands, axis=1):
        code = _spread(packed[:, band > 0] & band[band > 0])
        asked = np.flatnonzero(code % of == part)
        few, many = _equal(code[asked], asked)
        for ones, others in few:
            upright = ones < count  # each of those before meets all that come after it
            join(ones[upright], others[upright])
        for rows in many:
            for place in range(min(int(np.searchsorted(rows, count)), len(rows) - 1)):
                first, others = rows[place : place + 1], rows[place + 1 :]
                if not (apart := roots(others % count) != roots(first % count)).any():
                    break
                join(np.repeat(first, apart.sum()), others[apart])
    return sorted(pairs)


def nearest(hashes: Sequence[str], known: Sequence[str], bits: int, most: int = 256) -> list[tuple[int, int]]:
    """For each hash the number of the nearest of `known` and how many bits they differ in; (-1, bits + 1) for none within `bits`.

    Args:
        most: of known ones that agree in a band of bits, as many are compared. Where more do, the images are all alike.
    """
    found = np.full((len(hashes), 2), (-1, bits + 1))
    if not hashes or not known:
        return [(-1, bits + 1)] * len(hashes)
    ours, theirs = (np.frombuffer(bytes.fromhex("".join(each)), np.uint8).reshape(len(each), -1) for each in (hashes, known))
    edges = np.linspace(0, ours.shape[1] * 8, max(bits, 7) + 2).astype(int)  # two within `bits` agree in one band at least
    for start, stop in itertools.pairwise(edges.tolist()):
        mine, others = _bits(ours, start, stop), _bits(theirs, start, stop)
        order = np.argsort(others, kind="stable")
        low, high = (np.searchsorted(others[order], mine, side) for side in ("left", "right"))
        for block in np.split(np.arange(len(mine)), range(BLOCK, len(mine), BLOCK)):
            counts = np.minimum(high[block] - low[block], most)
            row = np.repeat(block, counts)
            place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low[block], counts)
            other = order[place]
            apart = np.bitwise_count(ours.view(np.uint64)[row] ^ theirs.view(np.uint64)[other]).sum(axis=1).astype(int)
            best = np.lexsort((other, apart, row))
            best = best[np.unique(row[best], return_index=True)[1]]  # the nearest of each row
            closer = apart[best] < found[row[best], 1]
            found[row[best][closer]] = np.stack([other[best], apart[best]], axis=1)[closer]
    return [(int(a), int(b)) for a, b in found]


def _bits(packed: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Bits from `start` to `stop`, at most 32 of them, as one number a row."""
    last = -(-stop // 8)
    number = np.zeros(len(packed), np.uint64)
    for column in range(start // 8, last):
        number = number << np.uint64(8) | packed[:, column].astype(np.uint64)
    return number >> np.uint64(last * 8 - stop) & np.uint64((1 << (stop - start)) - 1)


def orientations(packed: np.ndarray, augment: Augment | None) -> Iterator[np.ndarray]:
    """Hashes (n, 32) as they came, then those of the images mirrored and turned.

    A hash says which of 16 x 16 cosine waves are stronger than their median, which is about zero. A mirror image has the odd
    waves across it with the other sign, and a turned one those of the transpose: so its hash follows from the bits, but for
    waves that are hardly there.
    """
    yield packed
    if augment is None:
        return
    odd = np.arange(16, dtype=np.uint8) % 2
    flips = augment.flip_horizontal or augment.flip_vertical
    for turned, down, across in itertools.product((False, True), repeat=3):
        if augment.rotate90:
            # Quarter turns alone never mirror: they are the transpose with one flip, and the half turn is two.
            there = flips or turned == (down != across)
        else:
            there = not turned and down <= augment.flip_vertical and across <= augment.flip_horizontal
        if there and (turned or down or across):
            found = np.empty_like(packed)
            for start in range(0, len(packed), BLOCK):  # a byte a wave is a lot for all at once
                waves = np.unpackbits(packed[start : start + BLOCK], axis=1).reshape(-1, 16, 16)
                waves = waves.transpose(0, 2, 1) if turned else waves
                changed = waves ^ (odd * across) ^ (odd * down)[:, None]
                found[start : start + BLOCK] = np.packbits(changed.reshape(len(changed), -1), axis=1)
            yield found


def _spread(rows: np.ndarray) -> np.ndarray:
    """A number for each row (n, k), the same for the same bytes, and spread evenly."""
    number = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        number = (number ^ column) * np.uint64(0x100000001B3)  # FNV-1
    spread: np.ndarray = number ^ (number >> np.uint64(32))
    return spread


def _equal(codes: np.ndarray, rows: np.ndarray) -> tuple[Iterator[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """What has equal codes, of rows that ascend: all pairs (one before the other) where few rows have one, and the rows, ascending,
    where many have. A few codes may count as equal that are not."""
    number = np.sort((codes << np.uint64(32)) | rows.astype(np.uint64))
    codes, rows = number >> np.uint64(32), (number & np.uint64(2**32 - 1)).astype(np.int64)
    ends = np.append(np.flatnonzero(np.diff(codes)) + 1, len(codes)) if len(codes) else np.zeros(0, int)
    sizes = np.diff(ends, prepend=0)
    few = np.repeat((sizes > 1) & (sizes <= FEW), sizes)
    many = [rows[end - size : end] for end, size in zip(ends[sizes > FEW], sizes[sizes > FEW], strict=True)]
    codes, rows = codes[few], rows[few]

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for apart in range(1, FEW):
            places = np.flatnonzero(codes[apart:] == codes[:-apart])
            if not len(places):
                break
            for start in range(0, len(places), BLOCK * 64):
                some = places[start : start + BLOCK * 64]
                yield rows[some], rows[some + apart]

    return pairs(), many


def components(count: int, edges: Sequence[tuple[int, int]] | np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Connected components of rows joined by near-duplicate edges or a common non-empty group, however it is spelled: labels (count,)."""
    import pandas as pd
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    joined = [np.asarray(edges, dtype=int).reshape(-1, 2)]
    if len(groups):
        codes, names = pd.factorize(np.asarray(groups, dtype=object))
        plain = np.array([same_group(name) if name else "" for name in names], dtype=object)
        joined.append(repeats(pd.Series(plain[codes])))
    left, right = np.concatenate(joined).T
    graph = coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    component: np.ndarray = connected_components(graph, directed=False)[1]
    return component


def repeats(values: "pd.Series[str]") -> np.ndarray:
    """Pairs (n, 2) of rows: the first with a value, and one of the others; "" is none."""
    codes, names = values.factorize()
    first = np.unique(codes, return_index=True)[1]
    again = np.ones(len(codes), bool)
    again[first] = False
    again &= (names.to_numpy(object) != "")[codes]
    return np.stack([first[codes[again]], np.flatnonzero(again)], axis=1)


def numbered(names: Sequence[str]) -> np.ndarray:
    """Splits as numbers (n,): from 1 in the order of `SPLITS`, 0 for none."""
    return np.array([NUMBER[name] for name in names], np.int8)


def held(component: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Which splits the rows of each component are in: a bit for each of `SPLITS`. Arguments (n,), the second as `numbered`."""
    found = np.zeros(int(component.max(initial=-1)) + 1, np.uint8)
    np.bitwise_or.at(found, component, ((1 << number.astype(np.uint8)) >> 1).astype(np.uint8))
    return found


@dataclass(frozen=True)
class Assignment:
    """The split of each row, and the rows that could be put nowhere without a leak."""

    splits: list[str]
    straddling: list[int]


def assign(
    component: np.ndarray, labels: Sequence[str], fixed: Sequence[str], shares: dict[str, float], seed: int
) -> Assignment:
    """Give each component one split, class by class as close to `shares` as whole components allow.

    Args:
        component: component of each row, from `components`.
        labels: class of each row ("" where unknown), for stratification.
        fixed: "" or the split that a row already has (an older version's, or the source's own); it never changes.
        shares: wanted share of rows by split.
        seed: order in which equal components are dealt.
    Returns:
        splits by row. Where a component holds rows fixed to different splits, the fixed rows keep theirs, and its new rows
        are returned as `straddling`: wherever they went, their twin would be on the other side.
    """
    number, part = numbered(fixed), np.unique(component, return_inverse=True)[1]
    there = held(part, number)
    number = np.where(number == 0, ONLY[there][part], number)
    free = there == 0
    straddling = np.flatnonzero((number == 0) & ~free[part])

    # Counts by class are sparse: a component holds one class or a few, whatever number of classes there is.
    total = Counter(labels)
    wanted = [{label: shares[split] * count for label, count in total.items()} for split in SPLITS]
    filled = [dict.fromkeys(total, 0.0) for _ in SPLITS]
    names = [("", *SPLITS)[i] for i in number.tolist()]
    for (name, label), count in Counter(zip(names, labels, strict=True)).items():
        if name:
            filled[SPLITS.index(name)][label] += count

    def cost(s: int, counts: Counter[str]) -> float:
        """How much the squared shortfall of a split grows with these rows."""
        return sum(
            ((filled[s][c] + n - wanted[s][c]) / total[c]) ** 2 - ((filled[s][c] - wanted[s][c]) / total[c]) ** 2
            for c, n in counts.items()
        )

    members = np.flatnonzero(free[part])
    order = members[np.argsort(part[members], kind="stable")]
    ends = np.cumsum(np.bincount(part[members], minlength=len(there))[free])
    starts, tie = np.append(0, ends)[:-1], np.random.default_rng(seed).permutation(len(ends))
    ranked = np.argsort(order[starts])  # as they come
    starts, ends = starts[ranked], ends[ranked]
    # Largest components first, since they are the hardest to place; each goes where it reduces the shortfall most.
    ranked = np.lexsort((tie, starts - ends))
    alone = (ends - starts)[ranked] == 1
    for i in ranked[~alone].tolist():
        rows = order[starts[i] : ends[i]].tolist()
        counts = Counter(labels[r] for r in rows)
        best = min(range(len(SPLITS)), key=lambda s: cost(s, counts))
        for label, count in counts.items():
            filled[best][label] += count
        for r in rows:
            names[r] = SPLITS[best]
    one = {label: Counter([label]) for label in total}
    costs = {label: [cost(s, one[label]) for s in range(len(SPLITS))] for label in total}
    for r in order[starts[ranked[alone]]].tolist():
        label = labels[r]
        of_label = costs[label]
        best = of_label.index(min(of_label))
        filled[best][label] += 1
        of_label[best] = cost(best, one[label])
        names[r] = SPLITS[best]
    if missing := absent(labels, names):
        _complete(names, labels, [order[start:end].tolist() for start, end in zip(starts, ends, strict=True)], missing)
    return Assignment(names, straddling.tolist())


def _complete(splits: list[str], labels: Sequence[str], free: Sequence[Sequence[int]], missing: dict[str, list[str]]) -> None:
    """Give a split that has no row of a class one, where a free component can be spared: the smallest, of the fullest split.

    Args:
        missing: as `absent` finds it.
    """
    holding: dict[tuple[str, str], int] = Counter()  # components by class and split; a row that is not free counts as one
    freed = set(itertools.chain.from_iterable(free))
    for r, label in enumerate(labels):
        holding[label, splits[r]] += r not in freed
    of: dict[str, list[Sequence[int]]] = {}
    for rows in sorted(free, key=len):
        for label in {labels[r] for r in rows}:
            holding[label, splits[rows[0]]] += 1
            if label in missing:
                of.setdefault(label, []).append(rows)
    for label, names in missing.items():
        for name in names:
            spare = [
                rows
                for rows in of.get(label, [])
                if all(holding[other, splits[rows[0]]] > 1 for other in {labels[r] for r in rows} - {""})
            ]
            if not spare:
                continue
            rows = max(spare, key=lambda rows: holding[label, splits[rows[0]]])
            for other in {labels[r] for r in rows}:
                holding[other, splits[rows[0]]] -= 1
                holding[other, name] += 1
            for r in rows:
                splits[r] = name


def absent(labels: Sequence[str], splits: Sequence[str]) -> dict[str, list[str]]:
    """The classes that have rows, and none in some split: those splits by class."""
    there: dict[str, set[str]] = {}
    for label, split in set(zip(labels, splits, strict=True)):
        if label:
            there.setdefault(label, set()).add(split)
    missing = {label: [split for split in SPLITS if split not in there[label]] for label in sorted(there)}
    return {label: names for label, names in missing.items() if names}

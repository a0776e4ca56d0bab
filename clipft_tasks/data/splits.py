"""Splits that hold: groups and near-duplicates stay together, and a row keeps its split in every later version."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..domains import Augment
from .groups import same_group

SPLITS = ("train", "val", "test")
BLOCK = 4096  # rows that are compared at a time


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
    parent = np.arange(count)  # of a forest: images with one root are joined

    def roots(images: np.ndarray) -> np.ndarray:
        above: np.ndarray = parent[images]
        while ((higher := parent[above]) != above).any():
            above = higher
        parent[images] = above
        return above

    pairs: list[tuple[int, int]] = []
    bands = np.arange(bits + 1)[:, None] == np.arange(packed.shape[1] * 8) * (bits + 1) // (packed.shape[1] * 8)
    for band in np.packbits(bands, axis=1):
        mine = packed[:, band > 0] & band[band > 0]
        asked = np.flatnonzero(_spread(mine) % of == part)
        for rows in (asked[found] for found in _equal(mine[asked])):
            upright = int(np.searchsorted(rows, count))  # each of those before meets all that come after it
            for place in range(min(upright, len(rows) - 1)):
                first, others = int(rows[place]), rows[place + 1 :]
                root, above = roots(rows[place : place + 1] % count), roots(others % count)
                if not (apart := above != root).any():
                    break
                others, above = others[apart], above[apart]
                near = np.bitwise_count(words[others] ^ words[first]).sum(axis=1) <= bits
                joined, which = np.unique(above[near], return_index=True)
                parent[joined] = root
                found = (others[near][which] % count).tolist()
                pairs += [(min(first, other), max(first, other)) for other in found]
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
    waves = np.unpackbits(packed, axis=1).reshape(len(packed), 16, 16)
    odd = np.arange(16, dtype=np.uint8) % 2
    flips = augment.flip_horizontal or augment.flip_vertical
    for turned, down, across in itertools.product((False, True), repeat=3):
        if augment.rotate90:
            # Quarter turns alone never mirror: they are the transpose with one flip, and the half turn is two.
            there = flips or turned == (down != across)
        else:
            there = not turned and down <= augment.flip_vertical and across <= augment.flip_horizontal
        if there and (turned or down or across):
            found = waves.transpose(0, 2, 1) if turned else waves
            yield np.packbits((found ^ (odd * across) ^ (odd * down)[:, None]).reshape(len(packed), -1), axis=1)


def _spread(rows: np.ndarray) -> np.ndarray:
    """A number for each row (n, k), the same for the same bytes, and spread evenly."""
    number = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        number = (number ^ column) * np.uint64(0x100000001B3)  # FNV-1
    spread: np.ndarray = number ^ (number >> np.uint64(32))
    return spread


def _equal(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Row numbers, ascending, of each kind of row (n, k) that there are several of."""
    whole = np.ascontiguousarray(rows).view([("", rows.dtype)] * rows.shape[1]).ravel()
    _, kind, counts = np.unique(whole, return_inverse=True, return_counts=True)
    order = np.argsort(kind, kind="stable")
    ends = np.cumsum(counts)
    return (order[end - count : end] for end, count in zip(ends[counts > 1], counts[counts > 1], strict=True))


def components(count: int, edges: Sequence[tuple[int, int]], groups: Sequence[str]) -> np.ndarray:
    """Connected components of rows joined by near-duplicate edges or a common non-empty group, however it is spelled: labels (count,)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    joined = list(edges)
    first: dict[str, int] = {}
    plain = {group: same_group(group) for group in set(groups) if group}
    for row, group in enumerate(groups):
        if group:
            joined.append((first.setdefault(plain[group], row), row))
    left, right = (np.array(side, dtype=int) for side in zip(*joined, strict=True)) if joined else (np.zeros(0, int),) * 2
    graph = coo_matrix((np.ones(len(left)), (left, right)), shape=(count, count))
    component: np.ndarray = connected_components(graph, directed=False)[1]
    return component


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
    splits = list(fixed)
    straddling: list[int] = []
    rows_of: dict[int, list[int]] = {}
    for row, comp in enumerate(component.tolist()):
        rows_of.setdefault(comp, []).append(row)

    # Counts by class are sparse: a component holds one class or a few, whatever number of classes there is.
    total = Counter(labels)
    wanted = [{label: shares[split] * count for label, count in total.items()} for split in SPLITS]
    filled = [dict.fromkeys(total, 0.0) for _ in SPLITS]
    free: list[tuple[Counter[str], list[int]]] = []
    for rows in rows_of.values():
        there = {fixed[r] for r in rows} - {""}
        if not there:
            free.append((Counter(labels[r] for r in rows), rows))
            continue
        for r in rows:
            if splits[r] == "":
                if len(there) == 1:
                    splits[r] = next(iter(there))
                else:
                    straddling.append(r)
            if splits[r]:
                filled[SPLITS.index(splits[r])][labels[r]] += 1

    def cost(s: int, counts: Counter[str]) -> float:
        """How much the squared shortfall of a split grows with these rows."""
        return sum(
            ((filled[s][c] + n - wanted[s][c]) / total[c]) ** 2 - ((filled[s][c] - wanted[s][c]) / total[c]) ** 2
            for c, n in counts.items()
        )

    rng = np.random.default_rng(seed)
    tie = rng.permutation(len(free)).tolist()
    # Largest components first, since they are the hardest to place; each goes where it reduces the shortfall most.
    for i in sorted(range(len(free)), key=lambda i: (-len(free[i][1]), tie[i])):
        counts, rows = free[i]
        best = min(range(len(SPLITS)), key=lambda s: cost(s, counts))
        for label, count in counts.items():
            filled[best][label] += count
        for r in rows:
            splits[r] = SPLITS[best]
    _complete(splits, labels, [rows for _, rows in free])
    return Assignment(splits, straddling)


def _complete(splits: list[str], labels: Sequence[str], free: Sequence[Sequence[int]]) -> None:
    """Give a split that has no row of a class one, where a free component can be spared: the smallest, of the fullest split."""
    missing = absent(labels, splits)
    if not missing:
        return
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
    for label, split in zip(labels, splits, strict=True):
        if label:
            there.setdefault(label, set()).add(split)
    missing = {label: [split for split in SPLITS if split not in there[label]] for label in sorted(there)}
    return {label: names for label, names in missing.items() if names}

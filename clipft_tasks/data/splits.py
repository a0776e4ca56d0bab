"""Splits that hold: groups and near-duplicates stay together, and a row keeps its split in every later version."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "val", "test")


def near_duplicates(hashes: Sequence[str], bits: int) -> list[tuple[int, int]]:
    """Pairs of rows whose 256-bit hashes (hexadecimal) differ in at most `bits` bits.

    Exact, not approximate: hashes are cut into `bits + 1` bands, and two that differ in at most `bits` bits agree in at
    least one band (pigeonhole), so only rows that share a band are compared. Rows that are alike form a chain rather than
    a clique: each is compared with the first of its band, then with the rest only where that fails.
    """
    if not hashes:
        return []
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(len(hashes), -1)
    unpacked = np.unpackbits(packed, axis=1)
    edges = np.linspace(0, unpacked.shape[1], bits + 2).astype(int)
    pairs: set[tuple[int, int]] = set()
    for start, stop in itertools.pairwise(edges):
        band = np.packbits(unpacked[:, start:stop], axis=1)
        _, inverse = np.unique(band, axis=0, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(inverse[order])) + 1):
            while len(members) > 1:
                first, rest = members[0], members[1:]
                distance = (unpacked[rest] != unpacked[first]).sum(1)
                pairs.update((int(first), int(j)) for j in rest[distance <= bits])
                # Identical rows are settled by their first; the others still meet each other.
                members = rest[distance > 0]
    return sorted(pairs)


def components(count: int, edges: Sequence[tuple[int, int]], groups: Sequence[str]) -> np.ndarray:
    """Connected components of rows joined by near-duplicate edges or a common non-empty group: labels (count,)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    joined = list(edges)
    first: dict[str, int] = {}
    for row, group in enumerate(groups):
        if group:
            joined.append((first.setdefault(group, row), row))
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
    classes = sorted(set(labels))
    column = {name: i for i, name in enumerate(classes)}
    rows_of: dict[int, list[int]] = {}
    for row, comp in enumerate(component.tolist()):
        rows_of.setdefault(comp, []).append(row)

    total = np.bincount([column[x] for x in labels], minlength=len(classes)).astype(float)
    wanted = np.array([shares[s] for s in SPLITS])[:, None] * total
    filled = np.zeros_like(wanted)
    free: list[tuple[int, np.ndarray, list[int]]] = []
    for comp, rows in rows_of.items():
        there = {fixed[r] for r in rows} - {""}
        counts = np.bincount([column[labels[r]] for r in rows], minlength=len(classes)).astype(float)
        if not there:
            free.append((comp, counts, rows))
            continue
        for r in rows:
            if splits[r] == "":
                if len(there) == 1:
                    splits[r] = next(iter(there))
                else:
                    straddling.append(r)
            if splits[r]:
                filled[SPLITS.index(splits[r]), column[labels[r]]] += 1

    rng = np.random.default_rng(seed)
    tie = rng.permutation(len(free))
    # Largest components first, since they are the hardest to place; each goes where it reduces the shortfall most.
    for i in sorted(range(len(free)), key=lambda i: (-free[i][1].sum(), tie[i])):
        _, counts, rows = free[i]
        scale = np.maximum(total, 1)
        cost = [
            (((filled[s] + counts - wanted[s]) / scale) ** 2 - ((filled[s] - wanted[s]) / scale) ** 2).sum() for s in range(3)
        ]
        best = int(np.argmin(cost))
        filled[best] += counts
        for r in rows:
            splits[r] = SPLITS[best]
    return Assignment(splits, straddling)

"""Images that resemble one another beyond what counts as near-duplicates: cropped or turned by a little, mirrored.

Their hashes differ in as many bits as those of two alike images may, so no limit tells them apart. What does is that such an image is
much nearer to its original than to anything else. To join what merely looks alike would cost rows; so nothing is joined for good
here: what is found goes to one split where it is free to.
"""

from collections.abc import Sequence

import numpy as np

from ..domains import Augment
from .splits import orientations

RATIO = 0.7  # of the distance to the next image: an original is nearer than that
FAR = 140  # weighted bits: what two images that have nothing in common differ in at least
BANDS, SURE = 24, 10  # bands of bits; of waves that are slower than SURE, which small changes turn over last
MOST = 64  # images of a band that are compared
BLOCK = 2**16  # pairs


def resembling(
    hashes: Sequence[str], component: np.ndarray, asked: Sequence[int], augment: Augment | None = None
) -> list[tuple[int, int]]:
    """(image, the one that it resembles) for those asked that clearly resemble one image outside of their component.

    Approximate, and near-linear: images are compared where they agree in one of several bands of bits.

    Args:
        hashes: perceptual hashes (hexadecimal). component: of each, what is joined already.
        augment: as in `splits.near_duplicates`.
    """
    if len(hashes) < 2 or not len(asked):
        return []
    given = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), -1)
    packed = np.concatenate(list(orientations(given, augment)))
    own = np.asarray(asked)
    slow = np.flatnonzero((np.arange(256) // 16 < SURE) & (np.arange(256) % 16 < SURE))
    words, mask = packed.view(np.uint64), np.packbits(np.isin(np.arange(256), slow)).view(np.uint64)
    width = int(np.clip(np.log2(len(packed)) + 2, 12, 22))
    bits = np.empty((len(slow), len(packed)), np.uint8)
    for start in range(0, len(packed), BLOCK):
        some = slice(start, start + BLOCK)
        bits[:, some] = np.unpackbits(packed[some], axis=1)[:, slow].T
    rng = np.random.default_rng(0)

    best = np.full((len(own), 2), FAR)  # distances to the nearest component and to the next
    which = np.full((len(own), 2), -1)  # images there
    for _ in range(BANDS):
        codes = np.zeros(len(packed), np.uint64)
        for number, wave in enumerate(rng.choice(len(slow), width, replace=False)):
            codes |= bits[wave].astype(np.uint64) << np.uint64(number)
        order = (np.sort(codes << np.uint64(32) | np.arange(len(packed), dtype=np.uint64)) & np.uint64(2**32 - 1)).astype(
            np.int64
        )
        ends = np.cumsum(np.bincount(codes.astype(np.int64), minlength=2**width))
        mine = codes[own].astype(np.int64)
        low = np.where(mine > 0, ends[mine - 1], 0)
        counts = np.minimum(ends[mine] - low, MOST)
        for block in np.array_split(np.arange(len(own)), max(1, int(counts.sum()) // BLOCK)):
            row = np.repeat(block, counts[block])
            at = np.arange(len(row)) - np.repeat(np.cumsum(counts[block]) - counts[block], counts[block])
            other = order[at + np.repeat(low[block], counts[block])]
            differ = words[own[row]] ^ words[other]
            apart = np.bitwise_count(differ).sum(1) + 2 * np.bitwise_count(differ & mask).sum(1)
            other = other % len(hashes)
            real = (component[own[row]] != component[other]) & (apart < best[row, 1])
            _nearer(best, which, component, row[real], other[real], apart[real].astype(int))
    found = best[:, 0] < RATIO * best[:, 1]
    return [(int(i), int(j)) for i, j in zip(own[found], which[found, 0], strict=True)]


def _nearer(
    best: np.ndarray, which: np.ndarray, component: np.ndarray, row: np.ndarray, other: np.ndarray, apart: np.ndarray
) -> None:
    """Take the two nearest components of each row from those known and these."""
    if not len(row):
        return
    rows = np.unique(row)
    held = which[rows] >= 0
    row = np.concatenate([row, np.repeat(rows, 2)[held.ravel()]])
    other = np.concatenate([other, which[rows].ravel()[held.ravel()]])
    apart = np.concatenate([apart, best[rows].ravel()[held.ravel()]])
    order = np.lexsort((other, apart, row))
    row, other, apart = row[order], other[order], apart[order]
    part = component[other]
    _, first = np.unique(np.stack([row, part], 1), axis=0, return_index=True)  # the nearest of each component
    first.sort()
    row, other, apart = row[first], other[first], apart[first]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    for place in (0, 1):
        here = rank == place
        best[row[here], place], which[row[here], place] = apart[here], other[here]

"""Which rows make up each step: pure functions of (seed, step)."""

import threading

import numpy as np

SHUFFLED, BALANCED, SPREAD = "shuffled", "balanced", "spread"


class Sampler:
    """Epochs are permutations of the images; of an image's captions each epoch takes one.

    Args:
        labels: class id by row, -1 where unknown.
        images: image id by row; rows of one image differ in caption.
        groups: group id by row.
        batch: rows per step.
        seed: fixes every epoch's order.
        how: `shuffled`; `balanced`, drawing rare classes as often as common ones, rows of no known class once; `spread`, keeping rows of one group in
            different batches as far as possible, since they would be false negatives of each other.
    """

    def __init__(
        self, labels: np.ndarray, batch: int, seed: int, how: str = SHUFFLED, *, images: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        rows = np.arange(len(labels))
        self.labels, self.seed, self.how = labels, seed, how
        self.groups = rows if groups is None else groups
        _, inverse = np.unique(rows if images is None else images, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        counts = np.bincount(inverse)
        self._captions = counts
        self._first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self._rows = order  # rows of image p: order[first[p] : first[p] + counts[p]]
        self.batch = min(batch, len(counts))
        self._current: tuple[int, np.ndarray] = (-1, rows)
        self._lock = threading.Lock()  # batches are prepared by several threads

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self._captions) // self.batch)

    def rows(self, step: int) -> np.ndarray:
        """Row numbers of a step (batch,)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        with self._lock:
            if self._current[0] != epoch:
                self._current = (epoch, self._epoch(epoch))
            order = self._current[1]
        return order[within * self.batch : (within + 1) * self.batch]

    def _epoch(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 1, epoch])
        chosen = self._rows[self._first + (rng.random(len(self._captions)) * self._captions).astype(int)]
        if self.how == BALANCED:
            order = self._balanced(self.labels[chosen], rng)
        else:
            order = rng.permutation(len(chosen))
            if self.how == SPREAD:
                order = order[_apart(self.groups[chosen[order]], self.steps_per_epoch, self.batch, rng)]
        drawn: np.ndarray = chosen[order]
        return drawn

    def _balanced(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        known, unknown = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
        classes = np.unique(labels[known])
        if not len(classes):
            return rng.permutation(len(labels))
        # Each class is repeated whole, in fresh order each time, until it has filled its share.
        share = -(-len(known) // len(classes))
        columns = []
        for label in classes:
            members = np.flatnonzero(labels == label)
            repeats = -(-share // len(members))
            columns.append(np.concatenate([rng.permutation(members) for _ in range(repeats)])[:share])
        passes = np.stack(columns, axis=1)  # over all classes in turn, so each batch is balanced as well
        if len(classes) > self.batch:
            passes = rng.permuted(passes, axis=1)  # in fresh order each time: sooner or later any two of them meet
        drawn = passes.ravel()[: len(known)]
        if len(unknown):
            drawn = np.insert(drawn, rng.integers(0, len(drawn) + 1, len(unknown)), rng.permutation(unknown))
        for start in range(0, len(drawn), self.batch):
            rng.shuffle(drawn[start : start + self.batch])
        return drawn


def _apart(groups: np.ndarray, batches: int, batch: int, rng: np.random.Generator) -> np.ndarray:
    """An order in which the members of each group go round the batches in turn; what fills no batch comes last."""
    names, number = np.unique(groups, return_inverse=True)
    by_group = np.argsort(rng.permutation(len(names))[number], kind="stable")  # members of a group are neighbors ...
    dealt = [by_group[start::batches] for start in range(batches)]  # ... and neighbors get different batches
    return np.concatenate([*(d[:batch] for d in dealt), *(d[batch:] for d in dealt)])

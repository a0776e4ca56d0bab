"""Embeddings of texts and of callers' classes that a version was asked for before."""

from collections.abc import Iterable, Mapping

import numpy as np

LONGEST = 500  # characters of a text that is remembered


class VectorMemory:
    """Vectors (d,) by text; those asked for longest ago go first. Belongs to one version, so another one starts empty.

    Not for several threads: only the event loop asks.

    Args:
        most: bytes of all vectors.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._vectors: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._vectors)

    def found(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of the texts that are remembered."""
        known = self._vectors
        found = {text: known[text] for text in texts if text in known}
        for text in found:  # the last that will go
            known[text] = known.pop(text)
        return found

    def keep(self, embedded: Mapping[str, np.ndarray]) -> None:
        for text, vector in embedded.items():
            if len(text) <= LONGEST:
                self._vectors[text] = vector.copy()  # alone, without the batch that it came in
                while len(self._vectors) * vector.nbytes > self.most:
                    self._vectors.pop(next(iter(self._vectors)))

"""Embeddings of texts and of callers' classes that a version was asked for before, and how many tokens a text has."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np

LONGEST = 500  # characters of a text that is remembered
NONE: Mapping[str, int] = MappingProxyType({})


class VectorMemory:
    """Vectors (d,) by text; those asked for longest ago go first. Belongs to one version, so another one starts empty.

    Not for several threads: only the event loop asks.

    Args:
        most: bytes of all vectors.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._vectors: dict[str, np.ndarray] = {}
        self._tokens: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._vectors)

    def found(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of the texts that are remembered."""
        known = self._vectors
        found = {text: known[text] for text in texts if text in known}
        for text in found:  # the last that will go
            known[text] = known.pop(text)
        return found

    def tokens(self, text: str) -> int:
        """Tokens of a text that is remembered; 0 where nobody said."""
        return self._tokens.get(text, 0)

    def keep(self, embedded: Mapping[str, np.ndarray], tokens: Mapping[str, int] = NONE) -> None:
        """Args: tokens: of each text."""
        for text, vector in embedded.items():
            if len(text) <= LONGEST:
                self._vectors[text] = vector.copy()  # alone, without the batch that it came in
                if text in tokens:
                    self._tokens[text] = tokens[text]
                while len(self._vectors) * vector.nbytes > self.most:
                    gone = next(iter(self._vectors))
                    del self._vectors[gone]
                    self._tokens.pop(gone, None)

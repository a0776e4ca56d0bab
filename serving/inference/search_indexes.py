"""The search indexes that a server has open: that of each live version, read again when it is replaced or rows are forgotten."""

import threading
import time

from clipft_tasks.contracts.search import SearchHit, SearchResults
from clipft_tasks.search import Index, opened
from clipft_tasks.search.index import CARD, VECTORS, folder_of

LOOK_SECONDS = 1.0  # between looks at the files


class SearchIndexes:
    """Open indexes by domain. Several threads may ask."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str, float, Index]] = {}  # version, stamp of its files, index
        self._looked: dict[str, float] = {}
        self._changing = threading.Lock()

    def get(self, domain: str, version: str) -> Index:
        """The index of a version. Raises ClipftError where there is none, or only one of another version."""
        with self._changing:
            now = time.monotonic()
            known = self._open.get(domain)
            if known and known[0] == version and now - self._looked.get(domain, 0) < LOOK_SECONDS:
                return known[2]
            self._looked[domain] = now
            stamp = _stamp(domain, version)
            if known and known[:2] == (version, stamp):
                return known[2]
            self._open.pop(domain, None)
            index = opened(domain, version)
            self._open[domain] = (version, stamp, index)
            return index


def _stamp(domain: str, version: str) -> float:
    found = [folder_of(domain, version) / name for name in (CARD, VECTORS)]
    return max((path.stat().st_mtime for path in found if path.exists()), default=0.0)


def results(index: Index, hits: list[SearchHit]) -> SearchResults:
    """Hits, and what was searched."""
    card = index.card
    return SearchResults(hits=hits, domain=card.domain, version=card.version, source=card.source, rows=card.rows)

"""Search over images of one's own: an index for each domain and model version, beside each other under `search/` in home.

A version's index goes live with the version, and the one before it stays for a rollback, so neither is ever searched with the other's
embeddings. `build` makes one, `refresh` makes that of another version from the same source, `forget` removes rows from all of them.
"""

from .build import build, refresh
from .index import Index, cards, forget, opened

__all__ = ["Index", "build", "cards", "forget", "opened", "refresh"]

"""What was erased from a domain, known again by salted digests: so that nothing of it comes back in silence."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import pandas as pd

from ..contracts.erasure import Erasure, salted
from ..core.files import atomic_path
from . import repository
from .groups import same_group

FILE = "erasures.jsonl"
PASSED_OVER = "erased before"  # kind, in a source's account


@dataclass(frozen=True)
class Tombstones:
    """A domain's erasures, oldest first."""

    erasures: Sequence[Erasure] = ()

    @classmethod
    def of(cls, domain: str, repo: Path | None = None) -> Self:
        """Those that the repository of data sets knows now. Raises as `repository.latest`."""
        repo = repo or repository.latest()
        (found,) = repository.cat_files(repo, [f"{repository.head(repo)}:{domain}/{FILE}"])
        return cls(read(found or b""))

    def __bool__(self) -> bool:
        return bool(self.erasures)

    @property
    def salt(self) -> str:
        """That of the first erasure, so that one digest a value is enough; "" before any."""
        return self.erasures[0].salt if self.erasures else ""

    @cached_property
    def _images(self) -> frozenset[tuple[str, str]]:
        return frozenset((e.salt, digest) for e in self.erasures for digest in e.images)

    @cached_property
    def _groups(self) -> frozenset[tuple[str, str]]:
        return frozenset((e.salt, digest) for e in self.erasures for digest in e.groups)

    @cached_property
    def _salts(self) -> frozenset[str]:
        return frozenset(e.salt for e in self.erasures)

    def holds(self, sha256: str, group: str = "") -> bool:
        """Was an image of these bytes erased, or its group, however it is spelled?"""
        groups = {group, same_group(group)} - {""}
        return any(
            (salt, salted(salt, sha256)) in self._images or any((salt, salted(salt, name)) in self._groups for name in groups)
            for salt in self._salts
        )


def drop_rows(path: Path, is_erased: Callable[[str], bool]) -> bool:
    """Take erased images out of a table (split ledger, decisions); whether there were any."""
    if not path.exists():
        return False
    rows = pd.read_parquet(path)
    gone = rows["sha256"].map(is_erased).astype(bool)
    if gone.any():
        with atomic_path(path) as part:
            rows[~gone].reset_index(drop=True).to_parquet(part)
    return bool(gone.any())


def read(content: bytes) -> list[Erasure]:
    return [Erasure.model_validate_json(line) for line in content.splitlines() if line]


def written(erasures: Iterable[Erasure]) -> bytes:
    return b"".join(e.model_dump_json().encode() + b"\n" for e in erasures)

"""Images that a table names by address, or by paths of a table that was brought itself: fetched before their rows are read."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from ...core.errors import ClipftError, TransientError
from .. import addresses, remote
from .base import refuse

BLOCK = 256  # rows

T = TypeVar("T")


class Fetched:
    """The images of one table.

    Args:
        root: that its paths are relative to. brought: whether what lies there is fetched as its rows name it.
    """

    def __init__(self, root: Path, brought: bool) -> None:
        self.mirror = remote.Mirror.of(root) if brought else None
        self.by_address: remote.Mirror | None = None
        self.failed: dict[str, remote.Failure] = {}

    def before(self, records: Iterable[T], name: Callable[[T], str]) -> Iterator[T]:
        """The records, some at a time, once their images are here.

        Args:
            name: the path or address in a record; "" for none.
        Raises: TransientError where the place of the table does not answer. One address that does not is its row's matter.
        """
        waiting: list[T] = []
        for record in records:
            waiting.append(record)
            if len(waiting) >= BLOCK or not name(record):
                self._bring({name(record) for record in waiting} - {""})
                yield from waiting
                waiting = []
        self._bring({name(record) for record in waiting} - {""})
        yield from waiting

    def at(self, address: str) -> tuple[Path, str] | partial[bytes]:
        """Where an address's image lies: (folder, name in it); or what refuses it."""
        try:
            addresses.check(address)
        except ClipftError as error:
            why = f"{addresses.shown(address)} is an address that is not fetched: {error.why} (CLIPFT_SOURCES_ALLOWED)"
            return partial(refuse, why, "addresses")
        name = remote.name_of(address)
        if (failure := self.failed.get(name)) or self.by_address is None:
            why = failure.why if failure else "it was not asked for"
            return partial(refuse, f"{addresses.shown(address)} cannot be fetched: {why}", "addresses that cannot be fetched")
        return self.by_address.folder, name

    def _bring(self, names: set[str]) -> None:
        self.failed = {}
        if allowed := sorted(name for name in names if addresses.is_remote(name) and _is_allowed(name)):
            self.by_address = self.by_address or remote.of_addresses()
            self.failed = self.by_address.bring({remote.name_of(a): a for a in allowed}, limit=remote.MOST_BYTES)
        if self.mirror:
            plain = [name.replace("\\", "/") for name in names if not addresses.is_remote(name)]
            web = self.mirror.base.startswith(remote.WEB)
            wanted = {name: f"{self.mirror.base}/{quote(name) if web else name}" for name in plain if remote.is_name(name)}
            failed = self.mirror.bring(wanted, limit=remote.MOST_BYTES)
            passing = [f"{name}: {failure.why}" for name, failure in failed.items() if failure.passing]
            if passing:
                raise TransientError(f"{len(passing)} images of {self.mirror.base} did not come, e.g. {passing[0]}.")
            self.failed |= failed


def _is_allowed(address: str) -> bool:
    try:
        addresses.check(address)
    except ClipftError:
        return False
    return True

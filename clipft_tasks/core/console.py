"""Progress that reads well in a terminal and in an Airflow log: a bar for the one, a line every few seconds for the other."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int | None = None, every: float = 5.0) -> Iterator[T]:
    """Yield `items`, showing how far they are. `what` names the work in the plural ("images")."""
    if sys.stderr.isatty():
        from rich.progress import track

        yield from track(items, description=what, total=total)
        return
    began = told = time.monotonic()
    count = 0
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told >= every:
            told = now
            rate = count / (now - began)
            left = f", {(total - count) / rate:.0f} s left" if total else ""
            say(f"{what}: {count}{f'/{total}' if total else ''} ({rate:.1f}/s{left})")
    say(f"{what}: {count} in {time.monotonic() - began:.1f} s")


def say(line: str) -> None:
    """A line for the person who watches: the terminal, or the task's log in Airflow."""
    print(line, file=sys.stderr if sys.stderr.isatty() else sys.stdout, flush=True)

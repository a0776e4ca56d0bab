"""A log that nobody fills from outside: lines that say the same again and again are counted instead."""

import logging
import threading

from .rate_limit import RateLimit

RATE, BURST = 0.2, 50  # lines a second of each kind, and at once


class Repeats(logging.Filter):
    """Lets a few lines of each kind through; the next one says how many were left out. A kind is a message before its values."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._kinds: dict[tuple[int, str], RateLimit] = {}
        self._left_out: dict[tuple[int, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.levelno, str(record.msg)[:100]
        with self._lock:
            if len(self._kinds) > 1000:
                self._kinds.clear()
            if not self._kinds.setdefault(kind, RateLimit(RATE, BURST)).admits(1):
                self._left_out[kind] = self._left_out.get(kind, 0) + 1
                return False
            left_out = self._left_out.pop(kind, 0)
        if left_out:
            record.msg = f"{record.msg} ({left_out:,} more like this were left out)"
        return True


def limit_repeats(*names: str) -> None:
    """Let these loggers repeat themselves only so often."""
    for name in names:
        log = logging.getLogger(name)
        if not any(isinstance(one, Repeats) for one in log.filters):
            log.addFilter(Repeats())

"""How many tokens captions need, counted in a process that ends: the libraries of models take more memory than all checks of a data set."""

import sys
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import current_process

from ..core.errors import TransientError
from ..core.processes import fresh_pool
from ..data.describe import end_with_parent


def count_apart(start: str, domain: str, captions: list[str]) -> tuple[list[int], int]:
    """As `count`, in another process unless this one has those libraries already. Raises TransientError where it was ended."""
    if "torch" in sys.modules or current_process().daemon:
        return count(start, domain, captions)
    with fresh_pool(1, end_with_parent) as pool:
        try:
            return pool.submit(count, start, domain, captions).result()
        except BrokenProcessPool as error:
            raise TransientError("The process that counts tokens was ended: is there memory enough?") from error


def count(start: str, domain: str, captions: list[str]) -> tuple[list[int], int]:
    """Tokens of each caption, and how many the start model reads. Raises ClipftError for a start model that is not there."""
    from . import build
    from .clip import token_counts

    tokenizer, context = build.tokenizer(start, domain=domain)
    return token_counts(tokenizer, captions), context

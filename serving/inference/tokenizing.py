"""Texts to token ids, in a thread of its own for which clients take turns: what a long text costs, the model's thread does not pay.

Done once for each text: the same ids say what the model reads, how many tokens a client is told, and which texts were cut.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from clipft_tasks.model.clip import Clip, lengths, token_counts

from .fair_queue import FairPool

T = TypeVar("T")
LETTERS = 4000  # of the texts that are tokenized before another client has its turn
TEXTS = 32  # likewise


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts.

    Attributes:
        ids: int64 (n, length), the length that the longest needs; padding fills the rest.
        counts: tokens of each text; one more than the model's context where there are more than that.
    """

    ids: np.ndarray
    counts: list[int]


class TokenizerThread:
    """Tokenizes the texts of all requests of one process."""

    def __init__(self) -> None:
        self._pool = FairPool(1, "tokenize")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def tokenize(self, clip: Clip, texts: Sequence[str]) -> Tokens:
        """Token ids of at least one text. What nobody waits for any more is not tokenized."""
        return _together(await self._in_pieces(lambda some: tokens_of(clip, some), texts), clip.pad)

    async def count(self, clip: Clip, texts: Sequence[str]) -> int:
        """Tokens of all texts, of which there may be none, in full."""
        return sum(map(sum, await self._in_pieces(lambda some: token_counts(clip.tokenizer, some), texts)))

    async def _in_pieces(self, work: Callable[[Sequence[str]], T], texts: Sequence[str]) -> list[T]:
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(self._pool, work, some) for some in _pieces(texts)]
        try:
            return list(await asyncio.gather(*futures))
        finally:
            for future in futures:
                future.cancel()


def tokens_of(clip: Clip, texts: Sequence[str]) -> Tokens:
    """Token ids of a few texts, in the calling thread."""
    table, needed = clip.token_table(texts)
    counts: list[int] = lengths(table, clip.pad).tolist()
    full = [n for n, count in enumerate(counts) if count >= clip.context_length - 1]  # some end with what they pad with
    uncut = token_counts(clip.tokenizer, [texts[n] for n in full], at=[clip.context_length + 1])
    for n, count in zip(full, uncut, strict=True):
        counts[n] = count
    return Tokens(table[:, : int(needed.max())].long().numpy(), counts)


def joined(ids: Sequence[np.ndarray], pad: int) -> np.ndarray:
    """Token ids (n, length) of several lengths as one batch, int64: shorter ones are padded."""
    batch = np.full((sum(map(len, ids)), max(some.shape[1] for some in ids)), pad, np.int64)
    row = 0
    for some in ids:
        batch[row : row + len(some), : some.shape[1]] = some
        row += len(some)
    return batch


def _together(parts: Sequence[Tokens], pad: int) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    return Tokens(joined([part.ids for part in parts], pad), [count for part in parts for count in part.counts])


def _pieces(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts, a few at a time."""
    start = letters = 0
    for end, text in enumerate(texts):
        if end > start and (letters + len(text) > LETTERS or end - start >= TEXTS):
            yield texts[start:end]
            start, letters = end, 0
        letters += len(text)
    if start < len(texts):
        yield texts[start:]

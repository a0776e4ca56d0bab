"""Texts become token ids once, in pieces between which clients take turns, and nobody's in vain."""

import asyncio
import threading

import open_clip
import pytest
import torch
from conftest import TINY

from clipft_tasks.model.clip import Clip, token_counts
from serving.inference.fair_queue import CLIENT
from serving.inference.tokenizing import LETTERS, TEXTS, TokenizerThread, joined


@pytest.fixture
def tokenizer():
    thread = TokenizerThread()
    yield thread
    thread.close()


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip(
        open_clip.CLIP(**TINY["model_cfg"]).eval(),
        open_clip.get_tokenizer("ViT-B-32", context_length=32),
        TINY,
        "tiny",
        "0" * 64,
    )


def test_ids_are_those_that_the_model_is_given_and_counts_say_which_texts_were_cut(tokenizer, clip):
    texts = [
        "a",
        "word " * 3000,
        "two words",
        "some words more than that, and then",
        "x y " * 60,
        "word " * (clip.context_length - 2),
    ]
    found = asyncio.run(tokenizer.tokenize(clip, texts))
    in_full = token_counts(clip.tokenizer, texts)
    assert found.counts == [min(count, clip.context_length + 1) for count in in_full]
    assert asyncio.run(tokenizer.count(clip, texts)) == sum(in_full) and asyncio.run(tokenizer.count(clip, [])) == 0
    assert [count > clip.context_length for count in found.counts] == [False, True, False, False, True, False]
    assert torch.equal(torch.from_numpy(found.ids), clip.tokenize(texts))
    short = asyncio.run(tokenizer.tokenize(clip, ["a", "two words"])).ids
    assert torch.equal(torch.from_numpy(short), clip.tokenize(["a", "two words"])) and short.shape[1] < clip.context_length
    with torch.inference_mode():
        together = clip.encode_tokens(torch.from_numpy(joined([found.ids, short], clip.pad)))
        torch.testing.assert_close(together, clip.encode_texts([*texts, "a", "two words"]))


class Slow:
    """A model whose tokenizer can be held up, and notes what it was asked."""

    context_length, pad = 8, 0

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.begun, self.free = threading.Event(), threading.Event()

    def token_table(self, texts):
        self.asked.append(list(texts))
        self.begun.set()
        assert self.free.wait(10)
        return torch.ones((len(texts), 8), dtype=torch.int32).tril(), torch.full((len(texts),), 8)

    def tokenizer(self, texts, context_length):
        return torch.zeros((len(texts), context_length), dtype=torch.int64)


def test_another_clients_text_comes_between_the_pieces_of_a_large_request(tokenizer):
    slow = Slow()
    long = ["l" * (LETTERS // 2)] * 9 + ["s"] * (2 * TEXTS)

    async def ask(client: str, texts: list[str]):
        CLIENT.set(client)
        return await tokenizer.tokenize(slow, texts)

    async def go() -> None:
        greedy = asyncio.create_task(ask("greedy", long))
        await asyncio.to_thread(slow.begun.wait, 10)
        other = asyncio.create_task(ask("other", ["mine"]))
        await asyncio.sleep(0.01)
        slow.free.set()
        assert len((await greedy).ids) == len(long) and len((await other).counts) == 1

    asyncio.run(go())
    assert slow.asked.index(["mine"]) <= 2 and sum(map(len, slow.asked)) == len(long) + 1
    for texts in slow.asked:
        assert len(texts) <= TEXTS and (len(texts) == 1 or sum(map(len, texts)) <= LETTERS)


def test_what_nobody_waits_for_is_not_tokenized(tokenizer):
    slow = Slow()

    async def go() -> None:
        gone = asyncio.create_task(tokenizer.tokenize(slow, ["t"] * (10 * TEXTS)))
        await asyncio.to_thread(slow.begun.wait, 10)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        slow.free.set()
        await tokenizer.tokenize(slow, ["after"])

    asyncio.run(go())
    assert [len(texts) for texts in slow.asked] == [TEXTS, 1]

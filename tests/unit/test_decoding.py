"""Decoding of request images: one lane for large ones, under a budget of pixels, and nothing for nobody."""

import asyncio
import io
import threading

import numpy as np
import pytest
from PIL import Image

from clipft_tasks.data.images import BadImageError, deep_gray
from serving.inference.decoding import Decoder
from serving.inference.errors import QueueFullError, RequestRejectedError
from serving.inference.settings import ServingSettings


def png(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG")
    return out.getvalue()


SMALL, LARGE = png(8), png(2100)


@pytest.fixture
def decoder():
    made = Decoder(ServingSettings(max_queue_pixels=10_000_000, max_request_pixels=20_000_000), threads=2)
    yield made
    made.close()


class Decode:
    """Notes what is decoded; large images wait until they may go on."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.free = threading.Event()
        self.at_once = self.most = 0

    def __call__(self, image: bytes) -> int:
        self.seen.append(image)
        if image == b"bad":
            raise BadImageError("it is bad")
        if image == LARGE:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.free.wait(5)
            self.at_once -= 1
        return len(image)


def test_small_images_do_not_wait_for_large_ones_which_go_one_by_one(decoder):
    decode = Decode()

    async def go() -> None:
        large = [asyncio.create_task(decoder.decode([LARGE, SMALL], decode)) for _ in range(2)]
        await asyncio.sleep(0.1)
        assert await decoder.decode([SMALL] * 5, decode) == [len(SMALL)] * 5
        assert not any(task.done() for task in large)
        decode.free.set()
        assert await asyncio.gather(*large) == [[len(LARGE), len(SMALL)]] * 2

    asyncio.run(go())
    assert decode.most == 1 and decoder.waiting == 0


@pytest.mark.parametrize(("after_a_small_request", "busy"), [(True, 1), (False, 2)])
def test_a_large_request_leaves_threads_to_small_ones_while_these_come(decoder, after_a_small_request, busy):
    lock, at_once, most = threading.Lock(), 0, 0

    def decode(image: bytes) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        threading.Event().wait(0.02)
        with lock:
            at_once -= 1
        return 0

    async def go() -> None:
        nonlocal most
        if after_a_small_request:
            await decoder.decode([SMALL], decode)
            most = 0
        await decoder.decode([SMALL] * 20, decode)

    asyncio.run(go())
    assert most == busy


def test_a_bad_image_is_named_and_ends_the_turn_of_the_others(decoder):
    decode = Decode()
    with pytest.raises(RequestRejectedError, match="Image 2: it is bad"):
        asyncio.run(decoder.decode([LARGE, b"bad", *[LARGE] * 3], decode))
    assert LARGE not in decode.seen and decoder.waiting == 0


def test_pixels_beyond_the_budget_are_refused_and_those_within_it_answered(decoder):
    decode = Decode()

    async def go() -> None:
        first = asyncio.create_task(decoder.decode([LARGE], decode))
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFullError, match="pixels are waiting"):
            await decoder.decode([LARGE, LARGE], decode)
        with pytest.raises(RequestRejectedError, match="pixels"):
            await decoder.decode([LARGE] * 5, decode)
        decode.free.set()
        await first
        assert await decoder.decode([LARGE, LARGE], decode)  # an idle server takes what one request may have

    asyncio.run(go())


def test_what_is_cancelled_is_not_decoded(decoder):
    decode = Decode()

    async def go() -> None:
        first = asyncio.create_task(decoder.decode([LARGE], decode))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(decoder.decode([LARGE], decode))
        await asyncio.sleep(0.1)
        second.cancel()
        await asyncio.sleep(0)
        decode.free.set()
        await first
        await asyncio.sleep(0.1)

    asyncio.run(go())
    assert decode.seen == [LARGE] and decoder.waiting == 0


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("bits", [0, 12, 16])
def test_deep_gray_by_rows_is_deep_gray_at_once(kind, bits):
    values = (np.random.default_rng(0).random((2100, 1030)) * 60_000).astype(kind)
    whole = values.astype(np.float64)
    if bits:
        expected = np.floor(whole / 2.0 ** (bits - 8)).clip(0, 255).astype(np.uint8)
    else:
        low, high = np.percentile(whole, 0.1, method="lower"), np.percentile(whole, 99.9, method="higher")
        expected = ((whole - low) / (high - low) * 255).round().clip(0, 255).astype(np.uint8)
    assert np.array_equal(deep_gray(values, bits), expected)

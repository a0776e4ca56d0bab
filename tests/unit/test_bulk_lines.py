"""A body in pieces of any size becomes its lines, in groups."""

import asyncio
import json
import time
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.inference import bulk
from serving.inference.admission import Admission
from serving.inference.settings import ServingSettings

LONGEST = 20
BODIES = st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" ")), max_size=80).map(b"\n".join)


@pytest.fixture(scope="module")
def admission():
    made = Admission(ServingSettings())
    yield made
    made.close()


async def read(body: bytes, size: int, skipped: int, longest: int = LONGEST) -> list[bulk.Line]:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return await read_pieces(pieces, skipped, longest)


async def read_pieces(pieces: list[bytes], skipped: int, longest: int) -> list[bulk.Line]:
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    lines = bulk.Lines(longest, skipped)
    reading = asyncio.create_task(lines.read(receive))
    groups = [group async for group in lines.groups()]
    reading.cancel()
    assert all(0 < len(group) <= bulk.GROUP for group in groups)
    return [line for group in groups for line in group]


@settings(max_examples=30)
@given(BODIES, st.integers(1, 200), st.integers(0, 5))
def test_a_body_becomes_its_lines(body, size, skipped):
    with patch.object(bulk, "TOGETHER", 0.001):
        found = asyncio.run(read(body, size, skipped))
    numbered = [(n, line if len(line) <= LONGEST else None) for n, line in enumerate(body.split(b"\n"), 1)]
    expected = [(n, line) for n, line in numbered if n > skipped and (line is None or line.strip())]
    assert [(line.number, line.content) for line in found] == expected


def test_a_long_line_that_comes_byte_by_byte_costs_no_more_than_its_bytes():
    long = b"x" * 20_000_000
    began = time.process_time()
    [line] = asyncio.run(read_pieces([long, *[b"y"] * 3000], 0, 30_000_000))
    assert line.content == long + b"y" * 3000 and time.process_time() - began < 5  # copied each time: half a minute


PARTS = {
    "15 MB of numbers": b"[" + b"1," * 7_000_000 + b"1]",
    "15 MB of objects": b"[" + b"{}," * 5_000_000 + b"{}]",
    "a million keys": b"{" + b",".join(b'"k%d":0' % n for n in range(1_000_000)) + b"}",
}


@pytest.mark.parametrize("case", PARTS)
def test_a_line_of_more_parts_than_one_item_has_is_not_parsed(admission, case, monkeypatch):
    monkeypatch.setattr(bulk, "json", None)  # nothing can be parsed
    [item] = bulk.read_items([bulk.Line(1, b'{"id": 1, "text": ' + PARTS[case] + b"}")], admission)
    assert isinstance(item.part, bulk.Problem) and item.part.code == "request.too_many"


@pytest.mark.parametrize("name", ["NaN", "-Infinity", "1e999", "9" * 4000, '"\\ud800"', "true", '{"a": 1}', '["a"]'])
def test_whatever_a_line_calls_itself_the_answer_is_json(admission, name):
    [item] = bulk.read_items([bulk.Line(1, f'{{"id": {name}, "text": "a"}}'.encode())], admission)
    said = json.dumps(item.id)
    assert json.loads(said, parse_constant=pytest.fail) == item.id and len(said) < 30
    said.encode().decode("unicode-escape").encode()  # no half of a letter
    assert item.part == "a" or (name in ("NaN", "-Infinity") and item.part == bulk.Problem(422, "The line is not JSON."))


@pytest.mark.parametrize("key", ["text", "id", "image"])
def test_a_string_that_is_no_image_is_too_long_for_anything_else(admission, key):
    said = {"text": "a"} | {key: "é" * 100_000} if key != "image" else {"image": "é" * 100_000}
    [item] = bulk.read_items([bulk.Line(1, json.dumps(said).encode())], admission)
    assert isinstance(item.part, bulk.Problem) and item.part.status == 422

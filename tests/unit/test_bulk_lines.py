"""A body in pieces of any size becomes its lines, in groups."""

import asyncio
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.inference import bulk

LONGEST = 20
BODIES = st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" ")), max_size=80).map(b"\n".join)


async def read(body: bytes, size: int, skipped: int) -> list[bulk.Line]:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    lines = bulk.Lines(LONGEST, skipped)
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

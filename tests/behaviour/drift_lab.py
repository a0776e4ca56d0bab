"""One server that watches what it answers, small windows, and what callers do to it."""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import COLOURS, made_picture
from PIL import Image

from behaviour.live_server import CLASSES, TOKEN, Server, b64, png

LEAST, SIZE = 32, 64
FEEDBACK, DRIFT, WINDOW = "/v1/feedback", "/v1/drift/general", "/v1/windows/general"
SHOWN = {"Authorization": f"Bearer {TOKEN}"}
PROBE = SHOWN | {"X-Clipft-Probe": "1"}
CAPTIONS = [f"a photo of a {label} square." for label in COLOURS]


@pytest.fixture(scope="module")
def shared(own: Path) -> Iterator[Server]:
    with Server(own, window=SIZE, window_least=LEAST, drift_seconds=0.3) as server:
        yield server.ready()


@pytest.fixture
def server(shared: Server) -> Server:
    """The module's server, with version 1 live and nothing in its window."""
    for version in ("2", "1"):
        assert shared.put(version).status_code == 200
    return shared


@cache
def ordinary(count: int, first: int = 1000) -> tuple[Image.Image, ...]:
    """Pictures like those of the training, both classes in turn."""
    return tuple(made_picture(label, first + n) for n in range((count + 1) // 2) for label in COLOURS)[:count]


def classify(server: Server, pictures: Iterable[Image.Image]) -> tuple[str, list[str]]:
    """The request's id and what the server took each picture for."""
    answer = server.post(CLASSES, {"images": [b64(png(p)) for p in pictures]})
    assert answer.status_code == 200, answer.text
    return answer.headers["x-request-id"], [p["label"] for p in answer.json()["predictions"]]


def judge(server: Server, request_id: str, index: int, label: str) -> httpx.Response:
    body = {"request_id": request_id, "index": index, "label": label}
    return server.client.post(FEEDBACK, json=body, headers=SHOWN)


def other(label: str) -> str:
    return next(f"{c} square" for c in COLOURS if f"{c} square" != label)


def drift(server: Server) -> dict[str, Any]:
    answer = server.get(DRIFT)
    assert answer.status_code == 200, answer.text
    return answer.json()


def of_version(server: Server, version: str) -> set[str]:
    """Names of the window's gauges that speak of this version. Counters of what it did may stay."""
    counted = ("_total", "_created", "_bucket", "_count", "_sum", "_info")
    named = {k[0] for k in server.figures() if k[1:2] == ("general",) and k[-1] == version}
    return {name for name in named if not name.endswith(counted)}

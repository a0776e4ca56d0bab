"""One server with a champion, and versions that are tried beside it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import COLOURS, made_picture
from PIL import Image

from behaviour.live_server import CLASSES, PICTURES, TOKEN, Plain, Server, b64, png

SHOWN = {"Authorization": f"Bearer {TOKEN}"}
PROBE = SHOWN | {"X-Clipft-Probe": "1"}
TRIAL = "/v1/shadows/general"
OWN = ["a tree", "a house"]


@pytest.fixture(scope="module")
def shared(own: Path) -> Iterator[Server]:
    with Server(own, drift_seconds=0, window_least=16) as server:
        yield server.ready()


@pytest.fixture
def server(shared: Server) -> Server:
    """The module's server, with version 1 live and nothing tried beside it."""
    end(shared)
    assert shared.put("1").status_code == 200
    return shared


def attempt(server: Server, version: str = "2", share: float = 1, answers: bool = False, path: str = TRIAL) -> httpx.Response:
    return server.client.put(path, json={"version": version, "share": share, "answers": answers}, headers=SHOWN)


def begin(server: Server, version: str = "2", share: float = 1, answers: bool = False) -> dict[str, Any]:
    answer = attempt(server, version, share, answers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def end(server: Server) -> bool:
    answer = server.client.delete(TRIAL, headers=SHOWN)
    assert answer.status_code == 200, answer.text
    return answer.json()["ended"]


def report(server: Server) -> dict[str, Any]:
    answer = server.get(TRIAL)
    assert answer.status_code == 200, answer.text
    return answer.json()


def reported(server: Server, requests: int) -> dict[str, Any]:
    """The report once it counts so many requests: in shadow the challenger is asked after the caller has its answer."""
    server.until(lambda: report(server)["requests"] >= requests, 20)
    return report(server)


def tried(server: Server) -> bool:
    return server.get(TRIAL).status_code == 200


def classify(server: Server, pictures: Any = PICTURES, **headers: str) -> httpx.Response:
    answer = server.client.post(CLASSES, json={"images": pictures}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def answering(server: Server, **headers: str) -> str:
    return classify(server, PICTURES[0], **headers).headers["x-clipft-model-version"]


def refusal(answer: httpx.Response) -> str:
    """Why the server refused, in words."""
    assert answer.status_code == 409, answer.text
    why = answer.json()["detail"]
    assert isinstance(why, str) and len(why) > 20
    return why


@pytest.fixture(scope="module")
def disputed(plain: dict[str, Plain]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Pictures for which both versions name the same class, and pictures for which they do not."""
    red, blue = (made_picture(label, 800) for label in COLOURS)
    noise = np.random.default_rng(0).integers(0, 256, (200, 12, 12, 3)).astype(np.uint8)
    blends = [Image.blend(red, blue, share) for share in np.linspace(0, 1, 60)]
    files = [png(p) for p in blends + [Image.fromarray(n).resize((48, 48)) for n in noise]]
    said = [(p.images(files) @ p.classes(p.card["classes"]).T) for p in plain.values()]
    clear = np.all([np.abs(s[:, 0] - s[:, 1]) > 1e-3 for s in said], axis=0)  # no rounding decides these
    same = said[0].argmax(axis=1) == said[1].argmax(axis=1)
    alike = [b64(f) for f, c, s in zip(files, clear, same, strict=True) if c and s]
    unlike = [b64(f) for f, c, s in zip(files, clear, same, strict=True) if c and not s]
    assert alike and unlike
    return alike, unlike


def too_small(card: dict[str, Any]) -> None:
    """Pictures of less than one patch: such a version loads, and fails at every picture."""
    card["resolutions"]["serve"] = 4

"""Many items in one request: a real server, fed as fast and as oddly as clients do."""

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fixtures.live_server import EMBED_TEXTS, FILES, IMAGES, TEXTS, TOKEN, Server, close, copied, trained

from serving.inference.admission import Admission
from serving.inference.bulk import BulkResponse, Lines
from serving.inference.errors import RequestRejectedError
from serving.inference.settings import ServingSettings

pytestmark = pytest.mark.slow
EMBEDDINGS, CLASSIFY = "/v1/bulk/embeddings", "/v1/bulk/classify"


@pytest.fixture(scope="module")
def shared(own: Path) -> Iterator[Server]:
    with Server(own, max_body_mb=1, max_image_mb=0.5, max_bulk=2, capture=0) as server:
        yield server.ready()


def lines(*items: Any) -> bytes:
    return b"".join((item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n" for item in items)


def ask(server: Server, body: Any, path: str = EMBEDDINGS, **query: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The answers, and the last line."""
    answer = server.client.post(path, content=body, params=query)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/x-ndjson", answer.text
    *answers, last = [json.loads(line) for line in answer.text.splitlines()]
    return answers, last


def image(n: int) -> dict[str, str]:
    return {"id": f"image {n}", "image": IMAGES[n % len(IMAGES)]["base64"]}


def test_each_line_is_answered_in_its_order(server, plain):
    answers, last = ask(server, lines({"id": 1, "text": TEXTS[0]}, image(0), TEXTS[1], image(1)))
    text, images = plain["1"].texts(), plain["1"].images()
    assert close([a["embedding"] for a in answers], np.stack([text[0], images[0], text[1], images[1]]))
    assert [a["id"] for a in answers] == [1, "image 0", None, "image 1"] and [a["cursor"] for a in answers] == [1, 2, 3, 4]
    assert last == {"cursor": 4, "done": True, "items": 4, "errors": 0}


def test_one_bad_item_costs_the_others_nothing(server, plain):
    many = [image(n) for n in range(70)]
    many[40] = {"id": "bad", "image": "d29yZHM="}
    body = lines(*many[:20], b"{", {"id": "url", "image": "http://x/y.png"}, b"", b"[1]", b"x" * 800_000, *many[20:])
    answers, last = ask(server, body)
    assert len(answers) == 74 and (last["items"], last["errors"], last["cursor"], last["done"]) == (74, 5, 75, True)
    wrong = {a["cursor"]: a["error"]["code"] for a in answers if "error" in a}
    assert wrong == {
        21: "request.malformed",
        22: "request.malformed",
        24: "request.malformed",
        25: "request.too_large",
        46: "request.bad_image",
    }
    expected = plain["1"].images()
    right = [a for a in answers if "error" not in a]
    assert close([a["embedding"] for a in right], np.stack([expected[int(a["id"].split()[1]) % len(FILES)] for a in right]))


def test_the_same_body_goes_on_from_a_cursor(server):
    body = lines(*({"id": n, "text": f"text {n}"} for n in range(50)))
    whole, _ = ask(server, body, encoding_format="base64")
    rest, last = ask(server, body, encoding_format="base64", cursor=37)
    vectors = [
        np.stack([np.frombuffer(base64.b64decode(a.pop("embedding")), "<f4") for a in some]) for some in (rest, whole[37:])
    ]
    assert rest == whole[37:] and close(*vectors)  # other texts beside one in its batch: equal but for rounding
    assert (last["cursor"], last["items"]) == (50, 13)
    assert ask(server, body, cursor=99) == ([], {"cursor": 99, "done": True, "items": 0, "errors": 0})
    assert ask(server, b"") == ([], {"cursor": 0, "done": True, "items": 0, "errors": 0})


def test_images_are_classified_and_feedback_reaches_them(server):
    answers, last = ask(server, lines(image(0), {"text": "a text"}, image(1)), CLASSIFY)
    assert [a.get("label") for a in answers] == [
        server.post("/v1/classify", {"images": IMAGES[n]}).json()["predictions"][0]["label"] if n >= 0 else None
        for n in (0, -1, 1)
    ]
    assert answers[1]["error"]["code"] == "request.malformed" and last["errors"] == 1
    body = {"answer_id": answers[2]["answer_id"], "index": answers[2]["index"], "label": "red square"}
    told = server.client.post("/v1/feedback", json=body, headers={"Authorization": f"Bearer {TOKEN}"}).json()
    assert told["predicted"] == answers[2]["label"] and told["counted"]
    own, _ = ask(server, lines(image(0)), CLASSIFY, **{"class": ["a cat", "a dog"]})
    assert set(own[0]["scores"]) == {"a cat", "a dog"} and "answer_id" not in own[0]


def test_what_is_wrong_with_the_request_is_said_before_any_line(server):
    for query, status in (
        ({"domain": "medical"}, 404), ({"version": "9"}, 409), ({"dimensions": 8}, 422), ({"encoding_format": "x"}, 422), ({"cursor": -1}, 422),
    ):  # fmt: skip
        answer = server.client.post(EMBEDDINGS, content=lines("x"), params=query)
        assert answer.status_code == status and answer.headers["content-type"] == "application/problem+json", answer.text


class Line:
    """A bulk request by hand, so that lines can be sent one by one."""

    def __init__(self, server: Server) -> None:
        host, port = "127.0.0.1", int(server.url.rsplit(":", 1)[1])
        self.socket = socket.create_connection((host, port), timeout=20)
        self.socket.sendall(f"POST {EMBEDDINGS} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        self.file = self.socket.makefile("rb")

    def send(self, *items: Any) -> None:
        body = lines(*items)
        self.socket.sendall(b"%x\r\n%s\r\n" % (len(body), body))

    def answer(self) -> dict[str, Any]:
        while not (line := self.file.readline()).startswith(b"{"):
            assert line, "the server hung up"
        return json.loads(line)


def test_a_line_is_answered_before_the_next_is_sent(server):
    asked = Line(server)
    for n in range(3):
        asked.send({"id": n, "text": "x"})
        assert asked.answer()["id"] == n
    asked.socket.close()


def bulk_of(server: Server) -> int:
    """How many more bulk requests are taken: found by asking."""
    opened = []
    try:
        while len(opened) < 3:
            opened.append(Line(server))
            opened[-1].send("x")
            if not opened[-1].file.readline().startswith(b"HTTP/1.1 200"):
                return len(opened) - 1
        return 3
    finally:
        for one in opened:
            one.socket.close()


def test_a_client_that_hangs_up_gives_everything_back(server):
    for _ in range(3):
        asked = Line(server)
        asked.send(*[image(n) for n in range(64)])
        asked.socket.close()
    server.until(lambda: bulk_of(server) >= 1, 30)  # one address takes one of two at a time
    assert server.post(EMBED_TEXTS, {"texts": "x"}).status_code == 200


def test_a_quota_that_does_not_come_back_in_time_is_said_as_such():
    async def answer(parts: object) -> list[dict[str, object]]:
        return [{}]

    def admit() -> None:
        raise RequestRejectedError(429, "The key 'a' has 1 requests a minute.", "quota", headers={"Retry-After": "61"})

    async def asked() -> list[dict[str, Any]]:
        messages = [{"type": "http.request", "body": b'"a"\n"b"\n', "more_body": False}]
        sent = []

        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        await BulkResponse(admission, Lines(1000, 0), answer, admit, {})({}, receive, send)
        return [json.loads(line) for line in b"".join(sent).splitlines()]

    admission = Admission(ServingSettings())
    try:
        [last] = asyncio.run(asked())
    finally:
        admission.close()
    assert (
        not last["done"] and last["cursor"] == 0 and (last["error"]["status"], last["error"]["code"]) == (429, "request.quota")
    )


def test_who_asks_for_one_answer_waits_for_no_bulk(server):
    slowest, done = [], threading.Event()

    def bulk() -> None:
        httpx.post(server.url + EMBEDDINGS, content=lines(*[image(n) for n in range(1500)]), timeout=120)
        done.set()

    threading.Thread(target=bulk).start()
    while not done.is_set():
        began = time.monotonic()
        assert server.post(EMBED_TEXTS, {"texts": "x"}).status_code == 200
        slowest.append(time.monotonic() - began)
    assert max(slowest) < 5


def test_a_quota_slows_a_bulk_request_down(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from clipft_tasks.cli.main import main
    from clipft_tasks.core.settings import settings

    home = copied(trained(base), tmp_path / "home")
    monkeypatch.setenv("CLIPFT_HOME", str(home))
    settings.cache_clear()
    key = CliRunner().invoke(main, ["key", "add", "nightly", "--requests-per-minute", "60"]).output.split()[-1]
    settings.cache_clear()
    with Server(home, open=False) as server:
        server.ready()
        assert server.client.post(EMBEDDINGS, content=lines("x")).status_code == 401
        shown = {"Authorization": f"Bearer {key}"}
        body = lines(*[f"text {n}" for n in range(62 * 32)])
        answer = server.client.post(EMBEDDINGS, content=body, headers=shown, params={"encoding_format": "base64"})
        last = json.loads(answer.text.splitlines()[-1])
        assert last["done"] and last["items"] == 62 * 32 and answer.elapsed.total_seconds() > 1

"""The client for applications, against a real server and against one that is in trouble."""

import asyncio
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.live_server import FILES, TEXTS, TOKEN, Server, close

from clipft_tasks.client import AsyncClient, Client
from clipft_tasks.core.errors import TransientError
from clipft_tasks.server.client import ServerRefusalError

pytestmark = pytest.mark.slow


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, domain="general", key=TOKEN) as client:
        yield client


def test_embeddings_of_texts_and_images(client, plain, tmp_path):
    (tmp_path / "a.png").write_bytes(FILES[1])
    found = client.embed([TEXTS[0], FILES[0], tmp_path / "a.png"])
    text, image = plain["1"].texts(), plain["1"].images()
    assert found.version == "1"
    assert close(found.vectors[:1], text[:1]) and close(found.vectors[1:], image[:2])
    many = [f"text {n}" for n in range(600)]
    assert len(client.embed(many).vectors) == 600


def test_classes_similarity_and_feedback(client, server, plain):
    found = client.classify(FILES * 20)  # more than one request takes
    assert len(found) == 80 and len({one.answer_id for one in found}) == 2 and found[0].version == "1"
    assert {one.prediction.label for one in found} <= {"red square", "blue square"}
    told = client.feedback(found[70], "red square")
    assert told.counted and told.predicted == found[70].prediction.label
    assert set(client.classify(FILES[:1], classes=["a cat", "a dog"])[0].prediction.scores) == {"a cat", "a dog"}
    scores = client.similarity(FILES, TEXTS)
    assert close(scores, plain["1"].images() @ plain["1"].texts().T)
    [model] = client.models()
    assert (model.domain, model.version) == ("general", "1")


def test_many_items_one_of_them_bad(client, plain):
    answers = list(client.embed_many(b"no image" if n == 300 else f"text {n % 3}" for n in range(520)))
    assert [one.index for one in answers] == list(range(520)) and {one.version for one in answers} == {"1"}
    assert [(one.index, one.code) for one in answers if one.error] == [(300, "request.bad_image")]
    expected = plain["1"].texts([f"text {n}" for n in range(3)])
    assert close([one.vector for one in answers[:3]], expected) and close([answers[519].vector], expected[:1])
    classified = list(client.classify_many(FILES))
    assert [one.classified.prediction.label for one in classified] == [one.prediction.label for one in client.classify(FILES)]


def test_the_same_with_an_event_loop(server, plain):
    async def visit() -> None:
        async with AsyncClient(server.url, domain="general", key=TOKEN) as client:
            embedded, classified, scores = await asyncio.gather(
                client.embed(TEXTS), client.classify(FILES), client.similarity(FILES, TEXTS)
            )
            assert close(embedded.vectors, plain["1"].texts()) and len(classified) == len(FILES) == len(scores)
            assert (await client.feedback(classified[0], "red square")).counted
            assert [one.index async for one in client.embed_many(TEXTS)] == [0, 1, 2]
            assert [one.error async for one in client.classify_many([b"x"])] != [""]
            assert len(await client.models()) == 1

    asyncio.run(visit())


def test_a_refusal_has_a_status_and_a_code(server):
    with pytest.raises(ServerRefusalError, match="medical") as refused, Client(server.url, domain="medical") as client:
        client.embed(["x"])
    assert (refused.value.status, refused.value.code) == (404, "request.no_model")
    with pytest.raises(ServerRefusalError) as refused, Client(server.url, version="9") as client:
        list(client.embed_many(["x"]))
    assert (refused.value.status, refused.value.code) == (409, "request.other_version")


class Busy(http.server.BaseHTTPRequestHandler):
    """Has no room twice, then answers."""

    def do_GET(self) -> None:
        self.server.asked.append(time.monotonic())
        is_busy = len(self.server.asked) <= self.server.refusals
        body = json.dumps({"detail": "busy"} if is_busy else {"data": []}).encode()
        self.send_response(503 if is_busy else 200)
        self.send_header("content-type", "application/problem+json")
        self.send_header("content-length", str(len(body)))
        if is_busy:
            self.send_header("retry-after", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def busy() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        server.asked, server.refusals = [], 1
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_busy_server_is_asked_again_after_as_long_as_it_says(busy):
    with Client(f"http://127.0.0.1:{busy.server_port}") as client:
        assert client.models() == []
    first, second = busy.asked
    assert 1 <= second - first < 3


def test_a_server_that_stays_away_is_said_to_be_away(busy, monkeypatch):
    monkeypatch.setattr("clipft_tasks.client.clients.time.sleep", lambda seconds: None)
    busy.refusals = 99
    with Client(f"http://127.0.0.1:{busy.server_port}", retries=2) as client, pytest.raises(TransientError, match="busy"):
        client.models()
    assert len(busy.asked) == 3
    with Client("http://127.0.0.1:9", retries=1) as client, pytest.raises(TransientError, match="2 attempts"):
        client.models()


def test_the_client_needs_neither_torch_nor_numpy():
    import subprocess
    import sys

    look = (
        "import sys, clipft_tasks.client; print(sorted({'torch', 'numpy', 'mlflow', 'pandas', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stderr

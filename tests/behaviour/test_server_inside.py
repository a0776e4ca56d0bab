"""What can only be brought about inside: one application in this process."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from behaviour.live_server import CLASSES, PICTURES, TOKEN, WORDS
from clipft_tasks.settings import settings

pytestmark = pytest.mark.slow


# One application in this process ------------------------------------------------------------------------------------


@pytest.fixture
def inside(own: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a client of an application with these options and settings."""
    from fastapi.testclient import TestClient

    from serving.app import create_app
    from serving.settings import ServingSettings

    opened = []

    def make(token: str = TOKEN, **options: Any) -> TestClient:
        monkeypatch.setenv("CLIPFT_SERVER_TOKEN", token)
        settings.cache_clear()
        serving = ServingSettings(device="cpu", poll_seconds=0, **options)
        client = TestClient(create_app(serving), raise_server_exceptions=False)
        opened.append(client.__enter__())
        for _ in range(300):
            if client.get("/readyz").status_code == 200:
                return client
            time.sleep(0.1)
        raise AssertionError(client.get("/readyz").text)

    yield make
    for client in opened:
        client.__exit__(None, None, None)
    monkeypatch.undo()
    settings.cache_clear()


def test_an_empty_token_is_no_token(inside):
    client = inside(token="")
    for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": ""}):
        assert client.put("/v1/models/general", json={"version": "1"}, headers=headers).status_code == 403


def test_a_failure_inside_is_counted_as_one_and_answered_as_json(inside, monkeypatch):
    from serving import engine

    client = inside()

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(engine, "encode", broken)
    answer = client.post(WORDS, json={"texts": "x"})
    assert answer.status_code == 500 and "out of memory" not in answer.text
    assert 'route="/v1/embed/texts",status="500"} 1.0' in client.get("/metrics").text
    assert answer.headers["x-request-id"] and answer.json()["detail"]
    assert client.get("/healthz").status_code == 200


def test_the_models_own_classes_are_never_too_many(inside):
    answer = inside(max_items=1).post(CLASSES, json={"images": PICTURES[0]})
    assert answer.status_code == 200, answer.text


def test_more_requests_than_may_wait_are_told_to_come_back(inside):
    client = inside(max_queue=1)
    started, release = threading.Event(), threading.Event()
    client.app.state.engine.call(lambda: (started.set(), release.wait(20)))
    started.wait(10)
    client.app.state.engine.call(lambda: None)
    answer = client.post(WORDS, json={"texts": "x"})
    release.set()
    assert answer.status_code == 503 and answer.headers["retry-after"] and "again" in answer.json()["detail"]


def test_a_dead_inference_thread_is_a_failed_health_check(inside):
    client = inside()
    client.app.state.engine.close()
    assert client.get("/healthz").status_code == 500

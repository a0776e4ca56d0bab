"""What can only be brought about inside: one application in this process."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fixtures.live_server import CLASSES, EMBED_IMAGES, EMBED_TEXTS, IMAGES, PAIRS, TEXTS, TOKEN

from clipft_tasks.core.settings import settings

pytestmark = pytest.mark.slow


# One application in this process ------------------------------------------------------------------------------------


@pytest.fixture
def inside(own: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a client of an application with these options and settings."""
    from fastapi.testclient import TestClient

    from serving.inference.app import create_app
    from serving.inference.settings import ServingSettings

    opened = []

    def make(token: str = TOKEN, **options: Any) -> TestClient:
        monkeypatch.setenv("CLIPFT_SERVER_TOKEN", token)
        settings.cache_clear()
        serving = ServingSettings(**{"device": "cpu", "poll_seconds": 0, "window_rate": 1e6, **options})
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
    from serving.inference import batching

    client = inside()

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(batching, "encode", broken)
    answer = client.post(EMBED_TEXTS, json={"texts": "x"})
    assert answer.status_code == 500 and "out of memory" not in answer.text
    assert 'route="/v1/embed/texts",status="500"} 1.0' in client.get("/metrics").text
    assert answer.headers["x-request-id"] and answer.json()["detail"]
    assert client.get("/healthz").status_code == 200


def test_the_models_own_classes_are_never_too_many(inside):
    answer = inside(max_items=1).post(CLASSES, json={"images": IMAGES[0]})
    assert answer.status_code == 200, answer.text


def test_more_requests_than_may_wait_are_told_to_come_back(inside):
    client = inside(max_queue=1)
    started, release = threading.Event(), threading.Event()
    client.app.state.server.engine.call(lambda: (started.set(), release.wait(20)))
    started.wait(10)
    client.app.state.server.engine.call(lambda: None)
    answer = client.post(EMBED_TEXTS, json={"texts": "x"})
    release.set()
    assert answer.status_code == 503 and answer.headers["retry-after"] and "again" in answer.json()["detail"]


def test_images_are_answered_while_somebodys_texts_are_tokenized(inside, monkeypatch):
    from serving.inference import tokenizing

    client, whole = inside(), tokenizing.tokens_of
    started, release = threading.Event(), threading.Event()

    def held_up(clip: Any, texts: Any) -> Any:
        started.set()
        assert release.wait(20)
        return whole(clip, texts)

    monkeypatch.setattr(tokenizing, "tokens_of", held_up)
    with ThreadPoolExecutor(1) as other:
        texts = other.submit(client.post, EMBED_TEXTS, json={"texts": ["a long text " * 300] * 60})
        assert started.wait(20)
        assert client.post(CLASSES, json={"images": IMAGES[:1]}).status_code == 200
        assert not texts.done()
        release.set()
        assert texts.result(20).status_code == 200


def test_a_dead_inference_thread_is_a_failed_health_check(inside):
    client = inside()
    client.app.state.server.engine.close()
    assert client.get("/healthz").status_code == 500


def test_a_server_without_windows_answers_the_same_and_says_nothing_of_drift(inside, monkeypatch):
    from serving.inference import service

    def never(*_: object) -> None:
        raise AssertionError("images are looked at for a window that is not kept")

    expected = inside().post(CLASSES, json={"images": IMAGES}).json()
    monkeypatch.setattr(service, "appearance", never)
    client = inside(drift=False)
    assert client.post(CLASSES, json={"images": IMAGES}).json() == expected
    assert client.get("/v1/drift/general").status_code == 404
    text = client.get("/metrics").text
    assert "clipft_predictions_total{" in text
    assert not [line for line in text.splitlines() if line.startswith(("clipft_drift_measured{", "clipft_window_items{"))]


def test_a_window_takes_in_what_fills_it_and_then_so_many_a_second_and_the_others_are_answered_alike(inside, monkeypatch):
    from serving.inference import rate_limit

    expected = inside().post(CLASSES, json={"images": IMAGES}).json()
    client = inside(window=16, window_least=16, window_rate=0.5)
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time, perf_counter=time.perf_counter)
    monkeypatch.setattr(rate_limit, "time", clock)
    client.app.state.server.monitor._watched["general"].limit._at = now[0]

    def held(requests: int) -> int:
        for _ in range(requests):
            said = client.post(CLASSES, json={"images": IMAGES[:1]}).json()["predictions"]
            assert [p["label"] for p in said] == [expected["predictions"][0]["label"]]
        return client.app.state.server.monitor._watched["general"].window.seen

    assert client.post(CLASSES, json={"images": IMAGES[:1]}, headers={"X-Clipft-Internal": "1"} | SHOWN).status_code == 200
    assert held(20) == 16
    now[0] += 4
    assert held(5) == 18
    now[0] += 3600
    assert held(20) == 34  # a pause saves up no more than a window


def test_similarities_with_the_own_classes_are_computed_once_for_answer_and_window(inside, monkeypatch):
    from serving.inference.loaded_model import LoadedModel

    client, whole, calls = inside(), LoadedModel.similarity, []

    def counted(self: Any, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        calls.append(len(image))
        return whole(self, image, text)

    monkeypatch.setattr(LoadedModel, "similarity", counted)
    assert client.post(CLASSES, json={"images": IMAGES}).status_code == 200
    assert calls == [len(IMAGES)] and client.get("/v1/drift/general", headers=SHOWN).json()["images"] == len(IMAGES)


def test_who_shows_no_token_sees_the_last_measurement_of_this_replica_and_has_nothing_measured(inside, monkeypatch):
    from clipft_tasks.drift.window import Window

    client, whole, calls = inside(drift_seconds=0, peers="127.0.0.1:1"), Window.measure, []

    def counted(self: Any) -> Any:
        calls.append(1)
        return whole(self)

    monkeypatch.setattr(Window, "measure", counted)
    for _ in range(5):
        assert client.get("/v1/drift/general").json()["images"] == 0
    assert client.post(CLASSES, json={"images": IMAGES}).status_code == 200
    assert client.get("/v1/drift/general").json()["images"] == 0 and len(calls) == 1
    assert client.get("/v1/drift/general", headers=SHOWN).json()["images"] == len(IMAGES) and len(calls) == 2
    assert client.get("/v1/drift/general").json()["images"] == len(IMAGES) and len(calls) == 2


def test_a_replica_of_another_release_does_not_keep_this_one_from_saying_what_drifts(inside):
    """It says less than this one knows to add up."""

    class Older(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"domain": "general", "version": "1", "drift": {"image": 9.0}, "values": {}, "images": 64})
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("x-clipft-replica", "older")
            self.end_headers()
            self.wfile.write(body.encode())
            asked.append(self.path)

    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Older) as older:
        threading.Thread(target=older.serve_forever, daemon=True).start()
        client = inside(window=16, window_least=16, peers=f"127.0.0.1:{older.server_port}")
        for _ in range(4):
            assert client.post(CLASSES, json={"images": IMAGES}).status_code == 200
        said = client.get("/v1/drift/general", headers=SHOWN)
        older.shutdown()
    assert asked == ["/v1/drift/general"]
    assert said.status_code == 200 and said.json()["images"] == 16 and said.json()["drift"]["image"] < 9


# Numbers that are none, and what fails beside an answer -------------------------------------------------------------

ASKED: dict[str, dict[str, Any]] = {
    EMBED_IMAGES: {"images": IMAGES}, EMBED_TEXTS: {"texts": TEXTS}, CLASSES: {"images": IMAGES},
    PAIRS: {"images": IMAGES[:3], "texts": TEXTS, "paired": True},
}  # fmt: skip
SHOWN = {"Authorization": f"Bearer {TOKEN}"}


def spoil(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """From now on the second thing that a version embeds comes out as NaN."""
    from serving.inference import batching

    whole = batching.encode

    def encode(model: Any, items: Any) -> np.ndarray:
        out = whole(model, items)
        if model.version == version:
            out[1] = np.nan
        return out

    monkeypatch.setattr(batching, "encode", encode)


def metric(client: Any, name: str, **labels: str) -> float:
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items())


@pytest.mark.parametrize("path", ASKED)
def test_an_embedding_that_is_no_number_is_said_and_reaches_neither_window_nor_captures(inside, monkeypatch, path):
    client = inside(capture=1)
    kept = client.get("/v1/captures/general", headers=SHOWN).json()
    spoil(monkeypatch, "1")
    answer = client.post(path, json=ASKED[path])
    assert answer.status_code == 500
    assert "Version 1 of general gave NaN or infinity" in answer.json()["detail"] and "item 2" in answer.json()["detail"]
    assert metric(client, "clipft_refused_items_total", reason="non_finite") == 1
    seen = client.get("/v1/drift/general", headers=SHOWN).json()
    assert (seen["images"], seen["texts"], seen["values"]) == (0, 0, {})
    assert client.get("/v1/captures/general", headers=SHOWN).json() == kept
    assert metric(client, "clipft_predictions_total") == 0 and client.get("/healthz").status_code == 200
    monkeypatch.undo()
    assert client.post(path, json=ASKED[path]).status_code == 200


@pytest.mark.parametrize("answers", [True, False], ids=["canary", "shadow"])
def test_where_a_challengers_embedding_is_no_number_the_champion_answers(inside, monkeypatch, answers):
    client = inside()
    tried = {"version": "2", "share": 1, "answers": answers}
    assert client.put("/v1/shadows/general", json=tried, headers=SHOWN).status_code == 200
    spoil(monkeypatch, "2")
    answer = client.post(CLASSES, json=ASKED[CLASSES])
    assert (answer.status_code, answer.headers["x-clipft-model-version"]) == (200, "1")
    for _ in range(100):
        if (said := client.get("/v1/shadows/general").json())["requests"]:
            break
        time.sleep(0.1)
    assert (said["requests"], said["errors"]) == (1, 1)


@pytest.mark.parametrize(
    "what", ["monitor.add_images", "monitor.add_texts", "monitor.add_pairs", "monitor.remember_answer", "captures.sample"]
)
def test_what_fails_beside_an_answer_fails_no_answer_and_is_counted(inside, monkeypatch, what):
    client = inside(capture=1)
    before = {path: client.post(path, json=body).json() for path, body in ASKED.items()}
    place, method = what.split(".")
    calls = []

    def broken(*_: object) -> None:
        calls.append(what)
        raise MemoryError("no room for another row")

    monkeypatch.setattr(getattr(client.app.state.server, place), method, broken)
    for path, body in ASKED.items():
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.json()) == (200, before[path]), path
    assert calls and metric(client, "clipft_side_effect_failures_total", domain="general") == len(calls)


def test_a_window_that_cannot_be_measured_fails_no_answer_and_is_measured_again(inside, monkeypatch, caplog):
    from clipft_tasks.drift.window import Window

    client = inside(drift_seconds=0.1)
    whole = Window.measure
    monkeypatch.setattr(Window, "measure", lambda self: 1 / 0)
    assert client.post(CLASSES, json=ASKED[CLASSES]).status_code == 200
    for _ in range(100):
        if "cannot be measured" in caplog.text:
            break
        time.sleep(0.1)
    assert "cannot be measured" in caplog.text
    assert client.post(CLASSES, json=ASKED[CLASSES]).status_code == 200
    assert client.get("/healthz").status_code == 200
    monkeypatch.setattr(Window, "measure", whole)
    for _ in range(100):
        if metric(client, "clipft_window_items", kind="images") == 2 * len(IMAGES):
            return
        time.sleep(0.1)
    raise AssertionError("the window is not measured any more")

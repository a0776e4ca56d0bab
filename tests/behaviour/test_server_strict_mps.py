"""The server answers everything on a strict stand-in for MPS: one thread, no float64, no operator without a kernel."""

import time

import pytest
from fastapi.testclient import TestClient
from fixtures.live_server import CLASSES, EMBED_IMAGES, EMBED_TEXTS, IMAGES, PAIRS, TEXTS, TOKEN
from fixtures.strict_mps import StrictMps

from clipft_tasks.core.settings import settings

pytestmark = pytest.mark.slow


@pytest.fixture
def mps():
    with StrictMps() as device:
        yield device


@pytest.fixture
def client(own, mps, monkeypatch):
    from serving.inference.app import create_app
    from serving.inference.settings import ServingSettings

    monkeypatch.setenv("CLIPFT_SERVER_TOKEN", TOKEN)
    settings.cache_clear()
    app = create_app(ServingSettings(device="auto", backend="auto", poll_seconds=0, window_rate=1e6, drift_seconds=0))
    with TestClient(app, raise_server_exceptions=False) as client:
        for _ in range(300):
            if client.get("/readyz").status_code == 200:
                break
            time.sleep(0.1)
        yield client
    settings.cache_clear()


def test_every_kind_of_request(client, mps):
    said = []
    for _ in range(2):
        said = [
            client.post(EMBED_IMAGES, json={"images": IMAGES}),
            client.post(EMBED_TEXTS, json={"texts": TEXTS}),
            client.post(PAIRS, json={"images": IMAGES, "texts": TEXTS}),
            client.post(CLASSES, json={"images": IMAGES}),
            client.post(CLASSES, json={"images": IMAGES[:1], "classes": ["a cat", "a dog"], "explain": True}),
            client.post(PAIRS, json={"images": IMAGES[:1], "texts": TEXTS[:1], "explain": True}),
            client.post("/v1/embeddings", json={"model": "general", "input": TEXTS}),
        ]
        assert [answer.status_code for answer in said] == [200] * len(said), [
            a.text[:300] for a in said if a.status_code != 200
        ]
    for _ in range(300):
        runs = client.get("/v1/models").json()["data"][0]["backends"]["image"]
        if "not compared yet" not in runs["why"]:
            break
        time.sleep(0.1)
    assert "the model is on mps" in runs["why"] and runs["backend"] == "torch"
    assert client.get("/v1/drift/general").status_code == 200 and "clipft_items_total" in client.get("/metrics").text
    swapped = client.put(
        "/v1/models/general", json={"version": "2", "hold": True}, headers={"Authorization": f"Bearer {TOKEN}"}
    )
    assert swapped.status_code == 200, swapped.text
    assert client.post(CLASSES, json={"images": IMAGES}).status_code == 200
    assert mps.refusals == []

"""What makes the server quick changes no answer: a backend chosen beside the traffic, texts that are remembered."""

import time

import pytest
from fixtures.live_server import CLASSES, EMBED_IMAGES, EMBED_TEXTS, IMAGES, TEXTS, Server, close

pytestmark = pytest.mark.slow


def test_a_backend_takes_over_while_the_server_answers_and_texts_are_remembered_for_one_version(own, plain):
    with Server(own, backend="openvino", remember=True).ready() as server:
        until = time.monotonic() + 600
        while (live := server.get("/v1/models").json()["data"][0]["backends"])["text"]["why"] != "it is set":
            assert time.monotonic() < until, live
            assert close(server.post(EMBED_IMAGES, {"images": IMAGES}).json()["embeddings"], plain["1"].images())
            time.sleep(0.5)
        assert {tower: found["backend"] for tower, found in live.items()} == {"image": "openvino", "text": "openvino"}
        info = {key[1:] for key in server.metrics() if key[0] == "clipft_backend_info"}
        assert info == {("openvino", "general", "set", tower, "1") for tower in ("image", "text")}
        assert close(server.post(EMBED_IMAGES, {"images": IMAGES}).json()["embeddings"], plain["1"].images())

        def remembered(kind: str, outcome: str) -> float:
            return server.metrics().get(("clipft_remembered_total", kind, outcome), 0)

        for version in ("1", "2"):
            if version == "2":
                assert server.put("2").status_code == 200
            before = remembered("texts", "embedded"), remembered("texts", "found")
            for _ in range(3):
                assert close(
                    server.post(EMBED_TEXTS, {"texts": [*TEXTS, TEXTS[0]]}).json()["embeddings"],
                    plain[version].texts([*TEXTS, TEXTS[0]]),
                )
            assert (remembered("texts", "embedded"), remembered("texts", "found")) == (
                before[0] + len(TEXTS),
                before[1] + 2 * len(TEXTS),
            )
            body = {"images": IMAGES[0], "classes": ["red square", "blue square"]}
            first, again = (server.post(CLASSES, body).json() for _ in range(2))
            assert first == again

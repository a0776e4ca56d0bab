"""Embeddings as other people's clients ask for them: the real clients, against a real server."""

import base64
from typing import Any

import numpy as np
import openai
import pytest
import tiktoken
from fixtures.live_server import FILES, IMAGES, TEXTS, TOKEN, Server, close
from langchain_openai import OpenAIEmbeddings

pytestmark = pytest.mark.slow
PATH = "/v1/embeddings"
URIS = ["data:image/png;base64," + image["base64"] for image in IMAGES]


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none is needed", max_retries=0)


def test_openais_client_embeds_texts(client, plain):
    done = client.embeddings.create(model="general", input=TEXTS)  # asks for base64 and decodes it
    assert close([one.embedding for one in done.data], plain["1"].texts())
    assert [one.index for one in done.data] == [0, 1, 2] and done.model == "general@1"
    assert done.usage.prompt_tokens == done.usage.total_tokens > 2 * len(TEXTS)
    short, long = (client.embeddings.create(model="general", input=["word " * n]).usage.total_tokens for n in (1, 501))
    assert long == short + 500  # in full, though the model read the beginning alone
    assert close([client.embeddings.create(model="general", input=TEXTS[0]).data[0].embedding], plain["1"].texts()[:1])


def test_openais_client_embeds_texts_and_images_in_their_order(client, plain):
    mixed = [TEXTS[0], URIS[0], URIS[1], TEXTS[1]]
    text, image = plain["1"].texts(), plain["1"].images()
    done = client.embeddings.create(model="general@1", input=mixed, encoding_format="float")
    assert close([one.embedding for one in done.data], np.stack([text[0], image[0], image[1], text[1]]))


def test_openais_client_lists_the_models(client):
    [model] = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("general", "model", "clipft")
    assert model.version == "1" and model.classes and client.models.retrieve("general@1").id == "general"
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        client.models.retrieve("gpt-5")


def test_openais_client_is_told_what_is_wrong(client):
    with pytest.raises(openai.NotFoundError, match="text-embedding-3-small.*general"):
        client.embeddings.create(model="text-embedding-3-small", input="x")
    with pytest.raises(openai.ConflictError, match="Version 7 of general.*version 1 does"):
        client.embeddings.create(model="general@7", input="x")
    with pytest.raises(openai.UnprocessableEntityError, match="not trained for embeddings of 8 dimensions"):
        client.embeddings.create(model="general", input="x", dimensions=8)
    with pytest.raises(openai.UnprocessableEntityError, match="Input 3: .*not an image"):
        client.embeddings.create(model="general", input=["x", URIS[0], "data:image/png;base64,d29yZHM="])
    assert len(client.embeddings.create(model="general", input="x", dimensions=32).data[0].embedding) == 32


def test_langchain_embeds_documents_and_queries(server, plain):
    found = OpenAIEmbeddings(
        base_url=f"{server.url}/v1", api_key="none", model="general", check_embedding_ctx_length=False, max_retries=0
    )
    many = [f"{text} number {n}" for n in range(50) for text in TEXTS]  # more than one request of the other routes takes
    assert close(found.embed_documents(many), plain["1"].texts(many))
    assert close([found.embed_query(TEXTS[0])], plain["1"].texts()[:1])


def test_langchains_tokens_are_refused_by_the_name_of_the_setting(server, monkeypatch):
    bytewise = tiktoken.Encoding(
        "bytes", pat_str=r"\S+|\s+", mergeable_ranks={bytes([n]): n for n in range(256)}, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: bytewise)
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: bytewise)
    found = OpenAIEmbeddings(base_url=f"{server.url}/v1", api_key="none", model="general", max_retries=0)
    with pytest.raises(openai.UnprocessableEntityError, match="check_embedding_ctx_length=False"):
        found.embed_documents(TEXTS)


def test_messages_as_vllm_takes_them(server, plain):
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": URIS[0]}}, {"type": "text", "text": TEXTS[0]}]
    body = {"model": "general", "messages": [{"role": "user", "content": content}, {"role": "user", "content": TEXTS[1]}]}
    text, image = plain["1"].texts(), plain["1"].images()
    answer = server.post(PATH, body | {"encoding_format": "float"})
    assert close([one["embedding"] for one in answer.json()["data"]], np.stack([image[0], text[0], text[1]]))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]}]}, "not fetched"),
        ({"input": {"image": "http://x.example/a.png"}}, "not fetched"),
        ({"input": [{"video": "x"}]}, "neither a text nor an image"),
        ({"input": [[1, 2], [3]]}, "check_embedding_ctx_length"),
        ({"input": [1, 2]}, "check_embedding_ctx_length"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ""}, "input"),
        ({"input": [True]}, "input"),
        ({}, "either"),
        ({"input": "x", "messages": [{"content": "x"}]}, "either"),
        ({"input": ["x"] * 2049}, "2,049 inputs.*2048"),
        ({"messages": [{"content": ["x"] * 2000}, {"content": ["x"] * 49}]}, "2,049 inputs"),
        ({"input": "x", "encoding_format": "float16"}, "encoding_format"),
        ({"input": ["x", "y" * 4001]}, "Input 2: 4,001 characters"),
    ],
)
def test_what_cannot_be_embedded_is_refused_in_words(server, body, says):
    import re

    answer = server.post(PATH, body)
    assert answer.status_code in (413, 422) and re.search(says, answer.text) and len(answer.text) < 2000, answer.text


@pytest.mark.parametrize("item", [{"text": TEXTS[0]}, {"type": "text", "text": TEXTS[0]}, TEXTS[0]])
def test_an_item_may_be_an_object(server, plain, item):
    [one] = server.post(PATH, {"input": [item]}).json()["data"]
    assert close([one["embedding"]], plain["1"].texts()[:1])


@pytest.mark.parametrize("image", [URIS[0], IMAGES[0]["base64"]])
def test_an_image_may_be_an_object(server, plain, image):
    [one] = server.post(PATH, {"input": {"image": image}}).json()["data"]
    assert close([one["embedding"]], plain["1"].images(FILES[:1]))


def test_whole_numbers_and_signs_keep_the_direction(server, plain):
    expected = plain["1"].texts()

    def asked(encoding: str) -> np.ndarray:
        return np.array(
            [one["embedding"] for one in server.post(PATH, {"input": TEXTS, "encoding_format": encoding}).json()["data"]]
        )

    whole = asked("int8")
    assert whole.dtype == int and np.abs(whole).max(axis=1).tolist() == [127] * 3
    unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    assert (unit * expected).sum(axis=1).min() > 0.9999
    packed = asked("ubinary")
    assert (np.unpackbits(packed.astype(np.uint8), axis=1) == (expected > 0)).all()
    assert (asked("binary") == packed - 128).all()
    [one] = server.post(PATH, {"input": TEXTS[0], "encoding_format": "base64"}).json()["data"]
    assert np.abs(np.frombuffer(base64.b64decode(one["embedding"]), "<f4") - expected[0]).max() < 1e-4


def test_a_version_can_be_asked_for(server):
    for path, body in (("/v1/embed/texts", {"texts": "x"}), ("/v1/classify", {"images": IMAGES[0]}), (PATH, {"input": "x"})):
        assert server.post(path, body | {"version": "1"}).headers["x-clipft-model-version"] == "1"
        refused = server.post(path, body | {"version": "2"})
        assert refused.status_code == 409 and "version 1 does" in refused.json()["detail"]
        header = server.client.post(path, json=body, headers={"X-Clipft-Model-Version": "2"})
        assert header.status_code == 409
        assert (
            server.client.post(path, json=body | {"version": "1"}, headers={"X-Clipft-Model-Version": "2"}).status_code == 422
        )


def test_while_a_canary_is_tried_a_version_answers_alone_for_who_asks_for_it(server):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    trial = {"version": "2", "share": 1.0}
    assert server.client.put("/v1/shadows/general", json=trial, headers=headers).status_code == 200
    assert server.post("/v1/classify", {"images": IMAGES[0], "version": "2"}).status_code == 409  # a shadow answers nobody
    assert server.client.put("/v1/shadows/general", json=trial | {"answers": True}, headers=headers).status_code == 200

    def answering(**body: str) -> set[str]:
        return {server.post("/v1/classify", {"images": IMAGES[0]} | body).headers["x-clipft-model-version"] for _ in range(4)}

    assert (answering(), answering(version="1"), answering(version="2")) == ({"2"}, {"1"}, {"2"})
    assert server.client.delete("/v1/shadows/general", headers=headers).status_code == 200

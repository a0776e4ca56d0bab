"""What the server refuses, and how it says so: a real uvicorn process."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.live_server import CLASSES, EMBED_IMAGES, EMBED_TEXTS, FILES, GOOD, HUGE, PAIRS, TOKEN, Server, b64, png
from PIL import Image

pytestmark = pytest.mark.slow


SECOND = r'Image 2\b|"images", 1\b'  # a list counts from 0 in pydantic's way, from 1 in a sentence
BAD: dict[str, tuple[str, Any, str]] = {
    "not base64": (EMBED_IMAGES, {"images": [GOOD, {"base64": "!!!"}]}, f"({SECOND}).*not base64"),
    "a data URI without base64": (EMBED_IMAGES, {"images": [GOOD, {"base64": "data:image/png,x"}]}, f"({SECOND}).*not base64"),
    "text bytes": (EMBED_IMAGES, {"images": [GOOD, b64(b"just some words")]}, f"({SECOND}).*not an image"),
    "an image cut short": (EMBED_IMAGES, {"images": [GOOD, b64(FILES[1][: len(FILES[1]) // 2])]}, f"({SECOND}).*cut short"),
    "no bytes": (EMBED_IMAGES, {"images": [GOOD, b64(b"")]}, f"({SECOND}).*empty"),
    "too many pixels": (EMBED_IMAGES, {"images": [GOOD, HUGE]}, f"({SECOND}).*6000x6000 pixels.*25,000,000"),
    "an image by URL": (EMBED_IMAGES, {"images": [GOOD, {"url": "http://127.0.0.1/x.png"}]}, SECOND),
    "a number for an image": (EMBED_IMAGES, {"images": [GOOD, 7]}, SECOND),
    "too many images": (EMBED_IMAGES, {"images": [GOOD] * 65}, "65 images.*64"),
    "no images": (EMBED_IMAGES, {"images": []}, "images"),
    "images left out": (EMBED_IMAGES, {}, "images"),
    "too many texts": (EMBED_TEXTS, {"texts": ["x"] * 65}, "65 texts.*64"),
    "a long text": (EMBED_TEXTS, {"texts": ["x", "y" * 4001]}, r"Text 2\b.*4,001.*4,000"),
    "an empty text": (EMBED_TEXTS, {"texts": ["x", ""]}, '"texts", 1'),
    "a number for a text": (EMBED_TEXTS, {"texts": ["x", 7]}, '"texts", 1'),
    "no texts": (EMBED_TEXTS, {"texts": []}, "texts"),
    "an extra field": (EMBED_TEXTS, {"texts": ["x"], "temperature": 1}, "temperature"),
    "a domain that is no text": (EMBED_TEXTS, {"texts": ["x"], "domain": ["general"]}, "domain"),
    "an array for a body": (EMBED_TEXTS, ["x"], "object|dictionary"),
    "one class": (CLASSES, {"images": GOOD, "classes": ["red square"]}, "classes"),
    "no class": (CLASSES, {"images": GOOD, "classes": []}, "classes"),
    "an empty class": (CLASSES, {"images": GOOD, "classes": ["red square", ""]}, "classes|Text 2|Class 2"),
    "a bad image to classify": (CLASSES, {"images": [GOOD, b64(b"words")]}, SECOND),
    "a long text to compare": (PAIRS, {"images": GOOD, "texts": ["x", "y" * 4001]}, r"Text 2\b"),
}


def check_refusal(server: Server, answer: httpx.Response, says: str) -> None:
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["type"] == f"urn:clipft:error:{told['code']}" and told["status"] == answer.status_code and told["title"]
    assert isinstance(told["detail"], str)
    text = json.dumps(told)
    assert re.search(says, text), text
    assert "Traceback" not in text and len(text) < 2000  # what was sent is not sent back
    assert server.post(EMBED_TEXTS, {"texts": "still there?"}).status_code == 200


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_reason_that_names_the_item(server, case):
    path, body, says = BAD[case]
    check_refusal(server, server.post(path, body), says)


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b'{"texts": [', "application/json", "JSON"),
        (b"", "application/json", "JSON"),
        (b'{"texts": ["\xff\xfe"]}', "application/json", "JSON|UTF"),
        (b'{"texts": ["\\ud800"]}', "application/json", "JSON"),
        (b"[" * 50_000, "application/json", "JSON"),
        (b"no form at all", "multipart/form-data", "boundary"),
        (b"no form at all", "multipart/form-data; boundary=x", "."),
        (b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\ncut', "multipart/form-data; boundary=x", "."),
        (b"\x00\x01\x02", "application/octet-stream", "JSON"),
    ],
    ids=["cut", "empty", "not UTF-8", "half a surrogate", "deep", "no boundary", "no form", "cut form", "other type"],
)
def test_a_body_that_cannot_be_read_is_refused(server, content, kind, says):
    check_refusal(server, server.client.post(EMBED_TEXTS, content=content, headers={"Content-Type": kind}), says)


ASKING = {
    EMBED_IMAGES,
    EMBED_TEXTS,
    PAIRS,
    CLASSES,
    "/v1/embeddings",
    "/v1/bulk/embeddings",
    "/v1/bulk/classify",
    "/v1/search",
}  # the routes for everybody that are no GET


def test_every_route_that_changes_something_needs_the_token(server):
    paths = server.get("/openapi.json").json()["paths"]
    guarded = {(method, path) for path, item in paths.items() for method in item if method != "get" and path not in ASKING}
    assert {path for _, path in guarded} >= {"/v1/models/{domain}", "/v1/shadows/{domain}", "/v1/feedback"}
    assert {method for method, _ in guarded} == {"put", "post", "delete"} and paths.keys() > ASKING
    for method, path in guarded:
        place = re.sub(r"\{\w+\}", "general", path)
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"X-Clipft-Internal": "1"}):
            answer = server.client.request(method, place, json={}, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), (method, path)


@pytest.mark.parametrize("path", ["/v1/windows/general", "/v1/captures/general", "/v1/captures/general/00-0"])
def test_every_route_that_shows_what_others_sent_needs_the_token(server, path):
    assert server.get(path).status_code == 401


def test_a_form_with_a_bad_image_names_it(server):
    files = [("image", ("good.png", FILES[0], "image/png")), ("image", ("bad.png", b"words", "image/png"))]
    check_refusal(server, server.client.post(EMBED_IMAGES, files=files), r"Image 2\b")


def test_a_form_with_a_image_where_a_text_belongs_is_refused(server):
    files = [("image", ("a.png", FILES[0], "image/png")), ("text", ("b.png", FILES[1], "image/png"))]
    check_refusal(server, server.client.post(PAIRS, files=files), "text")


def test_a_body_over_the_limit_is_refused(server):
    check_refusal(
        server, server.client.post(EMBED_TEXTS, content=b" " * 2**21, headers={"Content-Type": "application/json"}), "1 MiB"
    )


def test_a_body_over_the_limit_is_refused_before_it_is_sent(server):
    host, port = "127.0.0.1", int(server.url.rsplit(":", 1)[1])
    with socket.create_connection((host, port), timeout=10) as line:
        line.sendall(f"POST {EMBED_TEXTS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {10**12}\r\n\r\n".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "9" * 5000])
def test_a_content_length_that_is_no_number_is_refused(server, length):
    host, port = "127.0.0.1", int(server.url.rsplit(":", 1)[1])
    with socket.create_connection((host, port), timeout=10) as line:
        line.sendall(f"POST {EMBED_TEXTS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 4")


def test_a_body_of_unknown_length_is_refused(server):
    check_refusal(server, server.client.post(EMBED_TEXTS, content=iter([b'{"texts":', b' "x"}'])), "Content-Length")


def test_a_narrow_image_cannot_fill_the_memory(server):
    """1 x 60,000 pixels are few; scaled to 32 on the shorter side they are 61 million."""

    if not Path("/proc/self/status").exists():
        pytest.skip("the peak is read from /proc")

    def peak() -> float:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    before = peak()
    answer = server.post(EMBED_IMAGES, {"images": b64(png(Image.new("L", (1, 60_000))))})
    assert answer.status_code in (200, 422)
    assert peak() - before < 100, "MiB more than before"

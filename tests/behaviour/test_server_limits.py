"""One client cannot stop the server: limits come before the work, and work that nobody waits for is taken back."""

import json
import socket
import threading
import time
from collections.abc import Callable

import httpx
import pytest
from fixtures.live_server import CLASSES, EMBED_IMAGES, EMBED_TEXTS, FILES, GOOD, PAIRS, TOKEN, Server, b64, png
from PIL import Image

pytestmark = pytest.mark.slow
JSON = {"Content-Type": "application/json"}
MANY = 180_000


def slowest_health(server: Server, work: Callable[[], None]) -> float:
    """The longest answer of /healthz while something else is asked."""
    done, slowest = threading.Event(), [0.0]

    def look() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not done.is_set():
                began = time.monotonic()
                assert client.get("/healthz").status_code == 200
                slowest[0] = max(slowest[0], time.monotonic() - began)
                time.sleep(0.01)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        work()
    finally:
        done.set()
        looking.join()
    return slowest[0]


WRONG = {
    "numbers for texts": (EMBED_TEXTS, b'{"texts": [' + b",".join([b"1"] * MANY) + b"]}"),
    "empty texts": (EMBED_TEXTS, b'{"texts": [' + b",".join([b'""'] * MANY) + b"]}"),
    "numbers for images": (EMBED_IMAGES, b'{"images": [' + b",".join([b"1"] * MANY) + b"]}"),
    "objects for images": (EMBED_IMAGES, b'{"images": [' + b",".join([b"{}"] * MANY) + b"]}"),
    "lists for classes": (CLASSES, b'{"images": [], "classes": [' + b",".join([b"[]"] * MANY) + b"]}"),
    "unknown keys": (PAIRS, b"{" + b",".join(b'"%d": 0' % n for n in range(90_000)) + b"}"),
    "unknown keys of an image": (EMBED_IMAGES, b'{"images": [{' + b",".join(b'"%d": 0' % n for n in range(90_000)) + b"}]}"),
    "a long key": (PAIRS, b'{"' + b"k" * 900_000 + b'": 0}'),
    "a long domain": (EMBED_TEXTS, b'{"texts": "x", "domain": "' + b"d" * 900_000 + b'"}'),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_body_full_of_wrong_items_is_refused_at_once_in_few_words(server, case):
    path, body = WRONG[case]
    answers = []
    worst = slowest_health(server, lambda: answers.append(server.client.post(path, content=body, headers=JSON)))
    [answer] = answers
    assert answer.status_code in (413, 422) and len(answer.content) < 4000
    assert answer.elapsed.total_seconds() < 5 and worst < 3  # of a core that others use too; it was 44


def test_more_errors_than_are_listed_are_counted(server):
    body = json.dumps({"texts": "x"} | {f"key {n}": 0 for n in range(40)})
    told = server.client.post(EMBED_TEXTS, content=body, headers=JSON).json()
    assert len(told["errors"]) == 11 and told["errors"][-1]["msg"] == "and 30 more"
    assert isinstance(told["detail"], str) and "key 1" in told["detail"]


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/feedback"), ("PUT", "/v1/models/general")])
def test_who_shows_no_token_is_told_so_before_a_body_is_read(server, method, path):
    answer = server.client.request(method, path, content=b"[" + b"[]," * 20_000, headers=JSON)
    assert answer.status_code == 401 and answer.elapsed.total_seconds() < 1
    host, port = "127.0.0.1", int(server.url.rsplit(":", 1)[1])
    with socket.create_connection((host, port), timeout=10) as line:  # no byte of the body is sent
        line.sendall(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 60000\r\n\r\n".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 401")
    shown = {"Authorization": f"Bearer {TOKEN}"}
    assert server.client.request(method, path, content=b" " * 70_000, headers=JSON | shown).status_code == 413


@pytest.mark.parametrize("odd", ["NaN", "Infinity", "1e999", '"\\ud800"'])
def test_a_setting_that_is_no_number_is_refused_as_one(server, odd):
    shown = {"Authorization": f"Bearer {TOKEN}"}
    for method, path, key in (
        ("PUT", "/v1/captures/general", "share"), ("PUT", "/v1/shadows/general", "share"),
        ("PUT", "/v1/models/general", "version"), ("POST", "/v1/feedback", "label"),
    ):  # fmt: skip
        answer = server.client.request(method, path, content=f'{{"{key}": {odd}}}', headers=JSON | shown)
        assert answer.status_code == 422, (path, answer.text)


FORM = '--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n{}\r\n--x{}\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data; boundary=x; charset=undefined", FORM.format("a", "--").encode()),
        ("multipart/form-data; boundary=x; charset=punycode", FORM.format("a", "--").encode()),
        ("multipart/form-data; boundary=x", FORM.format("a", "").encode()),
        ("multipart/form-data; boundary=x", FORM.format("grün", "--").encode("latin-1")),
        ("multipart/form-data; boundary=x", (FORM.format("a", "") * 2000 + "--x--\r\n").encode()),
    ],
    ids=["no charset", "an odd charset", "no end", "latin-1", "many fields"],
)
def test_a_form_that_says_something_else_than_it_seems_is_refused(server, kind, body):
    answer = server.client.post(EMBED_TEXTS, content=body, headers={"Content-Type": kind})
    assert answer.status_code in (413, 422), answer.text


def test_forms_and_json_come_as_clients_write_them(server):
    form = server.client.post(
        EMBED_TEXTS, content=FORM.format("a", "--").encode(), headers={"Content-Type": "Multipart/Form-Data; boundary=x"}
    )
    bom = server.client.post(EMBED_TEXTS, content=b'\xef\xbb\xbf{"texts": "a", "domain": null}', headers=JSON)
    assert form.status_code == bom.status_code == 200 and form.json() == bom.json()


def test_texts_of_which_only_the_beginning_was_seen_are_numbered(server):
    answer = server.post(EMBED_TEXTS, {"texts": ["short", "word " * 500, "x" * 40, "word " * 499 + "end"]})
    assert answer.headers["x-clipft-truncated"] == "2,4"
    assert "x-clipft-truncated" not in server.post(EMBED_TEXTS, {"texts": ["short", "x" * 40]}).headers
    assert server.post(PAIRS, {"images": GOOD, "texts": ["short", "word " * 500]}).headers["x-clipft-truncated"] == "2"


# Work that is taken back --------------------------------------------------------------------------------------------


def encoded(server: Server) -> float:
    return sum(value for key, value in server.metrics().items() if key[0] == "clipft_items_total")


def hung_up(server: Server) -> float:
    return sum(value for key, value in server.metrics().items() if key[0] == "clipft_requests_total" and "499" in key)


def test_what_a_client_no_longer_waits_for_is_not_computed(server):
    body = {"texts": ["word " * 700] * 64}
    before, gone = encoded(server), hung_up(server)
    for _ in range(12):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + EMBED_TEXTS, json=body, timeout=0.03)
    server.until(lambda: hung_up(server) == gone + 12, 10)
    assert encoded(server) - before < 12 * 64 / 2
    began = time.monotonic()
    assert server.post(EMBED_TEXTS, {"texts": "still there?"}).status_code == 200
    assert time.monotonic() - began < 2


def test_a_batch_that_is_refused_decodes_no_further(server):
    large = b64(png(Image.new("RGBA", (4900, 4900), (10, 20, 30, 200))))
    began = time.monotonic()
    answer = server.post(EMBED_IMAGES, {"images": [large] * 5 + [b64(b"words")]})
    assert answer.status_code == 422 and "Image 6" in answer.json()["detail"]
    assert server.post(EMBED_IMAGES, {"images": GOOD}).status_code == 200
    assert time.monotonic() - began < 2


def test_more_pixels_than_one_request_may_have_are_refused_before_they_are_decoded(server):
    large = b64(png(Image.new("L", (4900, 4900))))
    began = time.monotonic()
    answer = server.post(EMBED_IMAGES, {"images": [large] * 10})
    assert answer.status_code == 413 and "pixels" in answer.json()["detail"] and time.monotonic() - began < 2


def test_own_classes_are_embedded_once(server):
    body = {"images": GOOD, "classes": [f"class {n}" for n in range(70)]}
    first = server.post(CLASSES, body)
    assert first.status_code == 200, first.text
    before = server.metrics()["clipft_items_total", "general", "texts"]
    again = server.post(CLASSES, body)
    assert again.json() == first.json() and server.metrics()["clipft_items_total", "general", "texts"] == before


def test_a_body_that_does_not_come_is_not_waited_for_and_keeps_no_server_from_ending(own):
    with Server(own, body_seconds=1) as server:
        host, port = "127.0.0.1", int(server.url.rsplit(":", 1)[1])
        with socket.create_connection((host, port), timeout=10) as line:
            line.sendall(f"POST {EMBED_TEXTS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4000\r\n\r\n{{".encode())
            assert line.recv(100).startswith(b"HTTP/1.1 408")
        assert server.ready().post(EMBED_IMAGES, {"images": b64(FILES[0])}).status_code == 200
        with socket.create_connection((host, port), timeout=10) as line:
            line.sendall(f"POST {EMBED_TEXTS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4000\r\n\r\n{{".encode())
            time.sleep(0.2)
            assert server.stop() < 10

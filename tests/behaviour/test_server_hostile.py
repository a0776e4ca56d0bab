"""What strangers send to see what happens: each is answered in few words or hung up on, and the server goes on."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fixtures.live_server import EMBED_TEXTS, GOOD, TOKEN, Server

pytestmark = pytest.mark.slow

TEXT = b'{"texts": "a"}'
FIELD = b'--x\r\nContent-Disposition: form-data; name="text"'


def head(first: str, *more: str) -> bytes:
    return "\r\n".join([first, "Host: x", *more, "", ""]).encode()


def posted(body: bytes, *more: str, kind: str = "application/json") -> bytes:
    return head(f"POST {EMBED_TEXTS} HTTP/1.1", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more) + body


def form(body: bytes) -> bytes:
    return posted(body, kind="multipart/form-data; boundary=x")


CHUNKED = head(f"POST {EMBED_TEXTS} HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked")
RAW = {
    "a chunked body": (CHUNKED + b"e\r\n" + TEXT + b"\r\n0\r\n\r\n", 411),
    "a body of tiny chunks": (CHUNKED + b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n", 411),
    "two lengths": (head(f"POST {EMBED_TEXTS} HTTP/1.1", "Content-Length: 4", "Content-Length: 5") + b"aaaaa", 400),
    "a length and chunks": (head(f"POST {EMBED_TEXTS} HTTP/1.1", "Content-Length: 4", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "a compressed body": (posted(TEXT, "Content-Encoding: gzip"), 415),
    "a doubly compressed body": (posted(TEXT, "Content-Encoding: identity, gzip"), 415),
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", 200),
    "an address in full": (head("GET http://evil.example/healthz HTTP/1.1"), 200),
    "an address without a path": (head("GET http://evil.example HTTP/1.1"), 400),
    "all of the server": (head("OPTIONS * HTTP/1.1"), 404),
    "a tunnel": (head("CONNECT evil.example:443 HTTP/1.1"), 400),
    "an unknown method": (head("BREW / HTTP/1.1"), 400),
    "another protocol": (head("GET /healthz HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13"), 200),
    "a path of letters beyond ASCII": ("GET /ü HTTP/1.1\r\n\r\n".encode(), 400),
    "a folder above": (head("GET /v1/captures/general/%2e%2e%2f%2e%2e%2fanswers.db HTTP/1.1"), 404),
    "an id with slashes": (head("DELETE /v1/answers/a%2Fb%00c HTTP/1.1"), 404),
    "a folder above the pages": (head("GET /static/%2e%2e%2fapp.py HTTP/1.1"), 404),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500, 400),
    "a number beyond all": (posted(b'{"texts": "a", "dimensions": 1e400}'), 422),
    "a number of 100,000 digits": (posted(b'{"texts": "a", "dimensions": ' + b"1" * 100_000 + b"}"), 422),
    "no number": (posted(b'{"texts": "a", "dimensions": NaN}'), 422),
    "100,000 lists in one another": (posted(b'{"texts": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), 413),
    "half a letter": (posted(b'{"texts": "\\ud800"}'), 422),
    "a letter of nothing": (posted(b'{"texts": "\\u0000"}'), 200),
    "a text of 1,000,000 letters": (posted(b'{"texts": "' + b"a" * 1_000_000 + b'"}'), 422),
    "more than texts need": (posted(b" " * 5_000_000), 413),
    "5,000 fields": (form((FIELD + b"\r\n\r\na\r\n") * 5000 + b"--x--\r\n"), 413),
    "a file name of 1 MB": (form(FIELD + b'; filename="' + b"a" * 1_000_000 + b'"\r\n\r\na\r\n--x--\r\n'), 422),
    "a boundary of 60 kB": (posted(b"--x--", kind="multipart/form-data; boundary=" + "x" * 60_000), 422),
}  # fmt: skip


def said(server: Server, text: bytes) -> bytes:
    """What the server answers on a connection of its own, as far as it comes."""
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=20) as line:
        try:
            line.sendall(text)
        except OSError:
            pass  # it refused before all was sent
        answer = b""
        try:
            while b"\r\n\r\n" not in answer and (part := line.recv(65536)):
                answer += part
        except OSError:
            pass
        return answer


@pytest.mark.parametrize("case", RAW)
def test_a_strangers_request_is_answered_in_few_words(server, case):
    text, status = RAW[case]
    began = time.monotonic()
    answer = said(server, text)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert len(answer) < 8000 and time.monotonic() - began < 15


def test_every_answer_keeps_browsers_safe(server):
    for path in ("/", "/docs", "/v1/models", "/healthz", "/nothing", "/static/api.js"):
        answer = server.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy and "default-src 'none'" in policy


def test_requests_of_one_piece_end_where_too_many_are_sent_ahead(server):
    answer = b""
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=20) as line:
        line.sendall(head("GET /healthz HTTP/1.1") * 3)
        while answer.count(b"alive") < 3:
            answer += line.recv(65536)
        line.sendall(head("GET /healthz HTTP/1.1") * 5000)
        try:
            while part := line.recv(65536):
                answer += part
        except OSError:
            pass
    assert answer.count(b"alive") < 100
    assert server.get("/healthz").status_code == 200


def test_an_address_that_keeps_asking_is_told_so_while_another_is_served(own):
    options = {"address_rate": 5, "address_burst": 20, "open": "true"}
    with Server(own, **options) as server:
        server.ready()
        from_elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(base_url=server.url, transport=from_elsewhere, timeout=30) as other:
            for _ in range(60):  # alone: as often as it likes
                assert server.post(EMBED_TEXTS, {"texts": "a"}).status_code == 200
            assert other.post("/v1/embed/images", json={"images": GOOD}).status_code == 200
            with ThreadPoolExecutor(20) as pool:
                answers = list(pool.map(server.get, ["/v1/nothing"] * 20))
            assert 429 in {answer.status_code for answer in answers} <= {404, 429}
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert refused.headers["retry-after"] == "1" and "while others ask" in refused.text
            assert refused.elapsed.total_seconds() > 0.9  # asking on at once gains nothing
            assert other.get("/v1/models").status_code == 200
            with_key = server.client.get("/v1/models", headers={"Authorization": f"Bearer {TOKEN}"})
            assert with_key.status_code == 200
            told = server.client.get("/v1/models", headers={"X-Forwarded-For": "198.51.100.7"})
            assert told.status_code == 200  # 127.0.0.1 may say for whom it asks


def test_a_server_that_is_told_to_end_says_so_before_it_closes(own):
    with Server(own, drain_seconds=1.5) as server:
        assert server.ready().get("/readyz").json()["ready"]
        server.process.terminate()
        time.sleep(0.3)
        answer = server.get("/readyz")
        assert answer.status_code == 503 and json.loads(answer.text)["live"]
        assert server.post(EMBED_TEXTS, {"texts": "still there?"}).status_code == 200
        assert server.process.wait(20) is not None

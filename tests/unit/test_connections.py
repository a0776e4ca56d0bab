"""Connections that cost too much are ended, and others go on: uvicorn with our protocol, in this process."""

import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from fixtures.ports import free_port

from serving.http import connections
from serving.http.connections import GuardedProtocol


async def app(scope, receive, send) -> None:
    if scope["type"] != "http":
        return
    body = b"x" * 20_000_000 if scope["path"] == "/large" else b"ok"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "HEAD_SECONDS", 0.5)
        patch.setattr(connections, "CONNECTIONS", 20)
        patch.setattr(connections, "UNREAD_SECONDS", 0.5)
        patch.setattr(connections, "UNREAD_BYTES", 45_000_000)
        port = free_port()
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=port, http=GuardedProtocol, log_config=None, lifespan="off")
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield port
        server.should_exit = True
        thread.join(10)


def opened(port: int, text: bytes = b"") -> socket.socket:
    line = socket.create_connection(("127.0.0.1", port), timeout=5)
    line.sendall(text)
    return line


def said(line: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    with line:
        parts = []
        try:
            while part := line.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


@pytest.mark.parametrize("text", [b"", b"GET / HTTP/1.1\r\nX-A: "], ids=["nothing", "half a head"])
def test_a_head_that_does_not_come_is_not_waited_for(port, text):
    began = time.monotonic()
    assert said(opened(port, text)) == b"" and time.monotonic() - began < 3


def test_a_head_that_drips_does_not_live_longer(port):
    line, began = opened(port, b"GET / HTTP/1.1\r\nX-A: "), time.monotonic()
    with pytest.raises(OSError):
        for _ in range(100):
            line.sendall(b"a")
            time.sleep(0.05)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "head",
    [b"X-A: " + b"a" * 200_000 + b"\r\n", b"".join(b"X-%d: a\r\n" % n for n in range(500)), b"X-A: " + b"a" * 5_000_000],
    ids=["a long header", "many headers", "a header without end"],
)
def test_a_head_that_is_too_large_is_refused(port, head):
    line = opened(port)
    try:
        line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
    except OSError:  # it was refused before all was sent
        return line.close()
    answer = said(line)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431")


def test_a_connection_serves_one_request_after_the_other(port):
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(5):
            assert client.get("/", headers={"X-A": "a" * 5000}).text == "ok"
        time.sleep(0.8)  # it was closed meanwhile, which a client handles
        assert client.post("/", content=b"x" * 300_000).text == "ok"


def test_of_too_many_connections_the_one_that_waited_longest_goes(port):
    lines = [opened(port, b"GET / HTTP/1.1\r\nX-A: ") for _ in range(40)]
    assert httpx.get(f"http://127.0.0.1:{port}/").text == "ok"
    assert said(lines[0]) == b""
    for line in lines[1:]:
        line.close()


class Transport:
    is_closed = False

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


def connection(address: str, waits_since: float, asked_at: float = 0.0) -> GuardedProtocol:
    made = GuardedProtocol.__new__(GuardedProtocol)
    made.address, made.waits_since, made.asked_at, made.transport = address, waits_since, asked_at, Transport()
    return made


def test_of_too_many_connections_one_of_the_address_that_has_most_goes():
    asks = float("inf")
    first, greedy = connection("a", 1.0), [connection("b", 5.0), connection("b", asks, 6.0), connection("b", asks, 7.0)]
    for expected in (greedy[0], greedy[2]):  # who waits, then who asked last
        connections._make_room([first, *greedy])
        assert [c for c in (first, *greedy) if c.transport.is_closed] == [c for c in greedy if c.transport.is_closed]
        assert expected.transport.is_closed
    assert not greedy[1].transport.is_closed


def test_an_answer_that_nobody_reads_is_not_kept(port):
    line = opened(port, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    time.sleep(2)
    assert len(said(line)) < 20_000_000


def test_an_answer_that_is_read_slowly_comes_whole(port):
    line, came = opened(port, b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), 0
    began = time.monotonic()
    with line:
        while part := line.recv(400_000):
            came += len(part)
            time.sleep(0.02)
    assert came > 20_000_000 and time.monotonic() - began > 0.6


def test_of_answers_that_many_connections_leave_unread_only_so_much_is_kept(port):
    lines = [opened(port, b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") for _ in range(5)]
    whole = [len(said(line)) > 20_000_000 for line in lines]
    assert whole.count(True) >= 2 and whole.count(False) >= 1


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"\x16\x03\x01", b"400"),
        (b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"400"),
    ],
    ids=["no HTTP", "no path", "a tunnel"],
)
def test_what_is_no_request_is_refused_once(port, text, status):
    answer = said(opened(port, text + b"\r\n" * 10))
    assert answer.startswith(b"HTTP/1.1 " + status) and answer.count(b"HTTP/1.1 ") == 1


def test_requests_that_are_sent_far_ahead_are_not_all_answered(port):
    answer = said(opened(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 5000))
    assert answer.count(b"200 OK") < 50

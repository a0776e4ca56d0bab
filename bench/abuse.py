"""What one hostile client costs everybody else: python -m bench.abuse [--home HOME]

A server as delivered, with the champion of HOME's registry (a home in which `make demo` ran), and a good client that classifies one
128 px image after the other. It is measured alone, then beside each attack. Printed: the good client's p50 and p99 in seconds, its
failures, the server's memory. The last line is JSON: `ok` says whether every p99 was at most three times the quiet one and memory at
most 1.5 times. Needs Linux; takes about three minutes.
"""

import argparse
import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

SECONDS = 12.0
SLOWER, LARGER = 3.0, 1.5
TOKEN = "bench-abuse-token-0123456789abcdef0123"


@dataclass(frozen=True)
class Row:
    """One attack: the good client's seconds, how many times its quiet p99, its failures, and the server's peak over its quiet memory."""

    attack: str
    p50: float
    p99: float
    slower: float
    lost: int
    memory: float


def png(mode: str, side: int, format: str = "PNG") -> str:
    out = io.BytesIO()
    values = np.zeros((side, side), np.uint16) if mode == "I;16" else None
    image = Image.fromarray(values) if values is not None else Image.new(mode, (side, side))
    image.save(out, format)
    return base64.b64encode(out.getvalue()).decode()


class Server:
    """uvicorn with the options of the Procfile."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        env = {**os.environ, "CLIPFT_HOME": str(home), "CLIPFT_SERVER_TOKEN": TOKEN, "CLIPFT_SERVING_DEVICE": "cpu"}
        command = [
            sys.executable, "-m", "uvicorn", "serving.inference.app:create_app", "--factory", "--port", str(self.port),
            "--log-level", "critical", "--http", "serving.inference.connections:GuardedProtocol",
        ]  # fmt: skip
        self.process = subprocess.Popen(command, env=env)
        until = time.monotonic() + 300
        while time.monotonic() < until:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            time.sleep(0.5)
        self.process.kill()
        raise SystemExit(f"No model of {home} became live.")

    def memory(self, what: str = "VmRSS") -> float:
        """MiB."""
        said = Path(f"/proc/{self.process.pid}/status").read_text().split(f"{what}:")[1]
        return int(said.split()[0]) / 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


def good_client(server: Server, seconds: float) -> tuple[list[float], int]:
    """Seconds of each answer, and how many were none."""
    body = {"images": {"base64": png("RGB", 128)}}
    took, failed, until = [], 0, time.monotonic() + seconds
    with httpx.Client(base_url=server.url, timeout=60) as client:
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                failed += client.post("/v1/classify", json=body).status_code != 200
            except httpx.HTTPError:
                failed += 1
            took.append(time.monotonic() - began)
    return took, failed


# Attacks: each is one turn of one hostile client ---------------------------------------------------------------------


def posting(
    path: str, body: bytes, timeout: float = 60, method: str = "POST", kind: str = "application/json"
) -> Callable[[str], None]:
    def turn(url: str) -> None:
        with suppress(httpx.HTTPError):
            httpx.request(method, url + path, content=body, headers={"content-type": kind}, timeout=timeout)

    return turn


def images(count: int, image: str, more: str = "") -> bytes:
    return json.dumps({"images": [{"base64": image}] * count + ([{"base64": more}] if more else [])}).encode()


def open_connections(text: bytes, count: int) -> Callable[[str], None]:
    def turn(url: str) -> None:
        port, lines = int(url.rsplit(":", 1)[1]), []
        for _ in range(count):
            with suppress(OSError):
                line = socket.create_connection(("127.0.0.1", port), timeout=5)
                line.sendall(text)
                lines.append(line)
        time.sleep(3)
        for line in lines:
            line.close()

    return turn


def attacks() -> dict[str, tuple[int, Callable[[str], None]]]:
    """By name: how many clients at once, and what each does again and again."""
    half_body = b"POST /v1/embed/images HTTP/1.1\r\nHost: x\r\nContent-Length: 48000000\r\n\r\n" + b" " * 60_000
    charset = "multipart/form-data; boundary=x; charset=undefined"
    return {
        "1 MB of numbers for texts": (2, posting("/v1/embed/texts", b'{"texts":[' + b",".join([b"1"] * 500_000) + b"]}")),
        "40 MB of empty texts": (2, posting("/v1/embed/images", b'{"images":[' + b",".join([b'""'] * 13_000_000) + b"]}")),
        "1 MB of unknown keys": (2, posting("/v1/embed/texts", b"{" + b",".join(b'"%d":0' % n for n in range(100_000)) + b"}")),
        "4 MB without a token": (2, posting("/v1/feedback", b"[" + b"[]," * 1_400_000)),
        "8 deep gray images of 25 Mpx": (2, posting("/v1/embed/images", images(8, png("I;16", 5000)))),
        "16 large images and a broken one": (2, posting("/v1/embed/images", images(16, png("RGBA", 5000), "AAAA"))),
        "64 texts, hung up": (12, posting("/v1/embed/texts", json.dumps({"texts": ["word " * 60] * 64}).encode(), 0.05)),
        "64 own classes of 4,000 letters": (
            1, posting("/v1/classify", json.dumps({"images": {"base64": png("L", 64)}, "classes": [f"{n} " + "word " * 790 for n in range(64)]}).encode()),
        ),
        "forms of an odd charset": (4, posting("/v1/embed/texts", b"--x--", kind=charset)),
        "drift, asked again and again": (16, posting("/v1/drift/industrial", b"", method="GET")),
        "800 half heads": (1, open_connections(b"GET / HTTP/1.1\r\nX-A: ", 800)),
        "100 half bodies": (1, open_connections(half_body, 100)),
        "5 MB of headers": (2, open_connections(b"GET / HTTP/1.1\r\n" + b"X-A: " + b"a" * 5_000_000, 1)),
    }  # fmt: skip


@contextmanager
def under(attack: tuple[int, Callable[[str], None]], server: Server) -> Iterator[None]:
    """While an attack goes on: in processes of its own would be fairer still, but threads mostly wait."""
    clients, turn = attack
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            turn(server.url)

    threads = [threading.Thread(target=go_on, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".clipft"))
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--only", default="", help="attacks whose names contain this")
    asked = parser.parse_args()
    server = Server(asked.home.resolve())
    try:
        good_client(server, 3)  # warm
        quiet, failed = good_client(server, asked.seconds)
        memory, p99 = server.memory(), float(np.quantile(quiet, 0.99))
        line = "{:36} {:>7.3f} {:>7.3f} {:>6.1f}x {:>5} {:>7.0f} {:>5.2f}x"
        print(f"{'attack':36} {'p50':>7} {'p99':>7} {'':7} {'lost':>5} {'MiB':>7}")
        print(line.format("none", float(np.median(quiet)), p99, 1, failed, memory, 1))
        rows: list[Row] = []
        for name, attack in attacks().items():
            if asked.only not in name:
                continue
            server.forget_peak()
            with under(attack, server):
                took, lost = good_client(server, asked.seconds)
            slow = float(np.quantile(took, 0.99))
            row = Row(name, float(np.median(took)), slow, slow / p99, lost, server.memory("VmHWM") / memory)
            print(line.format(name, row.p50, row.p99, row.slower, lost, row.memory * memory, row.memory), flush=True)
            rows.append(row)
            good_client(server, 2)
        slower, larger, lost = max(r.slower for r in rows), max(r.memory for r in rows), sum(r.lost for r in rows)
        ok = slower <= SLOWER and larger <= LARGER and not lost
        told = {"slower": slower, "memory": larger, "lost": lost, "ok": ok}
        print(json.dumps({"quiet": {"p99": p99, "MiB": memory}, "attacks": [asdict(row) for row in rows], **told}))
    finally:
        server.process.terminate()
        server.process.wait(30)


if __name__ == "__main__":
    main()

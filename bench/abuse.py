"""What one hostile client costs everybody else: python -m bench.abuse [--home HOME]

A server as delivered, and a good client that classifies one 128 px image after the other. It is measured quiet, then beside an attack, then
quiet again, and so on, so that both see the same machine. Attackers are processes of their own on other addresses of this machine
(127.0.0.x), at the lowest priority: the cores that they use up are not the server's in real life. `--same` lets them share the good
client's address, as behind one proxy that does not say for whom it asks.

HOME is a home with a champion (`make demo`); without it, `--start` (the starter) is trained for a moment on made images.

Printed: the good client's p50 and p99 in seconds, its failures, the server's memory. The last line is JSON: `ok` says whether every p99
was at most three times that of the quiet turns around it and memory at most 1.5 times. Needs Linux and two cores that do nothing
else; takes about ten minutes.
"""

import argparse
import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
from PIL import Image

from .serving.peers import has_chosen

PROJECT = Path(__file__).resolve().parents[1]
SECONDS = 8.0
SLOWER, LARGER = 3.0, 1.5
TOKEN = "bench-abuse-token-0123456789abcdef0123"
HOST, GOOD = "127.0.0.1", "127.0.0.1"


@dataclass(frozen=True)
class Row:
    """One attack: the good client's seconds, how many times its quiet p99, its failures, and the server's peak over its quiet memory."""

    attack: str
    p50: float
    p99: float
    slower: float
    lost: int
    memory: float


def png_of(mode: str, side: int, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    values = np.zeros((side, side), np.uint16) if mode == "I;16" else None
    image = Image.fromarray(values) if values is not None else Image.new(mode, (side, side))
    image.save(out, format)
    return out.getvalue()


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


# The server -----------------------------------------------------------------------------------------------------------


def register(home: Path, start: str) -> None:
    """Train a champion of `home` for a moment: domain general, 128 pixels, made images."""
    os.environ["CLIPFT_HOME"] = str(home)
    from clipft_tasks.spec import RunSpec
    from clipft_tasks.stages import chain
    from clipft_tasks.stages.call import StageOutput

    source, random = home / "source", np.random.default_rng(0)
    source.mkdir(parents=True)
    lines = ["image,caption,label"]
    for n in range(120):
        color = ("red", "blue")[n % 2]
        values = random.integers(0, 60, (160, 160, 3))
        values[..., 0 if color == "red" else 2] += 180
        Image.fromarray(values.astype(np.uint8)).save(source / f"{n}.png")
        lines.append(f"{n}.png,a {color} image,{color}")
    (source / "images.csv").write_text("\n".join(lines) + "\n")
    spec = RunSpec.from_flat(
        {
            "domain": "general", "source": str(source / "images.csv"), "model.start": start, "train.epochs": 1,
            "resolution.train": 128, "resolution.evaluate": [128], "gate.rules": ["gain(score) >= -1"], "evaluate.bootstrap": 100,
        }
    )  # fmt: skip
    done: dict[str, StageOutput] = {}
    for name in chain.stages_of(spec):
        done[name] = chain.run_stage(name, spec, done.__getitem__)
        if name == "promote":
            return


class Server:
    """uvicorn with the options of the Procfile."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port = free.getsockname()[1]
        env = {**os.environ, "CLIPFT_HOME": str(home), "CLIPFT_SERVER_TOKEN": TOKEN, "CLIPFT_SERVING_DEVICE": "cpu"}
        command = next(
            line.partition(":")[2].split()
            for line in (PROJECT / "Procfile").read_text().splitlines()
            if line.startswith("server:")
        )
        asked = [str(self.port) if word == "$CLIPFT_SERVER_PORT" else word for word in command]
        self.process = subprocess.Popen([sys.executable, "-m", *asked], env=env, cwd=PROJECT, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 300
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(OSError, HTTPException):
                if asking(self.port, GOOD, "GET", "/readyz")() == 200 and has_chosen(f"http://{HOST}:{self.port}"):
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


def asking(
    port: int,
    address: str,
    method: str,
    path: str,
    body: bytes | None = None,
    kind: str = "application/json",
    timeout: float = 60,
) -> Callable[[], int]:
    """What sends a request again and again over one connection, and returns the status of the answer."""
    http = HTTPConnection(HOST, port, timeout=timeout, source_address=(address, 0))

    def ask() -> int:
        try:
            http.request(method, path, body=body, headers={"Content-Type": kind} if body is not None else {})
            answer = http.getresponse()
            answer.read()
            return answer.status
        except (OSError, HTTPException):
            http.close()
            raise

    return ask


def good_client(server: Server, seconds: float) -> tuple[list[float], int]:
    """Seconds of each answer, and how many were none."""
    body = json.dumps({"images": {"base64": b64(png_of("RGB", 128))}}).encode()
    ask = asking(server.port, GOOD, "POST", "/v1/classify", body)
    took, failed, until = [], 0, time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            failed += ask() != 200
        except (OSError, HTTPException):
            failed += 1
        took.append(time.monotonic() - began)
    return took, failed


# Attacks: each is one turn of one hostile client, on a port and from an address ---------------------------------------


Turn = Callable[[int, str], Callable[[], object]]


def posting(path: str, body: bytes | None, method: str = "POST", kind: str = "application/json", timeout: float = 60) -> Turn:
    return lambda port, address: asking(port, address, method, path, body, kind, timeout)


def images(count: int, image: bytes, more: str = "") -> bytes:
    return json.dumps({"images": [{"base64": b64(image)}] * count + ([{"base64": more}] if more else [])}).encode()


def open_connections(text: bytes, count: int, seconds: float = 3) -> Turn:
    """So many connections that send this, read nothing, and are closed after a while."""

    def prepare(port: int, address: str) -> Callable[[], None]:
        def turn() -> None:
            lines = []
            for _ in range(count):
                with suppress(OSError):
                    line = socket.create_connection((HOST, port), timeout=5, source_address=(address, 0))
                    lines.append(line)
                    line.sendall(text)
            time.sleep(seconds)
            for line in lines:
                line.close()

        return turn

    return prepare


def head(method: str, path: str, *more: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *more, "", ""]).encode()


def attacks() -> dict[str, tuple[int, Turn]]:
    """By name: how many clients at once, and what each does again and again."""
    texts = json.dumps({"texts": ["word " * 60] * 64}).encode()
    half_body = head("POST", "/v1/embed/images", "Content-Length: 48000000") + b" " * 60_000
    unread = head("POST", "/v1/embed/texts", "Content-Type: application/json", f"Content-Length: {len(texts)}") + texts
    charset = "multipart/form-data; boundary=x; charset=undefined"
    field = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\na\r\n'
    classes = {"images": {"base64": b64(png_of("L", 64))}, "classes": [f"{n} " + "word " * 790 for n in range(64)]}
    return {
        "1 MB of numbers for texts": (2, posting("/v1/embed/texts", b'{"texts":[' + b",".join([b"1"] * 500_000) + b"]}")),
        "40 MB of empty texts": (2, posting("/v1/embed/images", b'{"images":[' + b",".join([b'""'] * 13_000_000) + b"]}")),
        "1 MB of unknown keys": (2, posting("/v1/embed/texts", b"{" + b",".join(b'"%d":0' % n for n in range(100_000)) + b"}")),
        "40 MB of one text": (2, posting("/v1/embed/images", b'{"images":["' + b"a" * 40_000_000 + b'"]}')),
        "2 images of 15 MB that are none": (2, posting("/v1/embed/images", images(2, b"\0" * 15_000_000))),
        "4 MB without a token": (2, posting("/v1/feedback", b"[" + b"[]," * 1_400_000)),
        "8 deep gray images of 25 Mpx": (2, posting("/v1/embed/images", images(8, png_of("I;16", 5000)))),
        "16 large images and a broken one": (2, posting("/v1/embed/images", images(16, png_of("RGBA", 5000), "AAAA"))),
        "64 images of 500 px": (8, posting("/v1/embed/images", images(64, png_of("RGB", 500, "JPEG")))),
        "64 texts, answers awaited": (12, posting("/v1/embed/texts", texts)),
        "64 texts, hung up": (12, posting("/v1/embed/texts", texts, timeout=0.05)),
        "one text, 128 clients": (128, posting("/v1/embed/texts", b'{"texts": "a word"}')),
        "64 own classes of 4,000 letters": (1, posting("/v1/classify", json.dumps(classes).encode())),
        "forms of an odd charset": (4, posting("/v1/embed/texts", b"--x--", kind=charset)),
        "forms of 100,000 fields": (2, posting("/v1/embed/texts", field * 40_000 + b"--x--", kind="multipart/form-data; boundary=x")),
        "drift of no domain, again and again": (16, posting("/v1/drift/nothing", None, method="GET")),
        "metrics, again and again": (16, posting("/metrics", None, method="GET")),
        "answers that nobody reads": (1, open_connections(unread * 8, 50)),
        "20,000 requests in one piece": (2, open_connections(head("GET", "/v1/models") * 20_000, 1, 1)),
        "800 half heads": (1, open_connections(b"GET / HTTP/1.1\r\nX-A: ", 800)),
        "100 half bodies": (1, open_connections(half_body, 100)),
        "5 MB of headers": (2, open_connections(b"GET / HTTP/1.1\r\n" + b"X-A: " + b"a" * 5_000_000, 1)),
    }  # fmt: skip


def play(name: str, port: int, address: str) -> None:
    """Attack until the process is ended."""
    os.nice(19)
    clients, prepare = attacks()[name]

    def go_on() -> None:
        turn = prepare(port, address)
        while True:
            began = time.monotonic()
            with suppress(OSError, HTTPException):
                turn()
                continue
            time.sleep(max(0.0, 0.02 - (time.monotonic() - began)))  # refused at once: as fast as a network would be

    threads = [threading.Thread(target=go_on, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    print("begun", flush=True)
    threading.Event().wait()


@contextmanager
def under(name: str, server: Server, addresses: list[str]) -> Iterator[None]:
    """While an attack goes on, from each of these addresses."""
    command = [sys.executable, "-m", "bench.abuse", "--play", name, "--port", str(server.port), "--address"]
    players = [subprocess.Popen([*command, one], cwd=PROJECT, stdout=subprocess.PIPE) for one in addresses]
    try:
        for player in players:
            assert player.stdout is not None and player.stdout.readline() == b"begun\n"
        time.sleep(0.5)
        yield
    finally:
        for player in players:
            player.kill()
            player.wait()


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(server: Server, asked: argparse.Namespace) -> dict[str, object]:
    """Quiet and attack in turns. Returns what the last line says."""
    addresses = [GOOD] if asked.same else [f"127.0.0.{n + 2}" for n in range(asked.attackers)]
    good_client(server, 3)  # warm
    memory = server.memory()
    line = "{:36} {:>7.3f} {:>7.3f} {:>6.1f}x {:>5} {:>7.0f} {:>5.2f}x"
    print(f"{'attack':36} {'p50':>7} {'p99':>7} {'':7} {'lost':>5} {'MiB':>7}")
    rows: list[Row] = []
    before, _ = good_client(server, asked.seconds)
    print(line.format("none", float(np.median(before)), float(np.quantile(before, 0.99)), 1, 0, memory, 1), flush=True)
    quiet = list(before)
    for name in attacks():
        if asked.only not in name:
            continue
        server.forget_peak()
        with under(name, server, addresses):
            took, lost = good_client(server, asked.seconds)
        peak = server.memory("VmHWM")
        good_client(server, 2)
        after, failed = good_client(server, asked.seconds / 2)
        p99, slow = float(np.quantile(before + after, 0.99)), float(np.quantile(took, 0.99))
        row = Row(name, float(np.median(took)), slow, slow / p99, lost + failed, peak / memory)
        print(line.format(name, row.p50, row.p99, row.slower, row.lost, peak, row.memory), flush=True)
        rows.append(row)
        quiet += after
        before = after
    slower, larger, lost = max(r.slower for r in rows), max(r.memory for r in rows), sum(r.lost for r in rows)
    told = {"slower": slower, "memory": larger, "lost": lost, "ok": slower <= SLOWER and larger <= LARGER and not lost}
    quiet_row = {"p50": float(np.median(quiet)), "p99": float(np.quantile(quiet, 0.99)), "MiB": memory}
    return {"quiet": quiet_row, "same_address": asked.same, "attacks": [asdict(row) for row in rows], **told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="of a champion; none: one is trained for this")
    parser.add_argument("--start", default="starter", help="what is trained where there is no home (`model.start`)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each turn")
    parser.add_argument("--only", default="", help="attacks whose names contain this")
    parser.add_argument("--attackers", type=int, default=1, help="addresses that attack at once")
    parser.add_argument("--same", action="store_true", help="attack from the good client's own address")
    for name in ("--play", "--address", "--port"):  # of an attacking process
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.play:
        return play(asked.play, int(asked.port), asked.address)
    with tempfile.TemporaryDirectory() as folder:
        home = asked.home.resolve() if asked.home else Path(folder) / "home"
        if not (home / "mlflow").exists():
            register(home, asked.start)
        server = Server(home)
        try:
            print(json.dumps(measure(server, asked)))
        finally:
            server.process.terminate()
            server.process.wait(30)


if __name__ == "__main__":
    main()

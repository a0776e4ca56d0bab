"""The server beside others: python -m bench.serving [--seconds 8] [--rounds 3] [--peers clipft,FastAPI] [--clients 1,8]

One request holds one 640x480 JPEG or one text. All servers have the same towers, all the cores, and run at once but are asked in turns:
a round asks each for some seconds at each number of clients. Others are installed into environments of their own under --place; one
that cannot be has a line that says why. Printed for each tower, kind and number of clients: requests a second, requests a second of
processor time, p50 and p99 in milliseconds, memory. Numbers are medians over the rounds. The last line is JSON, with the ratio of
requests a second to the best other server. After a turn, a server works off what nobody waits for any more before the next one is asked.
The load has a process of its own, which takes its part of the cores from all alike. The whole takes about
2 x 3 x clients x servers x rounds x (seconds + 3) seconds: 75 minutes as delivered, 10 with --seconds 3 --rounds 1.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from . import towers
from .peers import OURS, PEERS, PROJECT, CannotRunError, Running

KINDS = ("images", "texts", "repeated texts")


@dataclass(frozen=True)
class Row:
    """One server at one number of clients: medians over the rounds."""

    tower: str
    kind: str
    clients: int
    server: str
    rate: float
    per_core: float
    p50: float
    p99: float
    memory: float
    errors: float


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def ask(server: Running, kind: str, clients: int, seconds: float, bodies: Path) -> dict[str, float]:
    """One turn of one server."""
    path = (server.peer.image if kind == "images" else server.peer.text)[0]
    command = [sys.executable, "-m", "bench.serving.client", server.port, path, clients, seconds, bodies]
    before = server.cpu()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, cwd=PROJECT)
    found: dict[str, float] = json.loads(done.stdout)
    used = server.cpu() - before
    server.settle()
    rate = found["answers"] / seconds
    return found | {"rate": rate, "per_core": rate * (seconds + 1) / used if used else 0.0, "memory": server.memory()}


def started(tower: str, wanted: Sequence[str], place: Path, cores: int, stack: ExitStack) -> Iterator[Running]:
    """Each server, ready; one that cannot run here says why."""
    package = towers.write_home(place / tower, tower)
    if tower != "starter":
        _write_for_transformers(package)
    image, text = towers.images()[0], towers.texts(True)[0]
    for peer in PEERS:
        if wanted and not any(name.lower() in peer.name.lower() for name in wanted):
            continue
        try:
            server = Running(peer, tower, package, place, free_port(), cores)
        except CannotRunError as error:
            print(f"{peer.name}: no numbers, {error}", flush=True)
            continue
        stack.callback(server.stop)
        try:
            server.wait((peer.image[0], peer.image[1](image)), (peer.text[0], peer.text[1](text)))
            if peer.name == OURS:
                print(f"{OURS} runs {server.backends()}")
            yield server
        except CannotRunError as error:
            server.stop()  # it takes no core from those that can
            print(f"{peer.name}: no numbers, {error}", flush=True)


def _write_for_transformers(package: Path) -> None:
    """The same architecture with weights of its own, for who serves transformers' CLIP alone."""
    out = package / "transformers"
    if (out / "config.json").exists():
        return
    import open_clip
    import transformers

    transformers.CLIPModel(transformers.CLIPConfig()).save_pretrained(out)
    transformers.CLIPImageProcessor().save_pretrained(out)
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # open_clip's and transformers'
    (out / "vocab.json").write_text(json.dumps({names.get(text, text): token for text, token in tokenizer.encoder.items()}))
    merges = sorted(tokenizer.bpe_ranks, key=lambda pair: tokenizer.bpe_ranks[pair])
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]))
    tokens = transformers.CLIPTokenizer(str(out / "vocab.json"), str(out / "merges.txt"), model_max_length=77)
    tokens.save_pretrained(out)


def measure(tower: str, options: argparse.Namespace) -> list[Row]:
    """All servers with one tower, in turns."""
    place: Path = options.place
    with ExitStack() as stack:
        servers = list(started(tower, options.peers, place, options.cores, stack))
        items = {"images": towers.images(), "texts": towers.texts(False), "repeated texts": towers.texts(True)}
        bodies = {}
        for server in servers:
            for kind in KINDS:
                body = (server.peer.image if kind == "images" else server.peer.text)[1]
                name = f"{server.port}-{kind}".replace(" ", "-")
                bodies[server, kind] = towers.written(place, name, [body(item) for item in items[kind]])
                stack.callback(bodies[server, kind].unlink)
        rows = []
        for kind in options.kinds:
            for clients in options.clients:
                turns: dict[Running, list[dict[str, float]]] = {server: [] for server in servers}
                for _ in range(options.rounds):
                    for server in servers:
                        turns[server].append(ask(server, kind, clients, options.seconds, bodies[server, kind]))
                for server, found in turns.items():
                    middle = {key: statistics.median(turn[key] for turn in found) for key in found[0]}
                    numbers = {key: round(middle[key], 2) for key in ("rate", "per_core", "p50", "p99", "memory", "errors")}
                    rows.append(Row(tower, kind, clients, server.peer.name, **numbers))
                    print(LINE.format(*asdict(rows[-1]).values()), flush=True)
        return rows


LINE = "{:10} {:15} {:>7} {:20} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7}"


def ratios(rows: Sequence[Row]) -> dict[str, dict[str, float | str]]:
    """Ours to the best other server, for each tower, kind and number of clients."""
    found: dict[str, dict[str, float | str]] = {}
    for ours in (row for row in rows if row.server == OURS):
        key = (ours.tower, ours.kind, ours.clients)
        others = [row for row in rows if (row.tower, row.kind, row.clients) == key and row.server != OURS and row.rate]
        if others:
            best = max(others, key=lambda row: row.rate)
            found[" / ".join(map(str, key))] = {
                "times": round(ours.rate / best.rate, 2), "best": best.server, "p99 times": round(ours.p99 / best.p99, 2),
            }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", type=Path, default=Path(".clipft/bench-serving"), help="homes and environments, which stay")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="that each server may use")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=[], help="parts of names; empty: all")
    parser.add_argument("--towers", type=lambda text: text.split(","), default=list(towers.TOWERS.values()))
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32, 256])
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are stopped on the way out
    options.place = options.place.resolve()
    options.place.mkdir(parents=True, exist_ok=True)
    print(LINE.format("tower", "kind", "clients", "server", "a second", "and core", "p50 ms", "p99 ms", "MiB", "errors"))
    rows = [row for tower in options.towers for row in measure(tower, options)]
    print(json.dumps({"cores": options.cores, "rows": [asdict(row) for row in rows], "ratios": ratios(rows)}))


if __name__ == "__main__":
    main()

"""The load: clients that ask one after the other over connections that stay, in a process of their own, on raw sockets.

`python -m bench.serving.client PORT PATH CLIENTS SECONDS BODIES`, where BODIES is a file with one JSON body a line. Prints JSON: answers,
errors, seconds, and the latencies' p50 and p99 in milliseconds. What ends within SECONDS after the first second counts.
"""

import asyncio
import itertools
import json
import random
import sys
import time
from pathlib import Path

import numpy as np

WARM = 1.0  # seconds


class Load:
    def __init__(self, port: int, path: str, seconds: float, bodies: list[bytes]) -> None:
        self.port, self.took, self.errors = port, list[float](), 0
        head = "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
        requests = [head.format(path, len(body)).encode() + body for body in bodies]
        first = random.randrange(len(requests))  # what is new to a server in this turn is new to it in the next
        self.requests = itertools.cycle(requests[first:] + requests[:first])
        self.start = time.perf_counter() + WARM
        self.until = self.start + seconds

    async def client(self) -> None:
        reader = writer = None
        while (began := time.perf_counter()) < self.until:
            try:
                if reader is None or writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)
                writer.write(next(self.requests))
                status, stays = await _answered(reader)
                ended = time.perf_counter()
                if self.start <= ended <= self.until:
                    self.took.append(ended - began) if status == 200 else self._failed()
                if status != 200:
                    await asyncio.sleep(0.05)
                if not stays:
                    writer.close()
                    reader = writer = None
            except (OSError, asyncio.IncompleteReadError, ValueError):
                self._failed()
                reader = writer = None
                await asyncio.sleep(0.05)

    def _failed(self) -> None:
        self.errors += time.perf_counter() >= self.start


async def _answered(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Status, and whether the connection stays."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    if b"content-length:" in head:
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
    else:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")
    return status, b"connection: close" not in head


async def main(port: int, path: str, clients: int, seconds: float, bodies: list[bytes]) -> dict[str, float]:
    load = Load(port, path, seconds, bodies)
    tasks = [asyncio.create_task(load.client()) for _ in range(clients)]
    await asyncio.wait(tasks, timeout=WARM + seconds + 1)  # what takes longer is no answer of this round
    for task in tasks:
        task.cancel()
    p50, p99 = (float(q) * 1000 for q in np.quantile(load.took or [0.0], (0.5, 0.99)))
    return {"answers": len(load.took), "errors": load.errors, "seconds": seconds, "p50": p50, "p99": p99}


if __name__ == "__main__":
    port, path, clients, seconds, file = sys.argv[1:]
    found = Path(file).read_bytes().splitlines()
    print(json.dumps(asyncio.run(main(int(port), path, int(clients), float(seconds), found))))

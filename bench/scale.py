"""What a host must be sized for: bytes of a dataset version, bytes of a checkpoint and a package, requests per second and core.

    python -m bench.scale

Takes about three minutes on two cores. Versions: 400 made images of 256 px (JPEG), then 40 more. The server: the starter model at
128 px, eight clients. Its metric is requests per second of processor time, so that other programs on the machine matter little.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from clipft_tasks.devices.hardware import usable_cores

SECONDS, CLIENTS = 20.0, 8


def image(number: int, side: int = 256) -> Image.Image:
    """A blurred field of one of two tints; no two are alike."""
    rng = np.random.default_rng(number)
    field = Image.fromarray(rng.integers(0, 255, (16, 16, 3)).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    tint = Image.new("RGB", field.size, ((200, 60, 60), (60, 60, 200))[number % 2])
    return Image.blend(field, tint, 0.4)


def write(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    lines = ["image,caption,label"]
    for number in range(count):
        path = folder / f"{number}.jpg"
        if not path.exists():
            image(number).save(path, quality=90)
        label = ("red", "blue")[number % 2]
        lines.append(f"{path.name},a {label} field.,{label} field")
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    return folder / "images.csv"


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.environ["CLIPFT_HOME"] = str(Path(place, "home"))
        out = measure(Path(place))
    print("| | |\n|---|---|")
    for name, value in out.items():
        print(f"| {name} | {value:,} |")
    print(json.dumps(out | {"cores": usable_cores(), "load": os.getloadavg()[0]}))


def measure(place: Path) -> dict[str, float]:
    from clipft_tasks import tracking
    from clipft_tasks.core.settings import settings
    from clipft_tasks.data import repository
    from clipft_tasks.spec import RunSpec
    from clipft_tasks.stages import chain
    from clipft_tasks.train import checkpoints

    flat = {"domain": "general", "source": str(write(place / "s", 400)), "resolution.train": 128, "resolution.evaluate": [128],
            "train.epochs": 1, "train.batch": 32, "evaluate.bootstrap": 100, "memory.device": "cpu",
            "gate.rules": ["balanced_accuracy >= 0"]}  # fmt: skip
    out: dict[str, float] = {}
    done: dict[str, dict[str, Any]] = {}
    written: list[int] = []
    made = checkpoints.Checkpoints.__init__

    def weighed(
        self: checkpoints.Checkpoints, folder: Path, key: str, keep: int = 2, saved: Callable[[Path], None] | None = None
    ) -> None:
        def weigh(path: Path) -> None:
            written.append(path.stat().st_size)
            if saved:
                saved(path)

        made(self, folder, key, keep, weigh)

    setattr(checkpoints.Checkpoints, "__init__", weighed)  # noqa: B010
    for name in chain.CHAIN:
        if name == "deploy":
            break
        done[name] = chain.run_stage(name, RunSpec.from_flat(flat), done.__getitem__)
        if name == "version":
            out["images"] = 400
            out["bytes of the images"] = sum(p.stat().st_size for p in (place / "s").glob("*.jpg"))
            out["bytes of the first version in the remote"] = repository.remote_bytes()
    champion = tracking.champion("general")
    assert champion
    package = tracking.fetch_package(champion)
    out["bytes of a checkpoint (starter, 26.6 M parameters)"] = max(written)
    out["bytes of a package"] = sum(p.stat().st_size for p in package.rglob("*") if p.is_file())

    before = repository.remote_bytes()
    more = RunSpec.from_flat(flat | {"source": str(write(place / "s", 440))})
    staged = chain.run_stage("ingest", more, done.__getitem__)
    chain.run_stage("version", more, {"ingest": staged, "validate": {}}.__getitem__)
    out["bytes that a second version with 40 images more adds"] = repository.remote_bytes() - before
    return out | serve(settings().root)


def serve(home: Path) -> dict[str, float]:
    """Requests per second of processor time of one server process."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ,
        "CLIPFT_SERVING_DEVICE": "cpu",
        "CLIPFT_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "CLIPFT_SERVER_TOKEN": "bench",
    }
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "serving.inference.app:create_app",
        "--factory",
        "--port",
        str(port),
        "--log-level",
        "warning",
    ]
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 300
        while time.monotonic() < until:
            try:
                if httpx.get(f"{address}/readyz", timeout=10).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        return {
            "images classified a second and core": ask(server.pid, address, images=True),
            "texts embedded a second and core": ask(server.pid, address, images=False),
        }
    finally:
        server.terminate()
        server.wait()


def ask(pid: int, address: str, images: bool) -> float:
    count, stop = [0] * CLIENTS, threading.Event()
    bodies = []
    for number in range(1000, 1032):  # each new to the server
        data = io.BytesIO()
        image(number).save(data, "JPEG", quality=90)
        bodies.append(data.getvalue())

    def client(who: int) -> None:
        with httpx.Client(base_url=address, timeout=60) as http:
            while not stop.is_set():
                if images:
                    files = [("image", ("p.jpg", bodies[(count[who] + who) % len(bodies)], "image/jpeg"))]
                    answer = http.post("/v1/classify", data={"domain": "general"}, files=files)
                else:
                    answer = http.post(
                        "/v1/embed/texts", json={"domain": "general", "texts": [f"a field, number {who}-{count[who]}"]}
                    )
                answer.raise_for_status()
                count[who] += 1

    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    process = psutil.Process(pid)
    first, used = sum(count), sum(process.cpu_times()[:2])
    time.sleep(SECONDS)
    answered, cpu = sum(count) - first, sum(process.cpu_times()[:2]) - used
    stop.set()
    for thread in threads:
        thread.join()
    return float(round(answered / cpu, 1))


if __name__ == "__main__":
    main()

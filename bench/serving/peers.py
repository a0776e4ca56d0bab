"""The servers that are compared, and how each is installed, started and asked."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

PROJECT = Path(__file__).resolve().parents[2]
START_SECONDS = 900.0  # ours exports its towers first, in tens of seconds on a quiet machine
Body = Callable[[str], dict[str, object]]  # of an image in base64, or of a text


@dataclass(frozen=True)
class Peer:
    """One server.

    Attributes:
        packages: to install into an environment of its own, above the one that runs this: torch and open_clip are the same for all.
        command: with {python}, {bin}, {port}, {cores} and {package}.
        image, text: path and body that ask for one embedding.
        fails_at: towers that it cannot serve, and why.
    """

    name: str
    command: str
    image: tuple[str, Body]
    text: tuple[str, Body]
    packages: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    fails_at: dict[str, str] = field(default_factory=dict)


def _plain(kind: str) -> tuple[str, Body]:
    return "/predict", lambda item: {kind: item}


def _list(kind: str) -> tuple[str, Body]:
    return f"/{kind}s", lambda item: {kind: [item]}


def _table(kind: str) -> tuple[str, Body]:
    return "/invocations", lambda item: {"dataframe_split": {"columns": [kind], "data": [[item]]}}


def _litserve(workers: int) -> Peer:
    command = f"{{python}} -m bench.serving.apps.litserve_app {{port}} {workers}"
    return Peer(f"LitServe, {workers} worker{'s'[: workers - 1]}", command, _plain("image"), _plain("text"), ("litserve",))


OURS = "clipft"
PEERS = (
    Peer(
        OURS,
        "{python} -m uvicorn serving.inference.app:create_app --factory --port {port} --log-level warning "
        "--http serving.http.connections:GuardedProtocol",
        ("/v1/embed/images", lambda item: {"images": {"base64": item}}),
        ("/v1/embed/texts", lambda item: {"texts": item}),
    ),
    _litserve(1),
    _litserve(2),
    Peer("FastAPI", "{python} -m uvicorn bench.serving.apps.fastapi_app:app --port {port} --log-level warning", _plain("image"), _plain("text")),
    Peer(
        "BentoML", "{bin}/bentoml serve bench.serving.apps.bentoml_app:Service --port {port}", _list("image"), _list("text"), ("bentoml",),
        {"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Peer(
        "MLflow", "{python} -m mlflow models serve --model-uri models:/clipft-general@champion --env-manager local --port {port} --workers 1",
        _table("image"), _table("text"),
    ),
    Peer(
        "Infinity", "{bin}/infinity_emb v2 --model-id {package}/transformers --device cpu --engine torch --port {port} --no-bettertransformer",
        ("/embeddings", lambda item: {"model": "transformers", "input": ["data:image/jpeg;base64," + item], "modality": "image"}),
        ("/embeddings", lambda item: {"model": "transformers", "input": [item], "modality": "text"}),
        ("infinity-emb[server,torch,vision]",), {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
        {"starter": "it serves models of transformers, and this tower is none"},
    ),
)  # fmt: skip


class CannotRunError(Exception):
    """Why a server has no numbers here."""


def environment(peer: Peer, place: Path) -> Path:
    """The Python of a peer's environment, made where it is not there. Raises CannotRunError where its packages cannot be had."""
    if not peer.packages:
        return Path(sys.executable)
    venv = place / "venvs" / peer.packages[0].partition("[")[0]
    python, ready = venv / "bin" / "python", venv / "ready"
    if ready.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    site = next((venv / "lib").glob("python*")) / "site-packages"
    (site / "shared.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise CannotRunError(f"it cannot be installed: {lines[-1][:120]}")
    ready.touch()
    return python


def has_chosen(url: str) -> bool:
    """Whether our server knows what runs its towers: comparing them takes the cores, and memory that stays."""
    models = httpx.get(f"{url}/v1/models", timeout=60).json()["data"]
    return all(b["why"] != "the others are not compared yet" for model in models for b in model["backends"].values())


class Running:
    """A server that answers, with all its processes."""

    def __init__(
        self, peer: Peer, tower: str, package: Path, place: Path, port: int, cores: int, device: str = "cpu"
    ) -> None:  # fmt: skip
        if tower in peer.fails_at:
            raise CannotRunError(peer.fails_at[tower])
        python = environment(peer, place)
        self.peer, self.port, self.url = peer, port, f"http://127.0.0.1:{port}"
        found = {"python": python, "bin": python.parent, "port": port, "cores": cores, "package": package}
        threads = max(1, cores // 2) if "2 workers" in peer.name else cores
        env = os.environ | {
            "PYTHONPATH": str(PROJECT), "BENCH_PACKAGE": str(package), "BENCH_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
            "CLIPFT_HOME": str(package.parent), "CLIPFT_SERVING_DEVICE": device, "CLIPFT_THREADS": str(cores), "OMP_NUM_THREADS": str(threads),
            "MLFLOW_TRACKING_URI": f"sqlite:///{package.parent}/mlflow/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true",
        } | peer.env  # fmt: skip
        self.log = place / f"{peer.name.split(',')[0]}.log"
        command = [part.format(**found) for part in shlex.split(peer.command)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=env, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True)
        self.last_cpu = 0.0

    def wait(self, *bodies: tuple[str, dict[str, object]]) -> None:
        """Until it gives every kind of answer, and ours has chosen its backends. Raises CannotRunError."""
        until, said = time.monotonic() + START_SECONDS, "it does not answer"
        while time.monotonic() < until and self.process.poll() is None:
            try:
                answers = [httpx.post(self.url + path, json=body, timeout=60) for path, body in bodies]
                said = next((f"status {a.status_code}: {a.text[:100]}" for a in answers if a.status_code != 200), "")
                if not said and (self.peer.name != OURS or has_chosen(self.url)):
                    return
            except httpx.HTTPError as error:
                said = type(error).__name__
            time.sleep(1)
        tail = self.log.read_text(errors="replace").strip().splitlines()[-1:] or [""]
        raise CannotRunError(f"{said or 'its backends were not chosen in time'}; {tail[0][:120]}")

    def backends(self) -> dict[str, str]:
        """What runs each tower of ours."""
        models = httpx.get(f"{self.url}/v1/models", timeout=60).json()["data"]
        return {tower: backend["backend"] for tower, backend in models[0]["backends"].items()}

    def memory(self) -> float:
        """MiB of all its processes."""
        return float(sum(p.memory_info().rss for p in self._processes())) / 2**20

    def cpu(self) -> float:
        """Seconds of processor time of all its processes so far."""
        return float(sum(sum(p.cpu_times()[:2]) for p in self._processes()))

    def settle(self, most: float = 120.0) -> None:
        """Wait until it has done what nobody waits for any more, so that the next one has the machine to itself."""
        until = time.monotonic() + most
        while time.monotonic() < until:
            before = self.cpu()
            time.sleep(0.5)
            if self.cpu() - before < 0.1:
                return

    def _processes(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def stop(self) -> None:
        if self.process.poll() is None:
            left = self._processes()
            self.process.terminate()
            _, alive = psutil.wait_procs(left, 10)
            for process in alive:
                process.kill()
        self.process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what a supervisor left behind

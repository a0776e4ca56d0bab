"""A registry with two versions, a real server on it, and the same models by hand: what the server tests share."""

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import nursery
import pytest
import torch
from conftest import COLOURS, made_picture, small, write_pictures, write_tiny
from PIL import Image
from safetensors.torch import load_file, save_file

from clipft_tasks import tracking
from clipft_tasks.data.pictures import open_picture, square
from clipft_tasks.domains import get_domain
from clipft_tasks.model import build
from clipft_tasks.model.clip import Clip
from clipft_tasks.settings import settings
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import chain

TOKEN = "a token that only this test knows"


# A home with two registered versions, made once a session -----------------------------------------------------------


def use(home: Path, patch: pytest.MonkeyPatch) -> None:
    """Point this process at an installation."""
    for name in [n for n in os.environ if n.startswith("CLIPFT_")]:
        patch.delenv(name)
    patch.setenv("CLIPFT_HOME", str(home))
    settings.cache_clear()


def spec(base: Path, seed: int) -> RunSpec:
    more = {"resolution.evaluate": [32], "train.seed": seed, "gate.rules": ["gain(score) >= -1"]}
    return RunSpec.from_flat(small(base / "source" / "pictures.csv", base / "tiny", **more))


@cache
def trained(base: Path) -> Path:
    """A home whose registry holds versions 1 (champion) and 2 (challenger) of clipft-general, from the real stages."""
    write_pictures(base / "source")
    write_tiny(base / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        use(base / "home", patch)
        for seed, last in ((0, "promote"), (1, "register")):
            done: dict[str, Any] = {}
            for name in chain.CHAIN:
                done[name] = chain.run_stage(name, spec(base, seed), done.__getitem__)
                if name == last:
                    break
        assert done["register"]["version"] == "2"
        for version in ("1", "2"):
            package(version)
    settings.cache_clear()
    return base / "home"


def copied(home: Path, to: Path) -> Path:
    """A registry and package cache of its own; artifacts stay where they were logged."""
    (to / "mlflow").mkdir(parents=True)
    shutil.copy(home / "mlflow" / "mlflow.db", to / "mlflow")
    shutil.copytree(home / "cache" / "models", to / "cache" / "models")
    return to


def package(version: str) -> Path:
    """The cached package of a version in this process's home."""
    return tracking.fetch_package(tracking.version_of(f"models:/clipft-general/{version}"))


@contextmanager
def changed_card(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Iterator[None]:
    """A package whose card says something else for a while."""
    card = folder / "card.json"
    kept = card.read_text()
    said = json.loads(kept)
    change(said)
    card.write_text(json.dumps(said))
    try:
        yield
    finally:
        card.write_text(kept)


# A server in a process of its own -----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """uvicorn on a free loopback port, with a home of its own."""

    def __init__(
        self, home: Path, *, token: str | None = TOKEN, poll: float = 0, port: int | None = None, **options: object
    ) -> None:
        port = port or free_port()
        self.home, self.token, self.url = home, token or "", f"http://127.0.0.1:{port}"
        env = {k: v for k, v in os.environ.items() if not k.startswith("CLIPFT_")}
        env |= {"CLIPFT_HOME": str(home), "CLIPFT_THREADS": "1", "OMP_NUM_THREADS": "1"}
        env |= {"CLIPFT_SERVING_DEVICE": "cpu", "CLIPFT_SERVING_POLL_SECONDS": str(poll)}
        env |= {"CLIPFT_SERVING_WINDOW_RATE": "1e6"}  # tests play in seconds what comes in minutes
        env |= {"CLIPFT_SERVER_TOKEN": token} if token is not None else {}
        env |= {f"CLIPFT_SERVING_{name.upper()}": str(value) for name, value in options.items()}
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "server.log"
        arguments = ("serving.app:create_app", "--factory", "--port", port)
        self.process = nursery.Program(nursery.SERVER, *arguments, environment=env, log=self.log)
        self.client = httpx.Client(base_url=self.url, timeout=60)
        try:
            self.until(lambda: self.get("/healthz").status_code == 200, 240)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> float:
        """End the process; returns the seconds that took."""
        began = time.monotonic()
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        return time.monotonic() - began

    def until(self, true: Callable[[], bool], seconds: float) -> float:
        """Wait for something; returns the seconds that took."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if true():
                    return time.monotonic() - began
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds} s; the server said: {self.log.read_text()[-3000:]}")

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def put(self, version: str, token: str | None = None, domain: str = "general") -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token if token is None else token}".strip()}
        return self.client.put(f"/v1/models/{domain}", json={"version": version}, headers=headers)

    def live(self) -> dict[str, str]:
        return self.get("/readyz").json()["live"]

    def ready(self) -> "Server":
        self.until(lambda: self.get("/readyz").status_code == 200, 120)
        return self

    def figures(self) -> dict[tuple[str, ...], float]:
        """Prometheus samples by name and label values, in the order of the label names."""
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families(self.get("/metrics").text)
        return {(s.name, *(v for _, v in sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def b64(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


FILES = [png(made_picture(label, 900 + n)) for n in range(2) for label in COLOURS]
PICTURES = [b64(f) for f in FILES]
TEXTS = ["a photo of a red square.", "a photo of a blue square.", "something else, in rather more words than the others had"]


class Plain:
    """What a package answers without a server: the model in this process, fed by hand."""

    def __init__(self, folder: Path) -> None:
        self.card = json.loads((folder / "card.json").read_text())
        self.clip: Clip = build.from_folder(folder, source=str(folder))

    def images(self, files: list[bytes] = FILES) -> np.ndarray:
        squares = np.stack([square(open_picture(f).rgb, 32) for f in files])
        with torch.inference_mode():
            return self.clip.encode_images(torch.from_numpy(squares)).numpy()

    def texts(self, texts: list[str] = TEXTS) -> np.ndarray:
        with torch.inference_mode():
            return self.clip.encode_texts(texts).numpy()

    def classes(self, classes: list[str]) -> np.ndarray:
        with torch.inference_mode():
            return self.clip.class_embeddings(classes, get_domain("general").prompts).numpy()


def close(given: Any, expected: np.ndarray) -> bool:
    given = np.array(given)
    return given.shape == expected.shape and bool(np.abs(given - expected).max() < 1e-4)


GOOD = PICTURES[0]
HUGE = b64(png(Image.new("1", (6000, 6000))))
IMAGES, WORDS, PAIRS, CLASSES = "/v1/embed/images", "/v1/embed/texts", "/v1/similarity", "/v1/classify"


def change_answers(folder: Path) -> None:
    probe = json.loads((folder / "probe.json").read_text())
    probe["similarity"][0][0] += 0.1
    (folder / "probe.json").write_text(json.dumps(probe))


def change_model(folder: Path) -> None:
    shutil.copy(package("1") / "open_clip_model.safetensors", folder)


def cut_weights(folder: Path) -> None:
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def no_numbers(folder: Path) -> None:
    weights = folder / "open_clip_model.safetensors"
    tensors = load_file(weights)
    save_file({k: torch.full_like(v, torch.nan) if v.is_floating_point() else v for k, v in tensors.items()}, weights)


TAMPERED: dict[str, Callable[[Path], Any]] = {
    "other recorded answers": change_answers,
    "another model's weights": change_model,
    "weights cut short": cut_weights,
    "weights that are no weights": lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"not weights"),
    "weights that are no numbers": no_numbers,
    "no weights": lambda folder: (folder / "open_clip_model.safetensors").unlink(),
    "no recorded answers": lambda folder: (folder / "probe.json").unlink(),
    "recorded answers that are no JSON": lambda folder: (folder / "probe.json").write_text("{"),
    "recorded answers without pictures": lambda folder: (folder / "probe.json").write_text("{}"),
    "no card": lambda folder: (folder / "card.json").unlink(),
    "a card without resolutions": lambda folder: (folder / "card.json").write_text("{}"),
    "no configuration": lambda folder: (folder / "open_clip_config.json").unlink(),
    "a configuration of another shape": lambda folder: (folder / "open_clip_config.json").write_text(
        (folder / "open_clip_config.json").read_text().replace('"layers": 2', '"layers": 3')
    ),
}

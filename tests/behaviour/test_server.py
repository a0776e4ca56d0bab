"""The server as its clients meet it: a real uvicorn process, a real registry, real packages.

`trained`, `Server` and the helpers serve test_deploy.py too.
"""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from conftest import COLOURS, made_picture, small, write_pictures, write_tiny
from PIL import Image

from clipft_tasks import tracking
from clipft_tasks.data.pictures import open_picture, square
from clipft_tasks.domains import get_domain
from clipft_tasks.model import build
from clipft_tasks.model.clip import Clip
from clipft_tasks.settings import settings
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import chain

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TOKEN = "a token that only this test knows"


# A home with two registered versions, made once a session -----------------------------------------------------------


def use(home: Path, patch: pytest.MonkeyPatch) -> None:
    """Point this process at an installation."""
    for name in [n for n in os.environ if n.startswith("CLIPFT_")]:
        patch.delenv(name)
    patch.setenv("CLIPFT_HOME", str(home))
    settings.cache_clear()


def spec(base: Path, seed: int) -> RunSpec:
    more = {"resolution.evaluate": [32], "train.seed": seed, "gate.min_gain": -1, "gate.max_drop": 1}
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


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "two-versions"


def copied(home: Path, to: Path) -> Path:
    """A registry and package cache of its own; artifacts stay where they were logged."""
    (to / "mlflow").mkdir(parents=True)
    shutil.copy(home / "mlflow" / "mlflow.db", to / "mlflow")
    shutil.copytree(home / "cache" / "models", to / "cache" / "models")
    return to


def package(version: str) -> Path:
    """The cached package of a version in this process's home."""
    return tracking.fetch_package(tracking.version_of(f"models:/clipft-general/{version}"))


# A server in a process of its own -----------------------------------------------------------------------------------


class Server:
    """uvicorn on a free loopback port, with a home of its own."""

    def __init__(self, home: Path, *, token: str | None = TOKEN, poll: float = 0, **options: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.home, self.token, self.url = home, token or "", f"http://127.0.0.1:{port}"
        env = {k: v for k, v in os.environ.items() if not k.startswith("CLIPFT_")}
        env |= {"CLIPFT_HOME": str(home), "CLIPFT_THREADS": "1", "OMP_NUM_THREADS": "1"}
        env |= {"CLIPFT_SERVING_DEVICE": "cpu", "CLIPFT_SERVING_POLL_SECONDS": str(poll)}
        env |= {"CLIPFT_SERVER_TOKEN": token} if token is not None else {}
        env |= {f"CLIPFT_SERVING_{name.upper()}": str(value) for name, value in options.items()}
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "server.log"
        command = [sys.executable, "-m", "uvicorn", "serving.app:create_app", "--factory", "--port", str(port)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        self.client = httpx.Client(base_url=self.url, timeout=60)
        try:
            self.until(lambda: self.get("/healthz").status_code == 200, 120)
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
        self.until(lambda: self.get("/readyz").status_code == 200, 60)
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


@pytest.fixture(scope="module")
def own(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home that this module's server and this process share."""
    home = copied(trained(base), tmp_path_factory.mktemp("server") / "home")
    with pytest.MonkeyPatch.context() as patch:
        use(home, patch)
        yield home
    settings.cache_clear()


@pytest.fixture(scope="module")
def plain(own: Path) -> dict[str, Plain]:
    return {version: Plain(package(version)) for version in ("1", "2")}


@pytest.fixture(scope="module")
def shared(own: Path) -> Iterator[Server]:
    with Server(own, max_body_mb=1) as server:
        yield server.ready()


@pytest.fixture
def server(shared: Server) -> Server:
    """The module's server, with version 1 live."""
    assert shared.put("1").status_code == 200
    return shared


@pytest.fixture
def elsewhere(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Path) -> Iterator[Path]:
    """Another copy of the registry, for a test that changes it; this process points at it."""
    home = copied(trained(base), tmp_path / "home")
    with pytest.MonkeyPatch.context() as patch:
        use(home, patch)
        yield home
    settings.cache_clear()


# Answers ------------------------------------------------------------------------------------------------------------


def test_the_two_versions_answer_differently(plain):
    assert np.abs(plain["1"].images() - plain["2"].images()).max() > 0.01
    assert np.abs(plain["1"].texts() - plain["2"].texts()).max() > 0.01


@pytest.mark.parametrize("domain", [{}, {"domain": "general"}], ids=["without a domain", "with the domain"])
def test_embeddings_are_those_of_the_plain_model(server, plain, domain):
    many = server.post("/v1/embed/images", {"images": PICTURES, **domain}).json()
    assert close(many["embeddings"], plain["1"].images()) and many["dimension"] == 32
    one = server.post("/v1/embed/images", {"images": PICTURES[0], **domain}).json()
    assert close(one["embeddings"], plain["1"].images()[:1])
    texts = server.post("/v1/embed/texts", {"texts": TEXTS, **domain}).json()
    assert close(texts["embeddings"], plain["1"].texts())
    assert close(server.post("/v1/embed/texts", {"texts": TEXTS[2], **domain}).json()["embeddings"], plain["1"].texts()[2:])


def test_similarity_is_the_cosine_of_every_picture_with_every_text(server, plain):
    expected = plain["1"].images() @ plain["1"].texts().T
    assert close(server.post("/v1/similarity", {"images": PICTURES, "texts": TEXTS}).json()["similarity"], expected)
    alone = server.post("/v1/similarity", {"images": PICTURES[1], "texts": TEXTS[0]}).json()["similarity"]
    assert close(alone, expected[1:2, :1])


@pytest.mark.parametrize("classes", [None, ["red square", "green circle", "blue square"]], ids=["own classes", "asked classes"])
def test_classify_ranks_the_classes_over_the_domains_prompts(server, plain, classes):
    body = {"images": PICTURES} | ({"classes": classes} if classes else {})
    given = server.post("/v1/classify", body).json()["predictions"]
    names = classes or ["blue square", "red square"]
    cosines = plain["1"].images() @ plain["1"].classes(names).T
    scale = float(plain["1"].clip.model.logit_scale.detach().exp())
    odds = np.exp(cosines * scale) / np.exp(cosines * scale).sum(1, keepdims=True)
    assert close([[p["scores"][n] for n in names] for p in given], cosines)
    assert [p["label"] for p in given] == [names[i] for i in cosines.argmax(1)]
    assert close([p["probability"] for p in given], odds.max(1))
    assert [p["label"] for p in given] == ["red square", "blue square"] * 2


def test_one_picture_is_classified_without_a_list(server):
    assert [p["label"] for p in server.post("/v1/classify", {"images": PICTURES[0]}).json()["predictions"]] == ["red square"]


def test_every_class_asked_has_a_score(server):
    answer = server.post("/v1/classify", {"images": PICTURES[0], "classes": ["red square", "red square"]})
    if answer.status_code == 200:
        assert len(answer.json()["predictions"][0]["scores"]) == 2
    else:
        assert answer.status_code == 422


def test_a_multipart_form_from_curl_gives_the_same_answer(server, plain, tmp_path):
    for number, file in enumerate(FILES[:2]):
        (tmp_path / f"{number}.png").write_bytes(file)
    form = ["-F", f"image=@{tmp_path}/0.png", "-F", f"image=@{tmp_path}/1.png", "-F", "domain=general"]
    texts = [part for text in TEXTS for part in ("-F", f"text={text}")]
    done = subprocess.run(
        ["curl", "-sS", "--fail", "-m", "30", *form, *texts, f"{server.url}/v1/similarity"], capture_output=True, check=True
    )
    assert close(json.loads(done.stdout)["similarity"], plain["1"].images(FILES[:2]) @ plain["1"].texts().T)


def test_multipart_forms_serve_every_route(server, plain):
    files = [("image", (f"{n}.png", f, "image/png")) for n, f in enumerate(FILES)]
    images = server.client.post("/v1/embed/images", files=files).json()
    assert close(images["embeddings"], plain["1"].images())
    texts = server.client.post("/v1/embed/texts", files=[("text", (None, t)) for t in TEXTS]).json()
    assert close(texts["embeddings"], plain["1"].texts())
    classes = [("class", (None, c)) for c in ("blue square", "red square")]
    given = server.client.post("/v1/classify", files=files + classes).json()["predictions"]
    assert [p["label"] for p in given] == ["red square", "blue square"] * 2


def test_every_answer_says_where_it_comes_from(server):
    version = tracking.version_of("models:/clipft-general/1")
    asked = {"/v1/embed/images": {"images": PICTURES[0]}, "/v1/embed/texts": {"texts": "x"}, "/v1/classify": {"images": PICTURES[0]},
             "/v1/similarity": {"images": PICTURES[0], "texts": "x"}}  # fmt: skip
    for path, body in asked.items():
        headers = server.post(path, body).headers
        assert headers["x-clipft-domain"] == "general"
        assert headers["x-clipft-model-version"] == "1"
        assert headers["x-clipft-run-id"] == version.run_id
        assert headers["x-clipft-dataset"] == "general/v1"
        assert headers["x-request-id"]
    (model,) = server.get("/v1/models").json()
    assert (model["version"], model["lineage"]["run_id"], model["side"]) == ("1", version.run_id, 32)
    assert model["classes"] == ["blue square", "red square"]


def test_a_request_keeps_the_id_that_its_client_gave(server):
    answer = server.client.post("/v1/embed/texts", json={"texts": "x"}, headers={"X-Request-Id": "mine-17"})
    assert answer.headers["x-request-id"] == "mine-17"


def test_an_unknown_domain_is_not_found_and_the_answer_names_those_that_are(server):
    answer = server.post("/v1/embed/texts", {"texts": "x", "domain": "medical"})
    assert answer.status_code == 404
    assert "medical" in answer.json()["detail"] and "general" in answer.json()["detail"]


# The description of the interface -----------------------------------------------------------------------------------


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from ([part["$ref"]] if isinstance(part.get("$ref"), str) else [])
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def bodies(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """JSON request bodies that carry an example, by path."""
    posts = {
        path: item["post"]["requestBody"]["content"]["application/json"]
        for path, item in document["paths"].items()
        if "post" in item
    }
    assert len(posts) == 4 and all("example" in body for body in posts.values())
    return posts


def test_the_openapi_document_is_valid_and_every_reference_leads_somewhere(server):
    from fastapi.openapi.models import OpenAPI

    document = server.get("/openapi.json").json()
    OpenAPI.model_validate(document)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) - known == set()


def test_every_openapi_example_runs_as_it_is(server):
    answers = {path: server.post(path, body["example"]) for path, body in bodies(server.get("/openapi.json").json()).items()}
    assert {path: a.text for path, a in answers.items() if a.status_code != 200} == {}


def test_every_openapi_example_fits_its_own_schema(server):
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import _WrappedReferencingError

    document = server.get("/openapi.json").json()
    wrong = {}
    for path, body in bodies(document).items():
        whole = {**body["schema"], "components": document["components"]}
        try:
            errors = [e.message for e in Draft202012Validator(whole).iter_errors(body["example"])]
        except _WrappedReferencingError as error:
            errors = [str(error)]
        if errors:
            wrong[path] = errors
    assert wrong == {}


def test_the_pages_for_people_open(server):
    assert "clipft" in server.get("/docs").text and server.get("/docs").status_code == 200
    assert server.get("/").headers["content-type"].startswith("text/html")


# Bad input ----------------------------------------------------------------------------------------------------------

GOOD = PICTURES[0]
HUGE = b64(png(Image.new("1", (6000, 6000))))
IMAGES, WORDS, PAIRS, CLASSES = "/v1/embed/images", "/v1/embed/texts", "/v1/similarity", "/v1/classify"
SECOND = r'Picture 2\b|"images", 1\b'  # a list counts from 0 in pydantic's way, from 1 in a sentence
BAD: dict[str, tuple[str, Any, str]] = {
    "not base64": (IMAGES, {"images": [GOOD, {"base64": "!!!"}]}, f"({SECOND}).*not base64"),
    "a data URL": (
        IMAGES,
        {"images": [GOOD, {"base64": "data:image/png;base64," + GOOD["base64"]}]},
        f"({SECOND}).*not base64",
    ),
    "text bytes": (IMAGES, {"images": [GOOD, b64(b"just some words")]}, f"({SECOND}).*not a picture"),
    "a picture cut short": (IMAGES, {"images": [GOOD, b64(FILES[1][: len(FILES[1]) // 2])]}, f"({SECOND}).*cut short"),
    "no bytes": (IMAGES, {"images": [GOOD, b64(b"")]}, f"({SECOND}).*empty"),
    "too many pixels": (IMAGES, {"images": [GOOD, HUGE]}, f"({SECOND}).*6000x6000 pixels.*25,000,000"),
    "a picture by URL": (IMAGES, {"images": [GOOD, {"url": "http://127.0.0.1/x.png"}]}, SECOND),
    "a number for a picture": (IMAGES, {"images": [GOOD, 7]}, SECOND),
    "too many pictures": (IMAGES, {"images": [GOOD] * 65}, "65 pictures.*64"),
    "no pictures": (IMAGES, {"images": []}, "images"),
    "pictures left out": (IMAGES, {}, "images"),
    "too many texts": (WORDS, {"texts": ["x"] * 65}, "65 texts.*64"),
    "a long text": (WORDS, {"texts": ["x", "y" * 4001]}, r"Text 2\b.*4,001.*4,000"),
    "an empty text": (WORDS, {"texts": ["x", ""]}, '"texts", 1'),
    "a number for a text": (WORDS, {"texts": ["x", 7]}, '"texts", 1'),
    "no texts": (WORDS, {"texts": []}, "texts"),
    "an extra field": (WORDS, {"texts": ["x"], "temperature": 1}, "temperature"),
    "a domain that is no text": (WORDS, {"texts": ["x"], "domain": ["general"]}, "domain"),
    "an array for a body": (WORDS, ["x"], "object|dictionary"),
    "one class": (CLASSES, {"images": GOOD, "classes": ["red square"]}, "classes"),
    "no class": (CLASSES, {"images": GOOD, "classes": []}, "classes"),
    "an empty class": (CLASSES, {"images": GOOD, "classes": ["red square", ""]}, "classes|Text 2|Class 2"),
    "a bad picture to classify": (CLASSES, {"images": [GOOD, b64(b"words")]}, SECOND),
    "a long text to compare": (PAIRS, {"images": GOOD, "texts": ["x", "y" * 4001]}, r"Text 2\b"),
}


def check_refusal(server: Server, answer: httpx.Response, says: str) -> None:
    assert 400 <= answer.status_code < 500, answer.text
    detail = answer.json()["detail"]
    text = detail if isinstance(detail, str) else json.dumps(detail)
    assert re.search(says, text), text
    assert "Traceback" not in text and len(text) < 2000  # what was sent is not sent back
    assert server.post(WORDS, {"texts": "still there?"}).status_code == 200


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_reason_that_names_the_item(server, case):
    path, body, says = BAD[case]
    check_refusal(server, server.post(path, body), says)


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b'{"texts": [', "application/json", "JSON"),
        (b"", "application/json", "JSON"),
        (b'{"texts": ["\xff\xfe"]}', "application/json", "JSON|UTF"),
        (b'{"texts": ["\\ud800"]}', "application/json", "JSON"),
        (b"[" * 50_000, "application/json", "JSON"),
        (b"no form at all", "multipart/form-data", "boundary"),
        (b"no form at all", "multipart/form-data; boundary=x", "."),
        (b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\ncut', "multipart/form-data; boundary=x", "."),
        (b"\x00\x01\x02", "application/octet-stream", "JSON"),
    ],
    ids=["cut", "empty", "not UTF-8", "half a surrogate", "deep", "no boundary", "no form", "cut form", "other type"],
)
def test_a_body_that_cannot_be_read_is_refused(server, content, kind, says):
    check_refusal(server, server.client.post(WORDS, content=content, headers={"Content-Type": kind}), says)


def test_a_form_with_a_bad_picture_names_it(server):
    files = [("image", ("good.png", FILES[0], "image/png")), ("image", ("bad.png", b"words", "image/png"))]
    check_refusal(server, server.client.post(IMAGES, files=files), r"Picture 2\b")


def test_a_form_with_a_picture_where_a_text_belongs_is_refused(server):
    files = [("image", ("a.png", FILES[0], "image/png")), ("text", ("b.png", FILES[1], "image/png"))]
    check_refusal(server, server.client.post(PAIRS, files=files), "text")


def test_a_body_over_the_limit_is_refused(server):
    check_refusal(
        server, server.client.post(WORDS, content=b" " * 2**21, headers={"Content-Type": "application/json"}), "1 MiB"
    )


def test_a_body_over_the_limit_is_refused_before_it_is_sent(server):
    host, port = "127.0.0.1", int(server.url.rsplit(":", 1)[1])
    with socket.create_connection((host, port), timeout=10) as line:
        line.sendall(f"POST {WORDS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {10**12}\r\n\r\n".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "9" * 5000])
def test_a_content_length_that_is_no_number_is_refused(server, length):
    host, port = "127.0.0.1", int(server.url.rsplit(":", 1)[1])
    with socket.create_connection((host, port), timeout=10) as line:
        line.sendall(f"POST {WORDS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 4")


def test_a_body_of_unknown_length_is_refused(server):
    check_refusal(server, server.client.post(WORDS, content=iter([b'{"texts":', b' "x"}'])), "Content-Length")


def test_a_narrow_picture_cannot_fill_the_memory(server):
    """1 x 60,000 pixels are few; scaled to 32 on the shorter side they are 61 million."""

    if not Path("/proc/self/status").exists():
        pytest.skip("the peak is read from /proc")

    def peak() -> float:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    before = peak()
    answer = server.post(IMAGES, {"images": b64(png(Image.new("L", (1, 60_000))))})
    assert answer.status_code in (200, 422)
    assert peak() - before < 100, "MiB more than before"


# State --------------------------------------------------------------------------------------------------------------


def test_before_any_model_the_server_is_alive_but_not_ready_and_without_a_token_it_stays_so(tmp_path):
    with Server(tmp_path / "home", token=None) as server:
        assert server.get("/healthz").json() == {"status": "alive"}
        ready = server.get("/readyz")
        assert ready.status_code == 503 and ready.json()["ready"] is False
        answer = server.post(WORDS, {"texts": "x"})
        assert answer.status_code == 503 and "live" in answer.json()["detail"] and answer.headers["retry-after"]
        for token in ("", "anything"):
            assert server.put("1", token=token).status_code == 403
        assert server.client.put("/v1/models/general", json={"version": "1"}).status_code == 403
        assert server.get("/v1/models").json() == []


def test_with_a_live_model_the_server_is_ready(server):
    ready = server.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "live": {"general": "1"}, "device": "cpu", "problem": ""}


def test_prometheus_accepts_the_metrics(server):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    server.post(CLASSES, {"images": PICTURES})
    answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    done = subprocess.run(["promtool", "check", "metrics"], input=answer.text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_the_counters_move_by_what_was_sent(server):
    before = server.figures()
    assert server.post(PAIRS, {"images": PICTURES[:3], "texts": TEXTS[:2]}).status_code == 200
    assert server.post(CLASSES, {"images": PICTURES[0]}).status_code == 200
    assert server.post(IMAGES, {"images": b64(b"words")}).status_code == 422
    assert server.post(WORDS, {"texts": "x" * 5000}).status_code == 422
    assert server.post(WORDS, {"texts": "x", "domain": "medical"}).status_code == 404
    after = server.figures()

    def moved(*name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert moved("clipft_items_total", "general", "images") == 4
    assert moved("clipft_items_total", "general", "texts") == 2
    assert moved("clipft_batch_items_count", "images") == 2 and moved("clipft_batch_items_sum", "images") == 4
    assert moved("clipft_batch_items_bucket", "images", "1.0") == 1 and moved("clipft_batch_items_bucket", "images", "4.0") == 2
    assert moved("clipft_requests_total", "general", PAIRS, "200") == 1
    assert moved("clipft_requests_total", "general", CLASSES, "200") == 1
    assert moved("clipft_requests_total", "general", IMAGES, "422") == 1
    assert moved("clipft_requests_total", "", WORDS, "404") == 1
    assert moved("clipft_refused_items_total", "bad_picture") == 1 and moved("clipft_refused_items_total", "long_text") == 1
    assert moved("clipft_request_seconds_count", PAIRS) == 1
    assert (
        moved("clipft_similarity_top_count", "general", "1") == 4
        and moved("clipft_similarity_margin_count", "general", "1") == 4
    )
    assert moved("clipft_predictions_total", "general", "red square", "1") == 1


def test_a_picture_that_is_not_base64_counts_as_refused(server):
    before = sum(v for k, v in server.figures().items() if k[0] == "clipft_refused_items_total")
    server.post(IMAGES, {"images": {"base64": "!"}})
    assert sum(v for k, v in server.figures().items() if k[0] == "clipft_refused_items_total") == before + 1


def test_model_info_names_the_live_version_and_no_other(server):
    runs = {v: tracking.version_of(f"models:/clipft-general/{v}").run_id for v in ("1", "2")}

    def info() -> dict:
        return {k: v for k, v in server.figures().items() if k[0] == "clipft_model_info"}

    before = server.figures().get(("clipft_deployments_total", "general", "live"))
    assert info() == {("clipft_model_info", "general/v1", "general", runs["1"], "1"): 1}
    server.put("2")
    assert info() == {("clipft_model_info", "general/v1", "general", runs["2"], "2"): 1}
    assert server.figures()["clipft_deployments_total", "general", "live"] == before + 1


# Another version ----------------------------------------------------------------------------------------------------


def test_only_the_token_lets_a_caller_change_the_live_version(server):
    assert server.client.put("/v1/models/general", json={"version": "2"}).status_code == 401
    for wrong in ("", "wrong", TOKEN[:-1], TOKEN + "x", "bearer"):
        answer = server.put("2", token=wrong)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert server.live() == {"general": "1"}
    done = server.put("2").json()
    assert (done["version"], done["replaced"]) == ("2", "1") and done["load_seconds"] > 0 and done["disagreement"] < 0.001
    assert server.post(WORDS, {"texts": "x"}).headers["x-clipft-model-version"] == "2"
    assert server.put("2").json() == {"version": "2", "replaced": None, "load_seconds": 0, "disagreement": 0}


@pytest.mark.parametrize(
    ("domain", "version"), [("general", "99"), ("general", "9" * 9), ("nowhere", "1"), ("general@champion", "1")]
)
def test_a_version_that_is_not_registered_is_refused(server, domain, version):
    answer = server.put(version, domain=domain)
    assert answer.status_code == 409 and "registry" in answer.json()["detail"]
    assert server.live() == {"general": "1"}


@pytest.mark.parametrize("version", ["", "two", "-1", "2/..", 2, None])
def test_a_version_that_is_no_number_is_refused(server, version):
    answer = server.put(version)
    assert answer.status_code == 422 and "version" in answer.text


def test_a_version_goes_by_its_registered_number(server):
    answer = server.put("02")
    assert answer.status_code in (409, 422) or set(server.live().values()) == {"2"}


def change_answers(folder: Path) -> None:
    probe = json.loads((folder / "probe.json").read_text())
    probe["similarity"][0][0] += 0.1
    (folder / "probe.json").write_text(json.dumps(probe))


def change_model(folder: Path) -> None:
    shutil.copy(package("1") / "open_clip_model.safetensors", folder)


def cut_weights(folder: Path) -> None:
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


TAMPERED: dict[str, Callable[[Path], Any]] = {
    "other recorded answers": change_answers,
    "another model's weights": change_model,
    "weights cut short": cut_weights,
    "weights that are no weights": lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"not weights"),
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


@pytest.mark.parametrize("how", TAMPERED)
def test_a_tampered_package_is_refused_and_the_old_version_goes_on(server, plain, how, tmp_path):
    folder = package("2")
    shutil.copytree(folder, tmp_path / "kept")
    TAMPERED[how](folder)
    try:
        answer = server.put("2")
    finally:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)
    assert server.live() == {"general": "1"}
    after = server.post(IMAGES, {"images": PICTURES})
    assert after.headers["x-clipft-model-version"] == "1" and close(after.json()["embeddings"], plain["1"].images())
    assert answer.status_code == 409, answer.text
    assert isinstance(answer.json()["detail"], str) and len(answer.json()["detail"]) > 20
    assert server.put("2").status_code == 200  # the package is whole again


def test_versions_swap_under_load_without_a_failed_or_mixed_answer(server, plain):
    expected = {
        version: {
            IMAGES: p.images(FILES[:2]), WORDS: p.texts(), PAIRS: p.images(FILES[:2]) @ p.texts().T,
            CLASSES: p.images(FILES[:2]) @ p.classes(["blue square", "red square"]).T,
        }
        for version, p in plain.items()
    }  # fmt: skip
    body = {IMAGES: {"images": PICTURES[:2]}, WORDS: {"texts": TEXTS}, PAIRS: {"images": PICTURES[:2], "texts": TEXTS},
            CLASSES: {"images": PICTURES[:2]}}  # fmt: skip
    values = {
        IMAGES: lambda a: a["embeddings"], WORDS: lambda a: a["embeddings"], PAIRS: lambda a: a["similarity"],
        CLASSES: lambda a: [[p["scores"][c] for c in ("blue square", "red square")] for p in a["predictions"]],
    }  # fmt: skip
    swapped, wrong, seen = threading.Event(), [], []

    def client(path: str) -> None:
        with httpx.Client(base_url=server.url, timeout=30) as line:
            for _ in range(2000):
                if swapped.is_set():
                    return
                try:
                    answer = line.post(path, json=body[path])
                    version = answer.headers["x-clipft-model-version"]
                    if not close(values[path](answer.json()), expected[version][path]):
                        wrong.append(f"{path}: the values are not those of version {version}")
                    seen.append((path, version))
                except Exception as error:
                    wrong.append(f"{path}: {error!r}")

    clients = [threading.Thread(target=client, args=(path,)) for path in body]
    for thread in clients:
        thread.start()
    try:
        for _ in range(10):
            for version in ("2", "1"):
                done = server.put(version)
                assert done.status_code == 200, done.text
                time.sleep(0.1)
    finally:
        swapped.set()
        for thread in clients:
            thread.join(40)
    assert wrong == []
    assert set(seen) == {(path, version) for path in body for version in ("1", "2")} and len(seen) > 100


def test_a_server_under_load_stops_soon(base, tmp_path):
    with Server(copied(trained(base), tmp_path / "home")) as server:
        server.ready()
        line = httpx.Client(base_url=server.url, timeout=30)
        ended = []

        def ask() -> None:
            try:
                for _ in range(5000):
                    ended.append(line.post(PAIRS, json={"images": PICTURES, "texts": TEXTS}).status_code)
            except httpx.TransportError:
                pass

        thread = threading.Thread(target=ask)
        thread.start()
        server.until(lambda: len(ended) > 10, 20)
        assert server.stop() < 15
        thread.join(30)
        assert set(ended) == {200}


# The registry -------------------------------------------------------------------------------------------------------


def test_a_champion_that_another_process_made_is_followed_and_a_lost_registry_is_survived(elsewhere, plain):
    database = elsewhere / "mlflow" / "mlflow.db"
    with Server(elsewhere, poll=1) as server:
        assert server.ready().live() == {"general": "1"}
        code = "from clipft_tasks import tracking; tracking.promote('general', '2')"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120, capture_output=True)
        assert server.until(lambda: server.live() == {"general": "2"}, 10) < 5
        answer = server.post(IMAGES, {"images": PICTURES})
        assert answer.headers["x-clipft-model-version"] == "2" and close(answer.json()["embeddings"], plain["2"].images())

        whole = database.read_bytes()
        database.write_bytes(b"this is no registry" * 10_000)  # in place: the server holds the file open
        server.until(lambda: "registry" in server.get("/readyz").json()["problem"], 15)
        ready = server.get("/readyz")
        assert ready.status_code == 200 and ready.json()["live"] == {"general": "2"}
        assert close(server.post(IMAGES, {"images": PICTURES}).json()["embeddings"], plain["2"].images())
        assert server.put("1").status_code >= 400
        assert server.live() == {"general": "2"}

        database.write_bytes(whole)
        server.until(lambda: server.get("/readyz").json()["problem"] == "", 15)
        assert server.put("1").status_code == 200


def test_a_champion_that_cannot_be_made_live_is_told_and_the_old_one_goes_on(elsewhere):
    change_answers(package("2"))
    with Server(elsewhere, poll=1) as server:
        server.ready()
        tracking.promote("general", "2")
        server.until(lambda: "version 2" in server.get("/readyz").json()["problem"], 15)
        assert server.live() == {"general": "1"}
        assert server.post(WORDS, {"texts": "x"}).headers["x-clipft-model-version"] == "1"


def test_a_look_at_the_registry_does_not_undo_a_newer_deployment(elsewhere, monkeypatch):
    """The poll reads the alias, then version 2 is promoted and deployed, then the poll acts on what it had read."""
    from serving.engine import Engine
    from serving.metrics import Metrics
    from serving.store import ModelStore

    metrics = Metrics()
    engine = Engine("cpu", 1, metrics, max_batch=8, max_wait=0, max_queue=8)
    try:
        store = ModelStore(engine, metrics)
        store.refresh()
        assert store.live["general"].version == "1"
        read, go, champions = threading.Event(), threading.Event(), tracking.champions

        def slow() -> dict[str, str]:
            found = champions()
            read.set()
            go.wait(10)
            return found

        monkeypatch.setattr(tracking, "champions", slow)
        polling = threading.Thread(target=store.refresh)
        polling.start()
        read.wait(10)
        tracking.promote("general", "2")
        deploying = threading.Thread(target=store.deploy, args=("general", "2"))
        deploying.start()
        deploying.join(3)  # it may wait for the poll, or not
        go.set()
        polling.join(30)
        deploying.join(30)
        assert store.live["general"].version == "2"
    finally:
        engine.close()


# One application in this process ------------------------------------------------------------------------------------


@pytest.fixture
def inside(own: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a client of an application with these options and settings."""
    from fastapi.testclient import TestClient

    from serving.app import create_app
    from serving.settings import ServingSettings

    opened = []

    def make(token: str = TOKEN, **options: Any) -> TestClient:
        monkeypatch.setenv("CLIPFT_SERVER_TOKEN", token)
        settings.cache_clear()
        serving = ServingSettings(device="cpu", poll_seconds=0, **options)
        client = TestClient(create_app(serving), raise_server_exceptions=False)
        opened.append(client.__enter__())
        for _ in range(300):
            if client.get("/readyz").status_code == 200:
                return client
            time.sleep(0.1)
        raise AssertionError(client.get("/readyz").text)

    yield make
    for client in opened:
        client.__exit__(None, None, None)
    monkeypatch.undo()
    settings.cache_clear()


def test_an_empty_token_is_no_token(inside):
    client = inside(token="")
    for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": ""}):
        assert client.put("/v1/models/general", json={"version": "1"}, headers=headers).status_code == 403


def test_a_failure_inside_is_counted_as_one_and_answered_as_json(inside, monkeypatch):
    from serving import engine

    client = inside()

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(engine, "encode", broken)
    answer = client.post(WORDS, json={"texts": "x"})
    assert answer.status_code == 500 and "out of memory" not in answer.text
    assert 'route="/v1/embed/texts",status="500"} 1.0' in client.get("/metrics").text
    assert answer.headers["x-request-id"] and answer.json()["detail"]
    assert client.get("/healthz").status_code == 200


def test_the_models_own_classes_are_never_too_many(inside):
    answer = inside(max_items=1).post(CLASSES, json={"images": PICTURES[0]})
    assert answer.status_code == 200, answer.text


def test_more_requests_than_may_wait_are_told_to_come_back(inside):
    client = inside(max_queue=1)
    started, release = threading.Event(), threading.Event()
    client.app.state.engine.call(lambda: (started.set(), release.wait(20)))
    started.wait(10)
    client.app.state.engine.call(lambda: None)
    answer = client.post(WORDS, json={"texts": "x"})
    release.set()
    assert answer.status_code == 503 and answer.headers["retry-after"] and "again" in answer.json()["detail"]


def test_a_dead_inference_thread_is_a_failed_health_check(inside):
    client = inside()
    client.app.state.engine.close()
    assert client.get("/healthz").status_code == 500

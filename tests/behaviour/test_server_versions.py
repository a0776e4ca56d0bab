"""Health, metrics, and one version after another: a real uvicorn process on a real registry."""

import shutil
import subprocess
import threading
import time

import fixtures.forkserver
import httpx
import pytest
from fixtures.live_server import (
    CLASSES,
    EMBED_IMAGES,
    EMBED_TEXTS,
    FILES,
    IMAGES,
    PAIRS,
    TAMPERED,
    TEXTS,
    TOKEN,
    Server,
    b64,
    change_answers,
    close,
    copied,
    package,
    trained,
)

from clipft_tasks import tracking

pytestmark = pytest.mark.slow


# State --------------------------------------------------------------------------------------------------------------


def test_before_any_model_the_server_is_alive_but_not_ready_and_without_a_token_it_stays_so(tmp_path):
    with Server(tmp_path / "home", token=None) as server:
        assert server.get("/healthz").json() == {"status": "alive"}
        ready = server.get("/readyz")
        assert ready.status_code == 503 and ready.json()["ready"] is False
        answer = server.post(EMBED_TEXTS, {"texts": "x"})
        assert answer.status_code == 503 and "live" in answer.json()["detail"] and answer.headers["retry-after"]
        for token in ("", "anything"):
            assert server.put("1", token=token).status_code == 403
        assert server.client.put("/v1/models/general", json={"version": "1"}).status_code == 403
        assert server.get("/v1/models").json() == {"object": "list", "data": []}


def test_with_a_live_model_the_server_is_ready(server):
    ready = server.get("/readyz")
    assert ready.status_code == 200
    expected = {"ready": True, "live": {"general": "1"}, "held": {"general": "1"}, "device": "cpu", "problem": ""}
    assert ready.json() == expected


def test_prometheus_accepts_the_metrics(server):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    server.post(CLASSES, {"images": IMAGES})
    answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    done = subprocess.run(["promtool", "check", "metrics"], input=answer.text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_the_counters_move_by_what_was_sent(server):
    before = server.metrics()
    assert server.post(PAIRS, {"images": IMAGES[:3], "texts": TEXTS[:2]}).status_code == 200
    assert server.post(CLASSES, {"images": IMAGES[0]}).status_code == 200
    assert server.post(EMBED_IMAGES, {"images": b64(b"words")}).status_code == 422
    assert server.post(EMBED_TEXTS, {"texts": "x" * 5000}).status_code == 422
    assert server.post(EMBED_TEXTS, {"texts": "x", "domain": "medical"}).status_code == 404
    after = server.metrics()

    def moved(*name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert moved("clipft_items_total", "general", "images") == 4
    assert moved("clipft_items_total", "general", "texts") == 2
    assert moved("clipft_batch_items_count", "images") == 2 and moved("clipft_batch_items_sum", "images") == 4
    assert moved("clipft_batch_items_bucket", "images", "1.0") == 1 and moved("clipft_batch_items_bucket", "images", "4.0") == 2
    assert moved("clipft_requests_total", "general", PAIRS, "200") == 1
    assert moved("clipft_requests_total", "general", CLASSES, "200") == 1
    assert moved("clipft_requests_total", "general", EMBED_IMAGES, "422") == 1
    assert moved("clipft_requests_total", "", EMBED_TEXTS, "404") == 1
    assert moved("clipft_refused_items_total", "bad_image") == 1 and moved("clipft_refused_items_total", "long_text") == 1
    assert moved("clipft_request_seconds_count", PAIRS) == 1
    assert (
        moved("clipft_similarity_top_count", "general", "1") == 4
        and moved("clipft_similarity_margin_count", "general", "1") == 4
    )
    assert moved("clipft_predictions_total", "general", "red square", "1") == 1
    for looks in ("brightness_ratio", "contrast_ratio", "sharpness", "side_pixels"):
        assert moved(f"clipft_image_{looks}_count", "general", "1") == 4
    assert moved("clipft_image_side_pixels_sum", "general", "1") == pytest.approx(4 * 48, rel=1e-4)


def test_a_image_that_is_not_base64_counts_as_refused(server):
    before = sum(v for k, v in server.metrics().items() if k[0] == "clipft_refused_items_total")
    server.post(EMBED_IMAGES, {"images": {"base64": "!"}})
    assert sum(v for k, v in server.metrics().items() if k[0] == "clipft_refused_items_total") == before + 1


def test_model_info_names_the_live_version_and_no_other(server):
    runs = {v: tracking.resolve_version(f"models:/clipft-general/{v}").run_id for v in ("1", "2")}

    def info() -> dict:
        return {k: v for k, v in server.metrics().items() if k[0] == "clipft_model_info"}

    before = server.metrics().get(("clipft_deployments_total", "general", "live"))
    assert info() == {("clipft_model_info", "general/v1", "general", runs["1"], "1"): 1}
    server.put("2")
    assert info() == {("clipft_model_info", "general/v1", "general", runs["2"], "2"): 1}
    assert server.metrics()["clipft_deployments_total", "general", "live"] == before + 1


# Another version ----------------------------------------------------------------------------------------------------


def test_only_the_token_lets_a_caller_change_the_live_version(server):
    assert server.client.put("/v1/models/general", json={"version": "2"}).status_code == 401
    for wrong in ("", "wrong", TOKEN[:-1], TOKEN + "x", "bearer"):
        answer = server.put("2", token=wrong)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert server.live() == {"general": "1"}
    done = server.put("2").json()
    assert (done["version"], done["replaced"]) == ("2", "1") and done["load_seconds"] > 0 and done["disagreement"] < 0.001
    assert server.post(EMBED_TEXTS, {"texts": "x"}).headers["x-clipft-model-version"] == "2"
    assert server.put("2").json() == {"version": "2", "replaced": None, "load_seconds": 0, "disagreement": 0, "replicas": {}}


@pytest.mark.parametrize(
    ("domain", "version"), [("general", "99"), ("general", "9" * 9), ("nowhere", "1"), ("general@champion", "1")]
)
def test_a_version_that_is_not_registered_is_refused(server, domain, version):
    answer = server.put(version, domain=domain)
    assert answer.status_code == 409 and answer.json()["code"] == "model.not_registered" and answer.json()["detail"]
    assert server.live() == {"general": "1"}


@pytest.mark.parametrize("version", ["", "two", "-1", "2/..", 2, None])
def test_a_version_that_is_no_number_is_refused(server, version):
    answer = server.put(version)
    assert answer.status_code == 422 and "version" in answer.text


def test_a_version_goes_by_its_registered_number(server):
    answer = server.put("02")
    assert answer.status_code in (409, 422) or set(server.live().values()) == {"2"}


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
    after = server.post(EMBED_IMAGES, {"images": IMAGES})
    assert after.headers["x-clipft-model-version"] == "1" and close(after.json()["embeddings"], plain["1"].images())
    assert answer.status_code == 409, answer.text
    assert isinstance(answer.json()["detail"], str) and len(answer.json()["detail"]) > 20
    assert server.put("2").status_code == 200  # the package is whole again


def test_versions_swap_under_load_without_a_failed_or_mixed_answer(server, plain):
    expected = {
        version: {
            EMBED_IMAGES: p.images(FILES[:2]), EMBED_TEXTS: p.texts(), PAIRS: p.images(FILES[:2]) @ p.texts().T,
            CLASSES: p.images(FILES[:2]) @ p.classes(["blue square", "red square"]).T,
        }
        for version, p in plain.items()
    }  # fmt: skip
    body = {EMBED_IMAGES: {"images": IMAGES[:2]}, EMBED_TEXTS: {"texts": TEXTS}, PAIRS: {"images": IMAGES[:2], "texts": TEXTS},
            CLASSES: {"images": IMAGES[:2]}}  # fmt: skip
    values = {
        EMBED_IMAGES: lambda a: a["embeddings"], EMBED_TEXTS: lambda a: a["embeddings"], PAIRS: lambda a: a["similarity"],
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
                    ended.append(line.post(PAIRS, json={"images": IMAGES, "texts": TEXTS}).status_code)
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
        fixtures.forkserver.run("from clipft_tasks import tracking; tracking.promote('general', '2')").check_returncode()
        assert server.until(lambda: server.live() == {"general": "2"}, 10) < 5
        answer = server.post(EMBED_IMAGES, {"images": IMAGES})
        assert answer.headers["x-clipft-model-version"] == "2" and close(answer.json()["embeddings"], plain["2"].images())

        whole = database.read_bytes()
        database.write_bytes(b"this is no registry" * 10_000)  # in place: the server holds the file open
        server.until(lambda: "registry" in server.get("/readyz").json()["problem"], 15)
        ready = server.get("/readyz")
        assert ready.status_code == 200 and ready.json()["live"] == {"general": "2"}
        assert close(server.post(EMBED_IMAGES, {"images": IMAGES}).json()["embeddings"], plain["2"].images())
        assert server.put("1").status_code >= 400
        assert server.live() == {"general": "2"}

        database.write_bytes(whole)
        server.until(lambda: server.get("/readyz").json()["problem"] == "", 15)
        assert server.put("1").status_code == 200


def test_a_version_that_is_not_the_champion_is_refused_or_held_and_said_to_be(elsewhere):
    with Server(elsewhere, poll=0.2) as server:
        server.ready()
        refused = server.put("2", hold=False)
        assert (
            refused.status_code == 409
            and refused.json()["code"] == "server.not_champion"
            and "hold" in refused.json()["detail"]
        )
        assert server.live() == {"general": "1"} and server.get("/readyz").json()["held"] == {}
        assert server.put("2", hold=True).status_code == 200
        time.sleep(1)  # several looks at the registry
        assert server.live() == {"general": "2"} and server.get("/readyz").json()["held"] == {"general": "2"}
        assert server.put("1", hold=False).status_code == 200
        assert server.live() == {"general": "1"} and server.get("/readyz").json()["held"] == {}


def test_a_champion_that_cannot_be_made_live_is_told_and_the_old_one_goes_on(elsewhere):
    change_answers(package("2"))
    with Server(elsewhere, poll=1) as server:
        server.ready()
        tracking.promote("general", "2")
        server.until(lambda: "version 2" in server.get("/readyz").json()["problem"], 15)
        assert server.live() == {"general": "1"}
        assert server.post(EMBED_TEXTS, {"texts": "x"}).headers["x-clipft-model-version"] == "1"


def test_a_look_at_the_registry_does_not_undo_a_newer_deployment(elsewhere, monkeypatch):
    """The poll reads the alias, then version 2 is promoted and deployed, then the poll acts on what it had read."""
    from serving.inference.backend_choice import BackendChoice
    from serving.inference.batching import Engine
    from serving.inference.metrics import Metrics
    from serving.inference.model_store import ModelStore

    metrics = Metrics()
    engine = Engine("cpu", 1, metrics, max_batch=8, max_wait=0, max_queue=8)
    try:
        store = ModelStore(engine, metrics, BackendChoice("torch", 1))
        store.follow_registry()
        assert store.live["general"].version == "1"
        read, go, champions = threading.Event(), threading.Event(), tracking.champions

        def slow() -> dict[str, str]:
            found = champions()
            read.set()
            go.wait(10)
            return found

        monkeypatch.setattr(tracking, "champions", slow)
        polling = threading.Thread(target=store.follow_registry)
        polling.start()
        read.wait(10)
        tracking.promote("general", "2")
        deploying = threading.Thread(target=store.load, args=("general", "2"))
        deploying.start()
        deploying.join(3)  # it may wait for the poll, or not
        go.set()
        polling.join(30)
        deploying.join(30)
        assert store.live["general"].version == "2"
    finally:
        engine.close()

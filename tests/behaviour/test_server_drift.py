"""Drift as a caller and Prometheus see it: a real uvicorn process on a real registry."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import made_image
from fixtures.drift_servers import (  # noqa: F401  (fixtures)
    CAPTIONS,
    DRIFT,
    FEEDBACK,
    INTERNAL,
    LEAST,
    SHOWN,
    SIZE,
    WINDOW,
    classify,
    drift,
    judge,
    of_version,
    ordinary,
    other,
    server,
    shared,
)
from fixtures.live_server import (
    CLASSES,
    EMBED_IMAGES,
    EMBED_TEXTS,
    FILES,
    IMAGES,
    PAIRS,
    TEXTS,
    TOKEN,
    Plain,
    Server,
    b64,
    package,
    png,
)
from PIL import Image, ImageOps

pytestmark = pytest.mark.slow


# What a window says -------------------------------------------------------------------------------------------------


def test_images_like_those_of_the_training_are_no_drift(server):
    classify(server, ordinary(SIZE))
    server.post(EMBED_TEXTS, {"texts": CAPTIONS * 20})
    said = drift(server)
    assert (said["domain"], said["version"], said["images"], said["texts"]) == ("general", "1", SIZE, 40)
    assert {"image", "prediction", "similarity", "brightness", "sharpness", "side", "text"} <= set(said["drift"])
    assert max(said["drift"].values()) < 1 and said["worst"]["ratio"] < 1
    assert said["worst"]["ratio"] == max(said["drift"].values())
    assert said["values"]["out_of_range"] < 0.1 and said["values"]["image_p"] > 0.005
    assert said["baseline"]["rows"] > 0 and said["baseline"]["value"] > 0.8
    assert abs(said["values"]["accuracy_estimate"] - said["baseline"]["value"]) < 0.2


CHANGES: dict[str, tuple[Callable[[Image.Image], Image.Image], set[str], set[str]]] = {
    "inverted": (ImageOps.invert, {"brightness", "similarity"}, {"side", "aspect"}),
    "dark": (lambda p: p.point(lambda v: v // 4), {"brightness", "contrast"}, {"side", "aspect"}),
    "resized": (lambda p: p.resize((128, 128)), {"side", "sharpness"}, {"brightness", "aspect", "prediction", "image"}),
    "stretched": (lambda p: p.resize((96, 48)), {"aspect"}, {"brightness", "side", "prediction", "image"}),
    "blurred": (lambda p: p.resize((6, 6)).resize((48, 48)), {"sharpness"}, {"brightness", "side", "aspect", "prediction"}),
}


@pytest.mark.parametrize("how", CHANGES)
def test_images_of_another_kind_are_drift_of_the_signal_that_changed(server, how):
    change, above, below = CHANGES[how]
    classify(server, [change(p) for p in ordinary(SIZE)])
    said = drift(server)
    ratios = said["drift"]
    assert {name for name in above if ratios[name] <= 1} == set(), ratios
    assert {name for name in below if ratios[name] > 1} == set(), ratios
    assert said["worst"]["ratio"] == max(ratios.values()) and said["worst"]["signal"] not in below


def test_images_outside_the_range_of_the_training_are_counted_as_such(server):
    classify(server, [*ordinary(SIZE // 2), *(p.resize((128, 128)) for p in ordinary(SIZE // 2))])
    assert drift(server)["values"]["out_of_range"] == pytest.approx(0.5, abs=0.05)


def test_only_one_of_the_classes_is_drift_of_the_predictions(server):
    classify(server, [made_image("blue", 1000 + n) for n in range(SIZE)])
    assert drift(server)["drift"]["prediction"] > 1


def test_words_of_another_kind_are_drift_of_the_texts(server):
    server.post(EMBED_TEXTS, {"texts": [f"invoice {n} of the harbour office" for n in range(40)]})
    said = drift(server)
    assert said["drift"]["text"] > 1 and said["values"]["text_p"] <= 0.005
    assert set(said["drift"]) == {"text"}  # no image came


def test_drift_goes_when_ordinary_images_have_pushed_the_others_out(server):
    classify(server, [CHANGES["dark"][0](p) for p in ordinary(SIZE)])
    assert drift(server)["worst"]["ratio"] > 1
    classify(server, ordinary(SIZE))
    said = drift(server)
    assert said["images"] == SIZE and said["worst"]["ratio"] < 1


def test_too_few_images_say_nothing(server):
    classify(server, [CHANGES["dark"][0](p) for p in ordinary(LEAST - 1)])
    said = drift(server)
    assert (said["images"], said["drift"], said["values"]) == (LEAST - 1, {}, {})
    assert said["worst"] == {"signal": "", "ratio": 0}
    metrics = server.metrics()
    assert metrics["clipft_window_items", "general", "images", "1"] == LEAST - 1
    assert {k[0] for k in metrics} & {
        "clipft_drift_ratio",
        "clipft_image_drift_mmd",
        "clipft_estimated_accuracy_ratio",
    } == set()
    classify(server, [CHANGES["dark"][0](p) for p in ordinary(1)])
    assert drift(server)["drift"]["brightness"] > 1


def test_every_route_that_encodes_fills_the_window(server):
    images = [b64(png(p)) for p in ordinary(20)]
    server.post(EMBED_IMAGES, {"images": images})
    server.post(PAIRS, {"images": images, "texts": TEXTS})
    server.post(CLASSES, {"images": images, "classes": ["ship", "shore"]})
    server.post(EMBED_TEXTS, {"texts": TEXTS})
    said = drift(server)
    assert (said["images"], said["texts"]) == (60, 2 * len(TEXTS))
    assert {"prediction", "image", "side"} <= set(said["drift"])


def test_a_image_with_a_text_of_its_own_tells_how_well_they_agree(server, plain: dict[str, Plain]):
    server.post(PAIRS, {"images": IMAGES[:3], "texts": TEXTS})  # texts to choose from, not each image's own
    assert "alignment" not in drift(server)["values"]
    assert server.post(PAIRS, {"images": IMAGES[:3], "texts": TEXTS[:2], "paired": True}).status_code == 422
    server.post(PAIRS, {"images": IMAGES[:3], "texts": TEXTS, "paired": True})
    expected = float(np.diag(plain["1"].images(FILES[:3]) @ plain["1"].texts(TEXTS).T).mean())
    assert drift(server)["values"]["alignment"] == pytest.approx(expected, abs=1e-4)
    assert server.metrics()["clipft_alignment_similarity", "general", "1"] == pytest.approx(expected, abs=1e-4)


def test_what_is_refused_is_not_in_the_window(server):
    assert server.post(EMBED_IMAGES, {"images": [IMAGES[0], b64(b"words")]}).status_code == 422
    assert server.post(CLASSES, {"images": IMAGES, "classes": ["one"]}).status_code == 422
    assert server.post(PAIRS, {"images": IMAGES, "texts": ["x" * 5000]}).status_code == 422
    assert (drift(server)["images"], drift(server)["texts"]) == (0, 0)


INTERNAL_REQUESTS = {
    EMBED_IMAGES: {"images": IMAGES}, EMBED_TEXTS: {"texts": TEXTS}, CLASSES: {"images": IMAGES},
    PAIRS: {"images": IMAGES[:3], "texts": TEXTS},
}  # fmt: skip


@pytest.mark.parametrize("path", INTERNAL_REQUESTS)
def test_what_the_pipeline_itself_asks_is_not_in_the_window(server, path):
    assert server.client.post(path, json=INTERNAL_REQUESTS[path], headers=INTERNAL).status_code == 200
    said = drift(server)
    assert (said["images"], said["texts"], said["values"]) == (0, 0, {})


@pytest.mark.parametrize("token", ["", "Bearer", "Bearer wrong", TOKEN, f"Basic {TOKEN}"])
def test_a_stranger_cannot_stay_out_of_the_window_by_calling_itself_the_pipeline(server, token):
    headers = INTERNAL | {"Authorization": token}
    assert server.client.post(CLASSES, json={"images": IMAGES}, headers=headers).status_code == 200
    assert server.client.post(EMBED_TEXTS, json={"texts": TEXTS}, headers=headers).status_code == 200
    assert (drift(server)["images"], drift(server)["texts"]) == (len(IMAGES), len(TEXTS))


def test_what_the_pipeline_itself_asks_is_in_no_metric_of_the_answers(server):
    def counted() -> dict[tuple[str, ...], float]:
        names = ("clipft_similarity_top_count", "clipft_similarity_margin_count", "clipft_predictions_total")
        return {k: v for k, v in server.metrics().items() if k[0] in names}

    before = counted()
    for path, body in INTERNAL_REQUESTS.items():
        assert server.client.post(path, json=body, headers=INTERNAL).status_code == 200
    assert counted() == before


def test_a_domain_that_is_not_live_has_no_drift_and_no_window(server):
    for name in ("medical", "nowhere"):
        assert server.get(f"/v1/drift/{name}").status_code == 404
        assert server.client.get(f"/v1/windows/{name}", headers=SHOWN).status_code == 404


def test_a_made_up_domain_in_the_path_does_not_become_a_label_of_the_metrics(server):
    server.get("/v1/drift/made-up-by-a-stranger")
    assert "made-up-by-a-stranger" not in server.get("/metrics").text


def test_the_rows_of_the_window_are_what_the_model_makes_of_the_images(server, plain: dict[str, Plain]):
    labels = [p["label"] for p in server.post(CLASSES, {"images": IMAGES}).json()["predictions"]]
    answer = server.client.get(WINDOW, headers=SHOWN)
    rows = answer.json()
    classes = plain["1"].card.classes
    assert answer.status_code == 200 and set(rows) == {"appearance", "similarity"}
    assert np.allclose(rows["similarity"], plain["1"].images() @ plain["1"].classes(classes).T, atol=2e-4)
    assert [classes[int(np.argmax(s))] for s in rows["similarity"]] == labels
    assert np.shape(rows["appearance"]) == (len(FILES), 5)
    assert [row[3] for row in rows["appearance"]] == pytest.approx([np.log2(48)] * len(FILES))
    classify(server, ordinary(SIZE))
    rows = server.client.get(WINDOW, headers=SHOWN).json()
    assert len(rows["similarity"]) == len(rows["appearance"]) == SIZE


def test_without_the_token_there_is_no_feedback_and_nothing_to_see_of_the_traffic(server):
    request_id, labels = classify(server, ordinary(1))
    body = {"request_id": request_id, "index": 0, "label": labels[0]}
    routes = [
        ("POST", FEEDBACK, body), ("GET", WINDOW, None), ("GET", "/v1/captures/general", None),
        ("GET", "/v1/captures/general/00-0", None), ("PUT", "/v1/captures/general/00-0", {"label": "x"}),
        ("DELETE", f"/v1/requests/{request_id}", None),
    ]  # fmt: skip
    for method, path, sent in routes:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {TOKEN}x"}):
            answer = server.client.request(method, path, json=sent, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", (method, path)
    assert drift(server)["feedback"] == 0


# Metrics for Prometheus ---------------------------------------------------------------------------------------------


def test_the_gauges_appear_without_anybody_asking(server):
    assert of_version(server, "1") <= {"clipft_drift_measured", "clipft_baseline_accuracy_ratio", "clipft_window_items"}
    classify(server, [CHANGES["resized"][0](p) for p in ordinary(SIZE)])
    server.until(lambda: server.metrics().get(("clipft_drift_ratio", "general", "side", "1"), 0) > 1, 20)
    metrics = server.metrics()
    assert metrics["clipft_drift_measured", "general", "1"] == 1
    assert metrics["clipft_window_items", "general", "images", "1"] == SIZE
    assert metrics["clipft_baseline_accuracy_ratio", "general", "1"] > 0.8
    said = drift(server)
    for signal, ratio in said["drift"].items():
        assert metrics["clipft_drift_ratio", "general", signal, "1"] == pytest.approx(ratio)
    for name, value in {
        "clipft_image_drift_mmd": "image_mmd", "clipft_image_drift_p_value": "image_p", "clipft_image_drift_auc": "image_auc",
        "clipft_out_of_range_ratio": "out_of_range", "clipft_estimated_accuracy_ratio": "accuracy_estimate",
    }.items():  # fmt: skip
        assert metrics[name, "general", "1"] == pytest.approx(said["values"][value])


def test_prometheus_accepts_the_metrics_of_a_full_window(server):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    request_id, labels = classify(server, ordinary(SIZE))
    server.post(PAIRS, {"images": [b64(png(p)) for p in ordinary(40)], "texts": CAPTIONS * 20, "paired": True})
    assert judge(server, request_id, 0, labels[0]).status_code == 200
    said = drift(server)
    text = server.get("/metrics").text
    for name in (
        "drift_ratio",
        "text_drift_mmd",
        "modality_gap",
        "alignment_similarity",
        "live_accuracy_ratio",
        "feedback_total",
    ):
        assert f"\nclipft_{name}{{" in text
    assert len(said["drift"]) >= 10
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "clipft_" in line]
    assert complaints == [] and done.returncode in (0, 3), done.stderr


def test_another_version_begins_with_an_empty_window_and_the_old_ones_metrics_go(server):
    request_id, labels = classify(server, [CHANGES["dark"][0](p) for p in ordinary(SIZE)])
    server.post(EMBED_TEXTS, {"texts": CAPTIONS * 20})
    judge(server, request_id, 0, labels[0])
    assert drift(server)["worst"]["ratio"] > 1
    assert {"clipft_drift_ratio", "clipft_window_items", "clipft_live_accuracy_ratio"} <= of_version(server, "1")
    assert server.put("2").status_code == 200
    assert of_version(server, "1") == set()
    said = drift(server)
    assert (said["version"], said["images"], said["texts"], said["feedback"]) == ("2", 0, 0, 0)
    assert (said["drift"], said["values"]) == ({}, {})
    assert server.metrics()["clipft_drift_measured", "general", "2"] == 1
    classify(server, ordinary(SIZE))
    said = drift(server)
    assert said["images"] == SIZE and said["worst"]["ratio"] < 1  # what version 1 saw last is not in it
    assert of_version(server, "1") == set()


# Without what it needs ----------------------------------------------------------------------------------------------


def of_facts(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        facts = json.loads((folder / "reference.json").read_text())
        change(facts)
        (folder / "reference.json").write_text(json.dumps(facts))

    return damage


def cut(folder: Path) -> None:
    tensors = folder / "reference.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:5000])


DAMAGED: dict[str, Callable[[Path], Any]] = {
    "tensors that are none": lambda folder: (folder / "reference.safetensors").write_bytes(b"no tensors" * 100),
    "tensors cut short": cut,
    "no tensors": lambda folder: (folder / "reference.safetensors").unlink(),
    "another version's reference": lambda folder: [
        shutil.copy(package("1") / name, folder) for name in ("reference.json", "reference.safetensors")
    ],
    "no facts": lambda folder: (folder / "reference.json").unlink(),
    "facts that are no JSON": lambda folder: (folder / "reference.json").write_text("{"),
    "facts that are a list": lambda folder: (folder / "reference.json").write_text("[]"),
    "facts without the weights": of_facts(lambda facts: facts.pop("weights")),
    "facts without a baseline": of_facts(lambda facts: facts.pop("baseline")),
    "facts without limits": of_facts(lambda facts: facts.pop("limits")),
}


@pytest.fixture
def damaged(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Iterator[str]:
    """Version 2's reference is damaged in the package cache; afterwards it is whole again and version 1 is live."""
    folder = package("2")
    shutil.copytree(folder, tmp_path / "kept")
    DAMAGED[request.param](folder)
    yield request.param
    server.put("1")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "kept", folder)


@pytest.mark.parametrize("damaged", DAMAGED, indirect=True)
def test_a_version_with_a_damaged_reference_still_serves_and_says_that_nothing_is_measured(server, damaged):
    done = server.put("2")
    assert done.status_code == 200, done.text
    request_id, labels = classify(server, ordinary(SIZE))
    assert server.live() == {"general": "2"} and set(labels) == {"red square", "blue square"}
    assert server.get(DRIFT).status_code == 404 and server.client.get(WINDOW, headers=SHOWN).status_code == 404
    assert judge(server, request_id, 0, labels[0]).json() == {"predicted": labels[0], "version": "2", "counted": True}
    assert server.metrics()["clipft_drift_measured", "general", "2"] == 0
    assert of_version(server, "2") == {"clipft_drift_measured"}


@pytest.mark.parametrize("damaged", ["no tensors"], indirect=True)
def test_a_version_that_could_not_be_measured_leaves_no_metrics_behind(server, damaged):
    assert server.put("2").status_code == 200
    assert server.put("1").status_code == 200
    assert of_version(server, "2") == set()


def test_nothing_is_kept_of_the_images_unless_somebody_asked_for_it(server, own):
    request_id, labels = classify(server, ordinary(SIZE))
    judge(server, request_id, 0, other(labels[0]))
    kept = server.client.get("/v1/captures/general", headers=SHOWN)
    assert (kept.status_code, kept.json()) == (200, [])
    assert not (own / "captures").exists()
    assert "clipft_captures_total" not in {k[0] for k in server.metrics()}

"""What the classifier's answers claim of themselves, from a package that the stages made to the JSON that a caller reads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLORS, made_image
from fixtures.live_server import CLASSES, FILES, IMAGES, Plain, Server, b64, package, png
from PIL import Image

from clipft_tasks.contracts.calibration import Calibration
from clipft_tasks.evaluate import conformal, metrics
from clipft_tasks.model.group_quantile import group_quantile
from clipft_tasks.model.package import CALIBRATION, read_calibration

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(own: Path) -> Iterator[Server]:
    with Server(own, window=64, window_least=32, drift_seconds=0.3) as server:
        yield server.ready()


@pytest.fixture
def calibration(own: Path) -> Calibration:
    found = read_calibration(package("1"))
    assert found is not None
    return found


def classified(server: Server, images: Any = IMAGES, **more: Any) -> dict[str, Any]:
    answer = server.post(CLASSES, {"images": images, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def noise(count: int) -> list[dict[str, str]]:
    rng = np.random.default_rng(0)
    return [b64(png(Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)))) for _ in range(count)]


def test_the_packages_calibration_was_measured_on_its_validation_rows(calibration):
    assert calibration.classes == sorted(f"{color} square" for color in COLORS)
    assert calibration.coverage == conformal.default_coverage(calibration.groups)
    assert len(calibration.scores) == len(calibration.groups) == len(set(calibration.groups)) >= 4


def test_probabilities_and_sets_are_those_of_the_calibration(server, plain, calibration):
    found = classified(server)
    scores = plain["1"].clip.similarity.compare(plain["1"].images(FILES), plain["1"].classes(calibration.classes))
    expected = np.exp(metrics.log_softmax(scores / calibration.temperature))
    given = np.array([[p["probabilities"][name] for name in calibration.classes] for p in found["predictions"]])
    assert found["calibrated"] is True and given == pytest.approx(expected, abs=1e-3)
    assert found["coverage"] == calibration.coverage
    limit = group_quantile(calibration.scores, calibration.groups, found["coverage"])
    assert limit is not None
    inside = conformal.sets(given, limit)
    for row, said in zip(inside, found["predictions"], strict=True):
        assert set(said["prediction_set"]) == {n for n, there in zip(calibration.classes, row, strict=True) if there}
        assert said["prediction_set"][0] == said["label"]


def test_a_caller_asks_for_another_coverage_and_is_told_where_the_groups_cannot_vouch_for_it(server, calibration):
    assert classified(server, coverage=0.5)["coverage"] == 0.5
    most = classified(server, coverage=0.99)
    assert most["coverage"] is None and all(p["prediction_set"] is None for p in most["predictions"]) and most["calibrated"]
    assert any(f"{len(calibration.groups)}.0 groups" in reason and "99%" in reason for reason in most["reasons"])
    form = server.client.post(CLASSES, files=[("image", FILES[0]), ("coverage", (None, "0.5"))])
    assert form.status_code == 200 and form.json()["coverage"] == 0.5
    for wrong in (0.2, 1, -1, "much", [0.9], True):
        assert server.post(CLASSES, {"images": IMAGES, "coverage": wrong}).status_code == 422, wrong


def test_classes_of_the_callers_own_are_not_calibrated_and_the_answer_says_so(server, calibration):
    found = classified(server, classes=["a red square", "something else"])
    assert found["calibrated"] is False and found["coverage"] is None and found["false_alarms"] is None
    assert "caller's own" in found["reasons"][0]
    for said in found["predictions"]:
        assert said["prediction_set"] is said["none_of_these"] is said["novelty"] is None
        assert sum(said["probabilities"].values()) == pytest.approx(1)
    again = classified(server, classes=calibration.classes[::-1])  # its own, in another order
    assert again["calibrated"] is True
    for one, other in zip(again["predictions"], classified(server)["predictions"], strict=True):
        assert one["label"] == other["label"] and one["probability"] == pytest.approx(other["probability"], abs=1e-3)


def test_images_of_another_kind_are_none_of_these_and_their_share_is_a_drift_signal(server):
    usual = [b64(png(made_image(label, 700 + n))) for n in range(20) for label in COLORS]
    own, other = classified(server, usual)["predictions"], classified(server, noise(40))["predictions"]
    assert np.mean([p["none_of_these"] for p in own]) < 0.3 < 0.9 < np.mean([p["none_of_these"] for p in other])
    assert min(p["novelty"] for p in other) > np.median([p["novelty"] for p in own])
    classified(server, noise(64))
    drift = server.get_with_token("/v1/drift/general").json()
    assert drift["values"]["none_of_these"] > 0.9 and drift["drift"]["none_of_these"] > 1
    assert any(name == "clipft_none_of_these_ratio" and value > 0.9 for (name, *_), value in server.metrics().items())


def test_a_package_without_calibration_serves_and_says_what_it_cannot(server):
    folder = package("2")
    kept = (folder / CALIBRATION).read_text()
    facts = json.loads((folder / "reference.json").read_text())
    before = {name: value for name, value in facts.items() if name != "novelty_limit"} | {"format": 2}
    try:
        (folder / CALIBRATION).unlink()
        (folder / "reference.json").write_text(json.dumps(before))
        assert server.put("2").status_code == 200
        found = classified(server)
        assert found["calibrated"] is False and found["coverage"] is None and len(found["reasons"]) == 2
        assert all(p["prediction_set"] is None and p["none_of_these"] is None for p in found["predictions"])
        (folder / CALIBRATION).write_text(json.dumps(json.loads(kept) | {"prompts": ["another {}"]}))
        assert server.put("1").status_code == server.put("2").status_code == 200
        assert "other classes or prompts" in classified(server)["reasons"][0]
        (folder / CALIBRATION).write_text("{")
        assert server.put("1").status_code == 200
        refused = server.put("2")
        assert refused.status_code == 409 and CALIBRATION in refused.text, refused.text
    finally:
        (folder / CALIBRATION).write_text(kept)
        (folder / "reference.json").write_text(json.dumps(facts))
        server.put("1")


def test_the_plain_model_reads_its_package_with_a_calibration(own):
    assert Plain(package("1")).card.classes == read_calibration(package("1")).classes

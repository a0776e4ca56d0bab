"""Feedback as callers give it: judged answers, what becomes of them, and what does not count."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fixtures.drift_servers import SIZE, classify, drift, judge, of_version, ordinary, other, server, shared  # noqa: F401
from fixtures.live_server import EMBED_IMAGES, IMAGES, Server

pytestmark = pytest.mark.slow


def verdicts(server: Server, version: str = "1") -> tuple[float, float]:
    metrics = server.metrics()
    right, wrong = (metrics.get(("clipft_feedback_total", "general", verdict, version), 0) for verdict in ("right", "wrong"))
    return right, wrong


def test_right_and_wrong_answers_are_counted_and_become_the_accuracy(server):
    right, wrong = verdicts(server)
    request_id, labels = classify(server, ordinary(4))
    for index, true in enumerate([labels[0], labels[1], other(labels[2]), labels[3]]):
        answer = judge(server, request_id, index, true)
        assert answer.status_code == 200
        assert answer.json() == {"predicted": labels[index], "version": "1", "counted": True}
    assert verdicts(server) == (right + 3, wrong + 1)
    said = drift(server)
    assert said["feedback"] == 4 and said["values"]["accuracy"] == 0.75
    assert said["values"]["accuracy_low"] < 0.75 < said["values"]["accuracy_high"]
    metrics = server.metrics()
    for name in ("accuracy", "accuracy_low", "accuracy_high"):
        assert metrics[f"clipft_live_{name}_ratio", "general", "1"] == pytest.approx(said["values"][name])
    assert metrics["clipft_window_items", "general", "feedback", "1"] == 4


def test_without_feedback_no_accuracy_is_claimed(server):
    classify(server, ordinary(SIZE))
    said = drift(server)
    assert "accuracy" not in said["values"] and "performance" not in said["drift"]
    assert "clipft_live_accuracy_ratio" not in {k[0] for k in server.metrics()}


def test_answers_that_were_mostly_wrong_are_drift_of_the_performance(server):
    request_id, labels = classify(server, ordinary(40))
    for index in range(20):
        judge(server, request_id, index, labels[index])
    assert drift(server)["drift"]["performance"] <= 1
    for index in range(20, 40):
        judge(server, request_id, index, other(labels[index]))
    assert drift(server)["drift"]["performance"] > 1


def test_a_image_that_is_judged_again_counts_once(server):
    right, wrong = verdicts(server)
    request_id, labels = classify(server, ordinary(2))
    assert judge(server, request_id, 1, labels[1]).json()["counted"] is True
    for label in (labels[1], other(labels[1])):
        answer = judge(server, request_id, 1, label)
        assert answer.status_code == 200 and answer.json()["counted"] is False
    assert verdicts(server) == (right + 1, wrong)
    said = drift(server)
    assert (said["feedback"], said["values"]["accuracy"]) == (1, 1.0)


def test_feedback_about_what_was_never_answered_is_not_found(server):
    before = verdicts(server)
    request_id, labels = classify(server, ordinary(2))
    assert judge(server, "nobody asked this", 0, labels[0]).status_code == 404
    assert judge(server, request_id, 2, labels[0]).status_code == 404
    assert judge(server, request_id, -1, labels[0]).status_code == 422
    assert judge(server, request_id, 0, "").status_code == 422
    embedded = server.post(EMBED_IMAGES, {"images": IMAGES}).headers["x-clipft-answer-id"]
    assert judge(server, embedded, 0, labels[0]).status_code == 404
    assert verdicts(server) == before and drift(server)["feedback"] == 0


def test_feedback_about_an_older_version_stays_out_of_the_new_ones_window(server):
    request_id, labels = classify(server, ordinary(4))
    right, wrong = verdicts(server)
    assert server.put("2").status_code == 200
    newer = verdicts(server, "2")
    for index in range(4):
        answer = judge(server, request_id, index, other(labels[index]))
        assert (answer.status_code, answer.json()["version"]) == (200, "1")
    said = drift(server)
    assert (said["version"], said["feedback"]) == ("2", 0) and "performance" not in said["drift"]
    assert verdicts(server) == (right, wrong + 4) and verdicts(server, "2") == newer
    assert "clipft_live_accuracy_ratio" not in of_version(server, "1") | of_version(server, "2")


def test_a_flood_of_one_label_changes_only_what_was_really_answered(server):
    right, wrong = verdicts(server)
    request_id, labels = classify(server, ordinary(4))
    found = [judge(server, request, index, "blue square") for request in (request_id, "a", "b") for index in range(20)] + [
        judge(server, request_id, 0, "blue square") for _ in range(40)
    ]
    assert sum(a.status_code == 200 and a.json()["counted"] for a in found) == 4
    blue = labels.count("blue square")
    assert verdicts(server) == (right + blue, wrong + 4 - blue)
    said = drift(server)
    assert (said["feedback"], said["values"]["accuracy"]) == (4, blue / 4)


def test_the_same_judgment_many_times_at_once_counts_once(server):
    right, wrong = verdicts(server)
    request_id, labels = classify(server, ordinary(1))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: judge(server, request_id, 0, labels[0]), range(40)))
    assert sum(a.json()["counted"] for a in answers) == 1
    assert verdicts(server) == (right + 1, wrong) and drift(server)["feedback"] == 1


@pytest.mark.parametrize("label", ["a class that nobody knows", "Red Square", "<script>", "red square\x00"])
def test_a_label_that_is_no_class_of_the_model_is_a_wrong_answer_and_no_label_of_a_metric(server, label):
    right, wrong = verdicts(server)
    request_id, _ = classify(server, ordinary(1))
    assert judge(server, request_id, 0, label).json()["counted"] is True
    assert verdicts(server) == (right, wrong + 1)
    assert not any(label in k for k in server.metrics())
    assert judge(server, request_id, 0, "x" * 501).status_code == 422

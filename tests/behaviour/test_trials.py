"""A challenger on live traffic, in shadow and as canary: a real server on a real registry."""

import shutil

import numpy as np
import pytest
from fixtures.live_server import CLASSES, EMBED_IMAGES, EMBED_TEXTS, IMAGES, PAIRS, TEXTS, b64, changed_card, package
from fixtures.trials import (  # noqa: F401  (fixtures)
    INTERNAL,
    OWN,
    SHOWN,
    TRIAL,
    answering,
    attempt,
    begin,
    classify,
    disputed,
    end,
    refusal,
    report,
    reported,
    server,
    shared,
    too_small,
    tried,
)

pytestmark = pytest.mark.slow


# In shadow ----------------------------------------------------------------------------------------------------------


def test_in_shadow_the_champion_alone_answers_and_the_challenger_is_counted(server, plain):
    began = begin(server)
    assert began == {
        "domain": "general", "version": "2", "share": 1, "answers": False, "requests": 0, "images": 0, "agreement": None,
        "errors": 0, "seconds_p95": {"champion": None, "challenger": None},
    }  # fmt: skip
    answers = [classify(server) for _ in range(5)]
    assert {a.headers["x-clipft-model-version"] for a in answers} == {"1"}
    expected = plain["1"].images() @ plain["1"].classes(plain["1"].card.classes).T
    scores = [list(p["scores"].values()) for p in answers[0].json()["predictions"]]
    assert np.abs(np.array(scores) - expected).max() < 1e-4
    said = reported(server, 5)
    assert (said["requests"], said["images"], said["errors"]) == (5, 5 * len(IMAGES), 0)
    assert said["seconds_p95"]["champion"] > 0 and said["seconds_p95"]["challenger"] > 0


def test_the_agreement_is_that_of_the_two_models(server, disputed):
    alike, unlike = disputed
    begin(server)
    classify(server, [*alike[:3], unlike[0]])
    assert reported(server, 1)["agreement"] == pytest.approx(0.75)
    classify(server, alike[:4])
    assert reported(server, 2)["agreement"] == pytest.approx(7 / 8)


def test_what_the_challenger_says_in_shadow_is_counted_as_nobodys_answer(server):
    begin(server)
    window, before = server.get_with_token("/v1/drift/general").json()["images"], server.metrics()
    classify(server)
    reported(server, 1)
    after = server.metrics()
    assert server.get_with_token("/v1/drift/general").json()["images"] == window + len(IMAGES)
    assert answered(after, "1") == answered(before, "1") + len(IMAGES)
    assert answered(after, "2") == answered(before, "2")
    assert margins(after, "2") == margins(before, "2")


def answered(metrics: dict[tuple[str, ...], float], version: str) -> float:
    """Images classified by a version."""
    return sum(v for k, v in metrics.items() if k[0] == "clipft_predictions_total" and k[-1] == version)


def margins(metrics: dict[tuple[str, ...], float], version: str) -> float:
    return metrics.get(("clipft_similarity_margin_count", "general", version), 0)


def test_a_share_below_one_sees_only_a_part(server):
    begin(server, share=0.5)
    for _ in range(60):
        classify(server, IMAGES[0])
    said = reported(server, 10)
    assert said["requests"] < 60 and said["images"] < 60


def test_a_version_that_fails_in_shadow_is_counted_and_no_caller_sees_it(server):
    with changed_card(package("2"), too_small):
        begin(server)
    assert answering(server) == "1"
    said = reported(server, 1)
    assert (said["requests"], said["errors"], said["agreement"]) == (1, 1, None)


# As canary ----------------------------------------------------------------------------------------------------------


def test_a_canary_of_everything_answers_everything_under_its_own_name(server, plain):
    began = begin(server, answers=True)
    assert began["answers"] is True
    answer = classify(server)
    assert answer.headers["x-clipft-model-version"] == "2" and answer.headers["x-clipft-domain"] == "general"
    assert answer.headers["x-clipft-run-id"] != classify(server, **INTERNAL).headers["x-clipft-run-id"]
    expected = plain["2"].images() @ plain["2"].classes(plain["2"].card.classes).T
    scores = [list(p["scores"].values()) for p in answer.json()["predictions"]]
    assert np.abs(np.array(scores) - expected).max() < 1e-4
    said = report(server)
    assert (said["requests"], said["errors"]) == (1, 0) and said["seconds_p95"]["challenger"] > 0


def test_a_canary_answers_counts_to_itself_and_not_to_the_champion(server):
    classify(server)
    begin(server, answers=True)
    window, before = server.get_with_token("/v1/drift/general").json(), server.metrics()
    for _ in range(3):
        classify(server)
    now, after = server.get_with_token("/v1/drift/general").json(), server.metrics()
    assert (now["version"], now["images"]) == ("1", window["images"])
    items = ("clipft_window_items", "general", "images", "1")
    assert after[items] == before[items] > 0
    assert not [k for k in after if k[0] == "clipft_window_items" and k[-1] == "2"]
    assert answered(after, "1") == answered(before, "1") and margins(after, "1") == margins(before, "1")
    assert answered(after, "2") == answered(before, "2") + 3 * len(IMAGES)


def test_feedback_on_a_canarys_answer_is_no_feedback_on_the_champion(server):
    begin(server, answers=True)
    before = server.get_with_token("/v1/drift/general").json()["feedback"]
    body = {"answer_id": classify(server).headers["x-clipft-answer-id"], "index": 0, "label": "blue square"}
    judged = server.client.post("/v1/feedback", json=body, headers=SHOWN).json()
    assert judged["version"] == "2" and judged["counted"] is True
    assert server.get_with_token("/v1/drift/general").json()["feedback"] == before


def test_a_canary_of_a_part_leaves_the_rest_to_the_champion(server):
    begin(server, share=0.5, answers=True)
    versions = [answering(server) for _ in range(60)]
    assert set(versions) == {"1", "2"}
    said = report(server)
    assert said["requests"] == versions.count("2")
    assert said["seconds_p95"]["champion"] > 0 and said["seconds_p95"]["challenger"] > 0


def test_a_bad_image_to_a_canary_is_the_callers_fault_and_not_the_canarys(server):
    begin(server, answers=True)
    answer = server.post(CLASSES, {"images": [IMAGES[0], b64(b"words")]})
    assert answer.status_code == 422 and "Image 2" in answer.json()["detail"]
    assert report(server)["errors"] == 0
    assert answering(server) == "2"


def test_where_a_canary_fails_the_champion_answers(server):
    with changed_card(package("2"), too_small):
        begin(server, answers=True)
    assert [answering(server) for _ in range(2)] == ["1", "1"]
    said = report(server)
    assert (said["requests"], said["errors"]) == (2, 2)


# What is tried, and how it ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [False, True], ids=["shadow", "canary"])
def test_only_ordinary_classify_requests_are_tried(server, answers):
    begin(server, answers=answers)
    others = [
        server.post(CLASSES, {"images": IMAGES, "classes": OWN}),
        server.post(CLASSES, {"images": IMAGES, "classes": ["blue square", "red square"]}),
        classify(server, **INTERNAL),
        server.post(EMBED_IMAGES, {"images": IMAGES}),
        server.post(EMBED_TEXTS, {"texts": TEXTS}),
        server.post(PAIRS, {"images": IMAGES, "texts": TEXTS}),
    ]
    assert {(a.status_code, a.headers["x-clipft-model-version"]) for a in others} == {(200, "1")}
    classify(server)  # this one is, and comes last
    assert reported(server, 1)["requests"] == 1


def test_a_trial_can_be_ended(server):
    begin(server, answers=True)
    assert answering(server) == "2"
    assert end(server) is True
    assert answering(server) == "1"
    gone = server.get(TRIAL)
    assert gone.status_code == 404 and "general" in gone.json()["detail"]
    assert end(server) is False


def test_a_promotion_ends_the_trial(server):
    begin(server)
    assert server.put("2").status_code == 200
    assert not tried(server)
    begin(server, "1", answers=True)  # now the old champion may be tried beside the new one
    assert answering(server) == "1"
    assert server.put("1").status_code == 200
    assert not tried(server) and answering(server) == "1"


def test_the_same_again_goes_on_counting_and_anything_else_begins_anew(server):
    begin(server)
    classify(server)
    reported(server, 1)
    assert begin(server)["requests"] == 1
    assert begin(server, share=0.9)["requests"] == 0
    begin(server)
    classify(server)
    reported(server, 1)
    canary = begin(server, answers=True)
    assert (canary["requests"], canary["images"], canary["agreement"]) == (0, 0, None)
    assert canary["seconds_p95"] == {"champion": None, "challenger": None}


def test_what_cannot_be_tried_is_refused_with_the_reason(server):
    assert "live already" in refusal(attempt(server, "1"))
    assert "99" in refusal(attempt(server, "99"))
    assert "nothing" in refusal(attempt(server, path="/v1/shadows/industrial"))
    assert "nothing" in refusal(attempt(server, path="/v1/shadows/nowhere"))
    assert not tried(server) and server.get("/v1/shadows/industrial").status_code == 404
    assert answering(server) == "1"


def test_a_version_that_knows_other_classes_cannot_be_tried(server):
    with changed_card(package("2"), lambda card: card.update(classes=["green square", "red square"])):
        assert "classes" in refusal(attempt(server))
    assert not tried(server)


def test_a_damaged_package_is_refused_with_a_reason(server):
    """Told as a deployment is told: 409 and why, the champion goes on."""
    folder = package("2")
    kept = folder.parent / "kept-for-the-test"
    shutil.move(folder / "card.json", kept)
    try:
        answer = attempt(server)
    finally:
        shutil.move(kept, folder / "card.json")
    assert answering(server) == "1" and not tried(server)
    refusal(answer)


@pytest.mark.parametrize("wrong", [{"share": 0}, {"share": 1.1}, {"share": -1}, {"version": "two"}, {"more": 1}])
def test_a_request_for_a_trial_that_makes_no_sense_is_refused(server, wrong):
    answer = server.client.put(TRIAL, json={"version": "2", **wrong}, headers=SHOWN)
    assert answer.status_code == 422 and next(iter(wrong)) in answer.text
    assert not tried(server)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}])
def test_only_the_token_lets_a_caller_begin_or_end_a_trial(server, headers):
    asked = {"version": "2", "share": 1, "answers": True}
    assert server.client.put(TRIAL, json=asked, headers=headers).status_code == 401
    assert not tried(server)
    begin(server)
    assert server.client.put(TRIAL, json=asked, headers=headers).status_code == 401
    assert server.client.delete(TRIAL, headers=headers).status_code == 401
    assert report(server)["answers"] is False  # what was begun goes on

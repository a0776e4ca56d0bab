"""A challenger on live traffic, in shadow and as canary, and the stage that tries it: a real server on a real registry."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import COLOURS, made_picture
from PIL import Image

from behaviour.live_server import (
    CLASSES,
    IMAGES,
    PAIRS,
    PICTURES,
    TEXTS,
    TOKEN,
    WORDS,
    Plain,
    Server,
    b64,
    changed_card,
    package,
    png,
)
from clipft_tasks.errors import ClipftError, Transient
from clipft_tasks.settings import settings
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import rollout

pytestmark = pytest.mark.slow

SHOWN = {"Authorization": f"Bearer {TOKEN}"}
PROBE = SHOWN | {"X-Clipft-Probe": "1"}
TRIAL = "/v1/shadows/general"
OWN = ["a tree", "a house"]


@pytest.fixture(scope="module")
def shared(own: Path) -> Iterator[Server]:
    with Server(own, drift_seconds=0, window_least=16) as server:
        yield server.ready()


@pytest.fixture
def server(shared: Server) -> Server:
    """The module's server, with version 1 live and nothing tried beside it."""
    end(shared)
    assert shared.put("1").status_code == 200
    return shared


def attempt(server: Server, version: str = "2", share: float = 1, answers: bool = False, path: str = TRIAL) -> httpx.Response:
    return server.client.put(path, json={"version": version, "share": share, "answers": answers}, headers=SHOWN)


def begin(server: Server, version: str = "2", share: float = 1, answers: bool = False) -> dict[str, Any]:
    answer = attempt(server, version, share, answers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def end(server: Server) -> bool:
    answer = server.client.delete(TRIAL, headers=SHOWN)
    assert answer.status_code == 200, answer.text
    return answer.json()["ended"]


def report(server: Server) -> dict[str, Any]:
    answer = server.get(TRIAL)
    assert answer.status_code == 200, answer.text
    return answer.json()


def reported(server: Server, requests: int) -> dict[str, Any]:
    """The report once it counts so many requests: in shadow the challenger is asked after the caller has its answer."""
    server.until(lambda: report(server)["requests"] >= requests, 20)
    return report(server)


def tried(server: Server) -> bool:
    return server.get(TRIAL).status_code == 200


def classify(server: Server, pictures: Any = PICTURES, **headers: str) -> httpx.Response:
    answer = server.client.post(CLASSES, json={"images": pictures}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def answering(server: Server, **headers: str) -> str:
    return classify(server, PICTURES[0], **headers).headers["x-clipft-model-version"]


def refusal(answer: httpx.Response) -> str:
    """Why the server refused, in words."""
    assert answer.status_code == 409, answer.text
    why = answer.json()["detail"]
    assert isinstance(why, str) and len(why) > 20
    return why


@pytest.fixture(scope="module")
def disputed(plain: dict[str, Plain]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Pictures for which both versions name the same class, and pictures for which they do not."""
    red, blue = (made_picture(label, 800) for label in COLOURS)
    noise = np.random.default_rng(0).integers(0, 256, (200, 12, 12, 3)).astype(np.uint8)
    blends = [Image.blend(red, blue, share) for share in np.linspace(0, 1, 60)]
    files = [png(p) for p in blends + [Image.fromarray(n).resize((48, 48)) for n in noise]]
    said = [(p.images(files) @ p.classes(p.card["classes"]).T) for p in plain.values()]
    clear = np.all([np.abs(s[:, 0] - s[:, 1]) > 1e-3 for s in said], axis=0)  # no rounding decides these
    same = said[0].argmax(axis=1) == said[1].argmax(axis=1)
    alike = [b64(f) for f, c, s in zip(files, clear, same, strict=True) if c and s]
    unlike = [b64(f) for f, c, s in zip(files, clear, same, strict=True) if c and not s]
    assert alike and unlike
    return alike, unlike


def too_small(card: dict[str, Any]) -> None:
    """Pictures of less than one patch: such a version loads, and fails at every picture."""
    card["resolutions"]["serve"] = 4


# In shadow ----------------------------------------------------------------------------------------------------------


def test_in_shadow_the_champion_alone_answers_and_the_challenger_is_counted(server, plain):
    began = begin(server)
    assert began == {
        "domain": "general", "version": "2", "share": 1, "answers": False, "requests": 0, "pictures": 0, "agreement": None,
        "errors": 0, "seconds_p95": {"champion": None, "challenger": None},
    }  # fmt: skip
    answers = [classify(server) for _ in range(5)]
    assert {a.headers["x-clipft-model-version"] for a in answers} == {"1"}
    expected = plain["1"].images() @ plain["1"].classes(plain["1"].card["classes"]).T
    scores = [list(p["scores"].values()) for p in answers[0].json()["predictions"]]
    assert np.abs(np.array(scores) - expected).max() < 1e-4
    said = reported(server, 5)
    assert (said["requests"], said["pictures"], said["errors"]) == (5, 5 * len(PICTURES), 0)
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
    window, before = server.get("/v1/drift/general").json()["pictures"], server.figures()
    classify(server)
    reported(server, 1)
    after = server.figures()
    assert server.get("/v1/drift/general").json()["pictures"] == window + len(PICTURES)
    assert answered(after, "1") == answered(before, "1") + len(PICTURES)
    assert answered(after, "2") == answered(before, "2")
    assert margins(after, "2") == margins(before, "2")


def answered(figures: dict[tuple[str, ...], float], version: str) -> float:
    """Pictures classified by a version."""
    return sum(v for k, v in figures.items() if k[0] == "clipft_predictions_total" and k[-1] == version)


def margins(figures: dict[tuple[str, ...], float], version: str) -> float:
    return figures.get(("clipft_similarity_margin_count", "general", version), 0)


def test_a_share_below_one_sees_only_a_part(server):
    begin(server, share=0.5)
    for _ in range(60):
        classify(server, PICTURES[0])
    said = reported(server, 10)
    assert said["requests"] < 60 and said["pictures"] < 60


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
    assert answer.headers["x-clipft-run-id"] != classify(server, **PROBE).headers["x-clipft-run-id"]
    expected = plain["2"].images() @ plain["2"].classes(plain["2"].card["classes"]).T
    scores = [list(p["scores"].values()) for p in answer.json()["predictions"]]
    assert np.abs(np.array(scores) - expected).max() < 1e-4
    said = report(server)
    assert (said["requests"], said["errors"]) == (1, 0) and said["seconds_p95"]["challenger"] > 0


def test_a_canary_answers_counts_to_itself_and_not_to_the_champion(server):
    classify(server)
    begin(server, answers=True)
    window, before = server.get("/v1/drift/general").json(), server.figures()
    for _ in range(3):
        classify(server)
    now, after = server.get("/v1/drift/general").json(), server.figures()
    assert (now["version"], now["pictures"]) == ("1", window["pictures"])
    items = ("clipft_window_items", "general", "pictures", "1")
    assert after[items] == before[items] > 0
    assert not [k for k in after if k[0] == "clipft_window_items" and k[-1] == "2"]
    assert answered(after, "1") == answered(before, "1") and margins(after, "1") == margins(before, "1")
    assert answered(after, "2") == answered(before, "2") + 3 * len(PICTURES)


def test_feedback_on_a_canarys_answer_is_no_feedback_on_the_champion(server):
    begin(server, answers=True)
    before = server.get("/v1/drift/general").json()["feedback"]
    body = {"request_id": classify(server).headers["x-request-id"], "index": 0, "label": "blue square"}
    judged = server.client.post("/v1/feedback", json=body, headers=SHOWN).json()
    assert judged["version"] == "2" and judged["counted"] is True
    assert server.get("/v1/drift/general").json()["feedback"] == before


def test_a_canary_of_a_part_leaves_the_rest_to_the_champion(server):
    begin(server, share=0.5, answers=True)
    versions = [answering(server) for _ in range(60)]
    assert set(versions) == {"1", "2"}
    said = report(server)
    assert said["requests"] == versions.count("2")
    assert said["seconds_p95"]["champion"] > 0 and said["seconds_p95"]["challenger"] > 0


def test_a_bad_picture_to_a_canary_is_the_callers_fault_and_not_the_canarys(server):
    begin(server, answers=True)
    answer = server.post(CLASSES, {"images": [PICTURES[0], b64(b"words")]})
    assert answer.status_code == 422 and "Picture 2" in answer.json()["detail"]
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
        server.post(CLASSES, {"images": PICTURES, "classes": OWN}),
        server.post(CLASSES, {"images": PICTURES, "classes": ["blue square", "red square"]}),
        classify(server, **PROBE),
        server.post(IMAGES, {"images": PICTURES}),
        server.post(WORDS, {"texts": TEXTS}),
        server.post(PAIRS, {"images": PICTURES, "texts": TEXTS}),
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
    assert (canary["requests"], canary["pictures"], canary["agreement"]) == (0, 0, None)
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


# The stage ----------------------------------------------------------------------------------------------------------


def spec(**asked: float) -> RunSpec:
    """A trial whose speed does not matter."""
    flat = {"requests": 4, "share": 0.5, "max_slowdown": 10_000, "minutes": 1, **asked}
    return RunSpec.from_flat({"domain": "general"} | {f"rollout.{name}": value for name, value in flat.items()})


@pytest.fixture
def staged(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, known to this process as the pipeline knows it. However a trial goes, the champion has everything again."""
    monkeypatch.setenv("CLIPFT_SERVER_URL", server.url)
    monkeypatch.setenv("CLIPFT_SERVER_TOKEN", TOKEN)
    monkeypatch.setattr(rollout, "POLL", 0.05)
    settings.cache_clear()
    yield server
    settings.cache_clear()
    assert not tried(server)
    assert {answering(server) for _ in range(5)} == {"1"}


@contextmanager
def traffic(server: Server, pictures: list[dict[str, str]]) -> Iterator[list[tuple[int, str]]]:
    """Callers, until the block ends; yields the status and the version of each answer."""
    seen: list[tuple[int, str]] = []
    over = threading.Event()

    def caller() -> None:
        with httpx.Client(base_url=server.url, timeout=30) as line:
            while not over.wait(0.01):
                answer = line.post(CLASSES, json={"images": pictures})
                seen.append((answer.status_code, answer.headers.get("x-clipft-model-version", "")))

    thread = threading.Thread(target=caller)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join(60)


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch, own: Path) -> Iterator[None]:
    monkeypatch.setenv("CLIPFT_SERVER_URL", "http://127.0.0.1:9")
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_without_a_trial_asked_for_no_server_is_needed(no_server):
    assert rollout.run(spec(requests=0), "2") == {"version": "2", "tried": False}
    assert rollout.run(RunSpec.from_flat({"domain": "general"}), "2") == {"version": "2", "tried": False}


def test_a_server_that_is_away_is_worth_another_attempt(no_server):
    with pytest.raises(Transient, match="does not answer"):
        rollout.run(spec(), "2")


def test_with_nothing_to_compare_with_there_is_no_trial(staged):
    assert rollout.run(spec(), "1") == {"version": "1", "tried": False}
    elsewhere = RunSpec.from_flat({"domain": "industrial", "rollout.requests": 4})
    assert rollout.run(elsewhere, "2") == {"version": "2", "tried": False}


def test_a_version_that_proves_itself_passes_and_no_caller_was_let_down(staged, disputed):
    with traffic(staged, disputed[0][:2]) as seen:
        done = rollout.run(spec(min_agreement=1), "2")
        assert not tried(staged)
    assert (done["version"], done["tried"]) == ("2", True)
    shadow, canary = done["shadow"], done["canary"]
    assert (shadow["answers"], shadow["version"], shadow["errors"], shadow["agreement"]) == (False, "2", 0, 1)
    assert (canary["answers"], canary["version"], canary["errors"]) == (True, "2", 0)
    assert shadow["requests"] >= 4 and canary["requests"] >= 4
    assert {status for status, _ in seen} == {200}
    assert [version for _, version in seen].count("2") >= 4
    json.dumps(done)  # it is handed on between tasks


def test_a_version_that_disagrees_is_refused_before_it_answers_anybody(staged, disputed):
    alike, unlike = disputed
    with traffic(staged, [alike[0], unlike[0]]) as seen, pytest.raises(ClipftError, match="version 2 as shadow.*50%.*60%"):
        rollout.run(spec(min_agreement=0.6), "2")
    assert set(seen) == {(200, "1")}


def test_an_agreement_that_was_asked_for_is_enough(staged, disputed):
    alike, unlike = disputed
    with traffic(staged, [alike[0], unlike[0]]):
        done = rollout.run(spec(min_agreement=0.5), "2")
    assert done["tried"] is True and done["shadow"]["agreement"] == 0.5


def test_a_version_that_fails_is_refused_and_no_caller_was_let_down(staged):
    with (
        changed_card(package("2"), too_small),
        traffic(staged, PICTURES[:1]) as seen,
        pytest.raises(ClipftError, match="version 2 as shadow.*failed"),
    ):
        rollout.run(spec(), "2")
    assert set(seen) == {(200, "1")}


def test_too_little_traffic_within_the_time_is_no_promotion(staged):
    with pytest.raises(ClipftError, match="version 2 as shadow: it saw 0 of 4 requests"):
        rollout.run(spec(minutes=0.005), "2")


def test_traffic_that_ends_before_the_canary_has_seen_enough_is_no_promotion(staged, monkeypatch):
    """Callers in the first half only."""
    half = rollout._half

    def halves(asked: RunSpec, version: str, name: str, answers: bool, **more: object) -> dict[str, Any]:
        if answers:
            return half(asked, version, name, answers)
        with traffic(staged, PICTURES[:1]):
            return half(spec(min_agreement=0), version, name, answers)

    monkeypatch.setattr(rollout, "_half", halves)
    with pytest.raises(ClipftError, match="version 2 as canary: it saw 0 of 4 requests"):
        rollout.run(spec(minutes=0.005, min_agreement=0), "2")


def test_a_version_that_nobody_registered_is_refused(staged):
    with pytest.raises(ClipftError, match="99"):
        rollout.run(spec(), "99")


def test_a_trial_that_somebody_stops_leaves_nothing_behind(staged, monkeypatch):
    def stopped(_: float) -> None:
        assert tried(staged)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rollout.time, "sleep", stopped)
        rollout.run(spec(), "2")


def test_the_wrong_token_is_said(staged, monkeypatch):
    monkeypatch.setenv("CLIPFT_SERVER_TOKEN", "wrong")
    settings.cache_clear()
    with pytest.raises(ClipftError, match="token"):
        rollout.run(spec(), "2")

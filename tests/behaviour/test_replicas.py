"""Several replicas of the server speak as one: whatever one is told, all know. Two real ones share no disk, a third is away."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures.live_server import CLASSES, IMAGES, TAMPERED, TOKEN, Server, copied, trained, use
from fixtures.ports import free_port

from clipft_tasks.contracts.drift import answer_hash
from clipft_tasks.contracts.serving import TrialLatency, TrialReport
from clipft_tasks.core.errors import TransientError
from clipft_tasks.core.settings import settings
from clipft_tasks.server.client import ServerClient
from serving.inference.rollout import merge_reports

pytestmark = pytest.mark.slow

SHOWN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def running(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    homes = [copied(trained(base), tmp_path_factory.mktemp("replica") / "home") for _ in "ab"]
    ports = [free_port() for _ in range(3)]
    peers = ",".join(f"127.0.0.1:{p}" for p in ports)

    def start(number: int) -> Server:
        return Server(homes[number], port=ports[number], peers=peers, capture=1, window_least=16)

    with ThreadPoolExecutor() as beside:
        first, second = beside.map(start, (0, 1))
    with first, second:
        yield first.ready(), second.ready()


@pytest.fixture
def pair(running: tuple[Server, Server]) -> tuple[Server, Server]:
    """Both with version 1 live and nothing tried."""
    first, second = running
    first.client.delete("/v1/shadows/general", headers=SHOWN)
    assert first.put("1").status_code == 200
    assert first.live() == second.live() == {"general": "1"}
    return first, second


def classify(server: Server, name: str) -> dict[str, str]:
    answer = server.client.post(CLASSES, json={"images": IMAGES[:2]}, headers={"X-Request-Id": name})
    assert answer.status_code == 200
    return dict(answer.headers)


def test_what_one_is_told_to_deploy_is_live_on_all_when_it_answers(pair):
    first, second = pair
    said = first.put("2").json()
    assert first.live() == second.live() == {"general": "2"}
    assert sorted(said["replicas"].values()) == ["2", "away"] and said["replicas"][second.url] == "2"
    assert second.put("1").status_code == 200 and first.live() == {"general": "1"}
    assert first.put("1").json()["replicas"][second.url] == "1"


def test_a_version_that_one_replica_refuses_is_live_on_none(pair):
    first, second = pair
    cached = [p.parent for p in (second.home / "cache" / "models").glob("*/recorded_answers.json")]
    good = {folder: (folder / "recorded_answers.json").read_text() for folder in cached}
    for folder in cached:
        TAMPERED["other recorded answers"](folder)
    answer = first.put("2")
    for folder, text in good.items():
        (folder / "recorded_answers.json").write_text(text)
    assert answer.status_code == 409 and second.url in answer.json()["detail"] and "differ" in answer.json()["detail"]
    assert first.live() == second.live() == {"general": "1"}


def test_a_trial_runs_on_all_and_its_report_counts_them_together(pair):
    first, second = pair
    body = {"version": "2", "share": 1, "answers": True}
    assert first.client.put("/v1/shadows/general", json=body, headers=SHOWN).status_code == 200
    asked = {"first": 3, "second": 2}
    for server, many in zip(pair, asked.values(), strict=True):
        for number in range(many):
            assert classify(server, f"trial-{many}-{number}")["x-clipft-model-version"] == "2"
    reports = [s.client.get("/v1/shadows/general", headers=SHOWN).json() for s in pair]
    reports.append(second.client.put("/v1/shadows/general", json=body, headers=SHOWN).json())
    assert [r["requests"] for r in reports] == [5, 5, 5]
    assert second.client.delete("/v1/shadows/general", headers=SHOWN).json() == {"ended": True}
    assert first.client.get("/v1/shadows/general").status_code == 404


def test_feedback_finds_the_replica_that_gave_the_answer(pair):
    first, second = pair
    answer_id = classify(second, "told-to-the-other")["x-clipft-answer-id"]
    body = {"answer_id": answer_id, "index": 0, "label": "red square"}
    assert first.client.post("/v1/feedback", json=body).status_code == 401
    said = first.client.post("/v1/feedback", json=body, headers=SHOWN)
    assert said.status_code == 200 and said.json()["counted"] is True
    assert first.client.post("/v1/feedback", json=body, headers=SHOWN).json()["counted"] is False
    nobody = first.client.post("/v1/feedback", json=body | {"answer_id": "nobody's"}, headers=SHOWN)
    assert nobody.status_code == 404 and "nobody's" in nobody.json()["detail"]


def test_captures_are_listed_shown_labeled_and_deleted_wherever_they_lie(pair):
    first, second = pair
    name = classify(second, "a name/with a slash")["x-clipft-answer-id"]
    kept = first.client.get("/v1/captures/general", headers=SHOWN).json()
    there = next(c for c in kept if c["request"] == answer_hash(name))
    assert not list((first.home / "captures" / "general").glob(f"{there['id']}*"))
    assert len(kept) == len({c["id"] for c in kept})
    image = first.client.get(f"/v1/captures/general/{there['id']}", headers=SHOWN)
    assert image.status_code == 200 and image.content[:4] == b"\x89PNG"
    label = first.client.put(f"/v1/captures/general/{there['id']}", json={"label": "blue square"}, headers=SHOWN)
    assert label.status_code == 200
    listed = second.client.get("/v1/captures/general", headers=SHOWN).json()
    assert {c["label"] for c in listed if c["id"] == there["id"]} == {"blue square"}
    # One replica is away, so nobody can promise that all of it is gone; what answers has deleted it.
    gone = first.client.delete(f"/v1/answers/{name}", headers=SHOWN)
    assert gone.status_code == 503 and "do not answer" in gone.json()["detail"]
    left = {c["request"] for c in second.client.get("/v1/captures/general", headers=SHOWN).json()}
    assert there["request"] not in left


def test_the_share_of_captures_is_set_on_all(pair):
    first, second = pair
    first.client.put("/v1/captures/general", json={"share": 0}, headers=SHOWN)
    before = len(second.client.get("/v1/captures/general", headers=SHOWN).json())
    classify(second, "not-kept")
    assert len(second.client.get("/v1/captures/general", headers=SHOWN).json()) == before
    first.client.put("/v1/captures/general", json={"share": None}, headers=SHOWN)


def test_a_window_is_that_of_all(pair):
    for server in pair:
        classify(server, f"window-{server.url}")
    rows = [s.client.get("/v1/windows/general", headers=SHOWN).json()["appearance"] for s in pair]
    relayed = SHOWN | {"X-Clipft-Relayed": "1"}
    alone = [s.client.get("/v1/windows/general", headers=relayed).json()["appearance"] for s in pair]
    assert all(alone) and len(rows[0]) == len(rows[1]) == len(alone[0]) + len(alone[1])


def test_drift_is_that_of_all(pair):
    for server in pair:
        for number in range(8):  # 16 rows each, so that every signal of images speaks
            classify(server, f"drift-{number}-{server.url}")
    relayed = SHOWN | {"X-Clipft-Relayed": "1"}
    one, other = (s.client.get("/v1/drift/general", headers=relayed | SHOWN).json() for s in pair)
    both = [s.client.get("/v1/drift/general", headers=SHOWN).json() for s in pair]
    assert [b["images"] for b in both] == [one["images"] + other["images"]] * 2
    rows = [w["rows"]["brightness"] for w in (one, other)]
    assert both[0]["rows"]["brightness"] == sum(rows)
    assert both[0]["drift"]["brightness"] == pytest.approx(
        sum(w["drift"]["brightness"] * n for w, n in zip((one, other), rows, strict=True)) / sum(rows)
    )


def test_the_pipeline_waits_until_all_agree(pair, monkeypatch):
    first, second = pair
    with monkeypatch.context() as patch:
        use(first.home, patch)
        patch.setenv("CLIPFT_SERVER_URL", first.url)
        patch.setenv("CLIPFT_SERVER_TOKEN", TOKEN)
        assert ServerClient().wait_for_version("general", "1", 5) == 2
        only_here = {"version": "2"}, SHOWN | {"X-Clipft-Relayed": "1"}  # as a replica that missed the news
        assert second.client.put("/v1/models/general", json=only_here[0], headers=only_here[1]).status_code == 200
        with pytest.raises(TransientError, match="Not every replica answers with version 1"):
            ServerClient().wait_for_version("general", "1", 1)
        assert first.put("2").status_code == 200 and ServerClient().wait_for_version("general", "2", 5) == 2
    settings.cache_clear()
    assert first.client.get("/v1/replicas").status_code == 401


def test_reports_add_up():
    def reported(requests: int, images: int, agreement: float | None, errors: int, *p95: float | None) -> TrialReport:
        seconds = TrialLatency(champion=p95[0], challenger=p95[1])
        return TrialReport(
            domain="d", version="2", share=1, answers=False, requests=requests, images=images, agreement=agreement,
            errors=errors, seconds_p95=seconds,
        )  # fmt: skip

    none = reported(0, 0, None, 1, 0.1, None)
    merged = merge_reports([reported(2, 4, 1.0, 0, 0.1, None), reported(1, 12, 0.5, 1, 0.3, 0.2), none])
    assert (merged.requests, merged.images, merged.errors, merged.agreement) == (3, 16, 2, 0.625)
    assert merged.seconds_p95 == TrialLatency(champion=0.3, challenger=0.2)
    assert merge_reports([none]).agreement is None

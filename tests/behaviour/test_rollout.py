"""The stage that tries a version on live traffic before it is promoted."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.errors import refuses
from fixtures.live_server import CLASSES, IMAGES, TOKEN, Server, changed_card, package
from fixtures.trials import answering, disputed, server, shared, too_small, tried  # noqa: F401  (fixtures)

from clipft_tasks.contracts.stages import RolloutResult
from clipft_tasks.core.errors import ClipftError, TransientError
from clipft_tasks.core.settings import settings
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import rollout

pytestmark = pytest.mark.slow


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
def traffic(server: Server, images: list[dict[str, str]]) -> Iterator[list[tuple[int, str]]]:
    """Callers, until the block ends; yields the status and the version of each answer."""
    seen: list[tuple[int, str]] = []
    over = threading.Event()

    def caller() -> None:
        with httpx.Client(base_url=server.url, timeout=30) as line:
            while not over.wait(0.01):
                answer = line.post(CLASSES, json={"images": images})
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
    assert rollout.run(spec(requests=0), "2") == RolloutResult(version="2", tried=False)
    assert rollout.run(RunSpec.from_flat({"domain": "general"}), "2") == RolloutResult(version="2", tried=False)


def test_a_server_that_is_away_is_worth_another_attempt(no_server):
    with pytest.raises(TransientError, match="does not answer"):
        rollout.run(spec(), "2")


def test_with_nothing_to_compare_with_there_is_no_trial(staged):
    assert rollout.run(spec(), "1") == RolloutResult(version="1", tried=False)
    elsewhere = RunSpec.from_flat({"domain": "industrial", "rollout.requests": 4})
    assert rollout.run(elsewhere, "2") == RolloutResult(version="2", tried=False)


def test_a_version_that_proves_itself_passes_and_no_caller_was_let_down(staged, disputed):
    with traffic(staged, disputed[0][:2]) as seen:
        done = rollout.run(spec(min_agreement=1), "2")
        assert not tried(staged)
    assert (done.version, done.tried) == ("2", True)
    shadow, canary = done.shadow, done.canary
    assert (shadow.answers, shadow.version, shadow.errors, shadow.agreement) == (False, "2", 0, 1)
    assert (canary.answers, canary.version, canary.errors) == (True, "2", 0)
    assert shadow.requests >= 4 and canary.requests >= 4
    assert {status for status, _ in seen} == {200}
    assert [version for _, version in seen].count("2") >= 4
    json.dumps(done.to_json(), allow_nan=False)  # it is handed on between tasks


def test_a_version_that_disagrees_is_refused_before_it_answers_anybody(staged, disputed):
    alike, unlike = disputed
    with traffic(staged, [alike[0], unlike[0]]) as seen, refuses("rollout.refused", "version 2 as shadow", "50%", "60%"):
        rollout.run(spec(min_agreement=0.6), "2")
    assert set(seen) == {(200, "1")}


def test_an_agreement_that_was_asked_for_is_enough(staged, disputed):
    alike, unlike = disputed
    with traffic(staged, [alike[0], unlike[0]]):
        done = rollout.run(spec(min_agreement=0.5), "2")
    assert done.tried is True and done.shadow.agreement == 0.5


def test_a_version_that_fails_is_refused_and_no_caller_was_let_down(staged):
    with (
        changed_card(package("2"), too_small),
        traffic(staged, IMAGES[:1]) as seen,
        refuses("rollout.refused", "version 2 as shadow", "failed"),
    ):
        rollout.run(spec(), "2")
    assert set(seen) == {(200, "1")}


def test_too_little_traffic_within_the_time_is_no_promotion(staged):
    with refuses("rollout.refused", "version 2 as shadow", "0 of 4 requests"):
        rollout.run(spec(minutes=0.005), "2")


def test_traffic_that_ends_before_the_canary_has_seen_enough_is_no_promotion(staged, monkeypatch):
    """Callers in the first half only."""
    half = rollout._half

    def halves(asked: RunSpec, version: str, name: str, answers: bool, **more: object) -> dict[str, Any]:
        if answers:
            return half(asked, version, name, answers)
        with traffic(staged, IMAGES[:1]):
            return half(spec(min_agreement=0), version, name, answers)

    monkeypatch.setattr(rollout, "_half", halves)
    with refuses("rollout.refused", "version 2 as canary", "0 of 4 requests"):
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

"""A re-adaptation that made things worse: judged answers show it, the version before comes back by itself, once, then the breaker."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.errors import refuses
from fixtures.live_server import CLASSES, EMBED_TEXTS, IMAGES, TOKEN, Server, change_answers, copied, package, trained, use

from clipft_tasks import tracking
from clipft_tasks.contracts.drift import DriftAlert, IncidentState
from clipft_tasks.contracts.stages import CloseResult, TriageResult
from clipft_tasks.core.errors import ClipftError, TransientError
from clipft_tasks.core.settings import settings
from clipft_tasks.data import versioning
from clipft_tasks.drift import incident_store
from clipft_tasks.drift.thresholds import COOL_DOWN
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import close, deploy, ingest, promote, rollback, suggest, triage, verify, version

pytestmark = pytest.mark.slow
SPEC = RunSpec.from_flat({"domain": "general"})
NAME = "clipft-general"
SHOWN = {"Authorization": f"Bearer {TOKEN}"}
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = copied(trained(tmp_path_factory.getbasetemp() / "two-versions"), tmp_path_factory.mktemp("watch") / "home")
    with Server(home, drift_seconds=0, window_least=16) as server:
        yield server.ready()


@pytest.fixture
def server(running: Server, tmp_path: Path) -> Iterator[Server]:
    """Version 1 is champion and live, nothing ever happened; this process speaks with the server as the pipeline does."""
    with pytest.MonkeyPatch.context() as patch:
        use(running.home, patch)
        patch.setenv("CLIPFT_SERVER_URL", running.url)
        patch.setenv("CLIPFT_SERVER_TOKEN", TOKEN)
        settings.cache_clear()
        tracking.client().set_registered_model_alias(NAME, tracking.CHAMPION, "1")
        tracking.client().delete_registered_model_alias(NAME, tracking.PREVIOUS)
        for version in ("1", "2"):  # an earlier test may have had one of them refused
            tracking.client().set_model_version_tag(NAME, version, "clipft.deploy", "")
        incident_store.save("general", IncidentState())
        shutil.copytree(running.home / "cache" / "models", tmp_path / "kept")
        assert running.put("2").status_code == 200 and running.put("1").status_code == 200  # so that its window is empty
        yield running
        shutil.rmtree(running.home / "cache" / "models")
        shutil.copytree(tmp_path / "kept", running.home / "cache" / "models")
    settings.cache_clear()


def judge(server: Server, right: int, wrong: int) -> None:
    """Traffic that an inspector judges: so many answers right, and so many wrong."""
    for number in range(right + wrong):
        answer = server.client.post(CLASSES, json={"images": [IMAGES[number % len(IMAGES)]]})
        said = answer.json()["predictions"][0]["label"]
        body = {"answer_id": answer.headers["x-clipft-answer-id"], "label": said if number < right else "something else"}
        assert server.client.post("/v1/feedback", json=body, headers=SHOWN).json()["counted"] is True


def alert(version: str, *signals: str, since: str = "") -> DriftAlert:
    given = {"domain": "general", "version": version, "signals": list(signals), "ratio": 2.0, "since": since}
    return DriftAlert.model_validate(given)


def fire(*alerts: DriftAlert, run: str, spec: RunSpec = SPEC, cool_down: float = 0.0) -> TriageResult:
    return triage.run(spec, list(alerts), cool_down=cool_down, dag_run=run)


def go_live(version: str) -> None:
    promoted = promote.run(SPEC, version)
    deploy.run(SPEC, promoted.version, promoted.previous)
    verify.run(SPEC, promoted.version, promoted.previous)


def readapted(server: Server, right: int = 30, wrong: int = 10, run: str = "drifting") -> str:
    """Drift of version 1 is answered by version 2, as clipft_readapt does; returns the incident."""
    judge(server, right, wrong)
    taken = fire(alert("1", "image"), run=run)
    assert taken.admitted and not taken.rollback, taken
    live = suggest.run(SPEC, taken.signals, taken.incident).live
    go_live("2")
    said = close.run(SPEC, {"suggest": "success", "finetune": "success"}, taken.incident, live)
    assert said.outcome == "probation"
    return str(taken.incident)


def answer(taken: TriageResult) -> CloseResult:
    """What clipft_readapt does about an incident that is taken up again; returns what `close` says."""
    suggested = suggest.run(SPEC, taken.signals, taken.incident)
    assert (suggested.action, suggested.version) == ("rollback", "1")
    assert "right in" in suggested.why and "Go back to another version" in suggested.table
    go_live(rollback.run(SPEC, suggested.version).version)
    return close.run(SPEC, {"suggest": "success", "rollback": "success", "finetune": "skipped"}, taken.incident)


def champion() -> str:
    return tracking.version_number(tracking.champion("general"))


def serving(server: Server) -> str:
    return str(server.post(EMBED_TEXTS, {"texts": "who answers?"}).headers["x-clipft-model-version"])


def now() -> IncidentState:
    return incident_store.load("general")


def test_a_new_champion_is_on_watch_beside_what_the_one_before_showed(server):
    incident = readapted(server)
    found = now().incident
    assert found and found.id == incident and found.on_probation
    assert (found.probation.version, found.probation.previous, found.probation.judged) == ("2", "1", 40)
    assert found.probation.accuracy == pytest.approx(0.75)
    assert now().history == [] and now().last_closed == 0


def test_a_version_that_is_worse_is_gone_back_from_by_itself_and_counts_as_a_failure(server):
    incident = readapted(server)
    judge(server, 0, 30)
    taken = fire(alert("2", "performance"), run="worse", cool_down=COOL_DOWN)  # no cool-down stands in the way
    assert (taken.admitted, taken.rollback, taken.incident) == (True, True, incident)
    assert taken.approval is False and taken.signals == ["performance"]
    assert "0% of 30" in taken.reason and "75% of 40" in taken.reason
    said = answer(taken)
    assert (said.outcome, said.failures, said.breaker, said.failed) == ("failed", 1, "closed", [])
    assert (champion(), serving(server)) == ("1", "1")
    [past] = now().history
    assert past.outcome == "failed" and "back to version 1" in past.note
    assert now().incident is None and now().rolled_back


def test_the_second_time_a_person_is_asked_and_the_breaker_opens(server):
    for number, asks in enumerate((False, True)):
        readapted(server, run=f"drifting {number}")
        judge(server, 0, 30)
        taken = fire(alert("2", "performance"), run=f"worse {number}")
        assert taken.rollback and taken.approval is asks
        said = answer(taken)
    assert (said.outcome, said.failures, said.breaker) == ("failed", 2, "open")
    assert fire(alert("1", "image"), run="later").admitted is False
    assert serving(server) == "1"


def test_a_person_who_says_no_the_second_time_leaves_the_version_and_the_breaker_opens_all_the_same(server):
    incident_store.update("general", lambda state: IncidentState(rolled_back=True))
    readapted(server)
    judge(server, 0, 30)
    taken = fire(alert("2", "performance"), run="worse")
    said = close.run(SPEC, {"suggest": "success", "approve": "success", "rollback": "skipped"}, taken.incident)
    assert (said.outcome, said.breaker) == ("failed", "open")
    assert "not gone back" in now().history[-1].note and serving(server) == "2"


def test_approval_is_asked_for_where_the_spec_requires_it(server):
    readapted(server)
    judge(server, 0, 30)
    asking = RunSpec.from_flat({"domain": "general", "approval.required": True})
    assert fire(alert("2", "performance"), run="worse", spec=asking).approval is True


def test_a_version_that_drops_below_its_baseline_but_is_no_worse_than_the_one_before_stays(server):
    """Half as many right as at training, and as many as before: going back would help nobody."""
    readapted(server, right=14, wrong=16)
    judge(server, 14, 16)
    assert server.get_with_token("/v1/drift/general").json()["drift"]["performance"] > 1
    within = fire(alert("2", "performance"), run="worse", cool_down=3600)
    assert within.admitted is False and "on probation" in within.reason
    assert now().incident.on_probation
    after = fire(alert("2", "performance"), run="later")  # the cool-down is over: drift of its own, suggested and asked
    assert after.admitted and not after.rollback
    assert [past.outcome for past in now().history] == ["recovered"]


def test_where_too_little_was_judged_before_the_baseline_decides(server):
    readapted(server, right=3, wrong=2)
    judge(server, 0, 30)
    taken = fire(alert("2", "performance"), run="worse")
    assert taken.rollback and "at training" in taken.reason


def test_other_drift_of_a_new_version_is_no_reason_to_go_back(server):
    readapted(server)
    judge(server, 0, 30)  # bad, but nobody raised an alarm about that
    taken = fire(alert("2", "image", "brightness"), run="other", cool_down=3600)
    assert taken.admitted is False and now().incident.on_probation


def test_an_alarm_about_a_version_that_is_no_longer_live_is_none_about_the_new_one(server):
    readapted(server)
    judge(server, 0, 30)
    assert fire(alert("1", "performance"), run="late", cool_down=3600).admitted is False
    assert serving(server) == "2"


def test_requests_that_fail_since_the_new_version_is_live_count_too(server):
    readapted(server)
    before, after = "2020-01-01T00:00:00.5Z", "2999-01-01T00:00:00.123456789Z"
    earlier = fire(alert("", "errors", since=before), run="earlier")
    assert earlier.admitted is False and now().incident.on_probation
    taken = fire(alert("", "errors", since=after), run="failing")
    assert taken.rollback and "requests fail since version 2" in taken.reason


def test_failing_requests_alone_are_no_drift(server):
    said = fire(alert("", "errors", since="2999-01-01T00:00:00Z"), run="failing")
    assert said.admitted is False and "no drift" in said.reason and now() == IncidentState()


def test_the_same_run_again_finds_what_it_had_taken_up_and_another_does_not(server):
    readapted(server)
    judge(server, 0, 30)
    first = fire(alert("2", "performance"), run="worse")
    again = fire(alert("2", "performance"), run="worse")
    assert first.model_copy(update={"reason": ""}) == again.model_copy(update={"reason": ""}) and again.approval is False
    assert fire(alert("2", "performance"), run="another").admitted is False


def test_while_the_server_is_away_nothing_is_decided_and_the_retry_decides(server, monkeypatch):
    readapted(server)
    judge(server, 0, 30)
    before = now()
    with monkeypatch.context() as patch:
        patch.setenv("CLIPFT_SERVER_URL", NOBODY)
        settings.cache_clear()
        with pytest.raises(TransientError):
            fire(alert("2", "performance"), run="worse")
    settings.cache_clear()
    assert now() == before
    assert fire(alert("2", "performance"), run="worse").rollback is True


def test_a_rollback_that_cannot_be_is_a_failure_and_the_new_version_goes_on(server):
    """The version before answers otherwise than recorded by now: it does not come back half."""
    readapted(server)
    judge(server, 0, 30)
    taken = fire(alert("2", "performance"), run="worse")
    change_answers(package("1"))
    with pytest.raises(ClipftError):
        answer(taken)
    said = close.run(SPEC, {"suggest": "success", "rollback": "failed"}, taken.incident)
    assert (said.outcome, said.failed) == ("failed", ["rollback"])
    assert (champion(), serving(server)) == ("2", "2") and now().incident is None


# Bad days -----------------------------------------------------------------------------------------------------------


def drifting(run: str = "drifting") -> TriageResult:
    taken = fire(alert("1", "image"), run=run)
    assert taken.admitted
    return taken


def test_a_window_too_small_to_say_anything_is_said_to_be_noise(server):
    judge(server, 2, 1)
    suggested = suggest.run(SPEC, ["image"])
    assert (suggested.action, suggested.kind) == ("nothing", "noise")
    assert (suggested.live.accuracy, suggested.live.judged) == (pytest.approx(2 / 3), 3)


@pytest.mark.parametrize("who", ["MLFLOW_URI", "SERVER_URL"])
def test_whoever_is_away_at_the_suggestion_it_is_worth_another_try_and_nothing_changed(server, monkeypatch, who):
    judge(server, 20, 0)
    taken, before = drifting(), now()
    with monkeypatch.context() as patch:
        patch.setenv(f"CLIPFT_{who}", NOBODY)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        settings.cache_clear()
        with pytest.raises(TransientError, match="does not answer"):
            suggest.run(SPEC, taken.signals, taken.incident)
    settings.cache_clear()
    assert now() == before and (champion(), serving(server)) == ("1", "1")
    assert suggest.run(SPEC, taken.signals, taken.incident).action


def test_while_the_registry_is_away_no_alarm_is_lost_or_taken_twice(server, monkeypatch):
    """Neither admitted nor closed while nobody can write it down; the retry does it once."""
    with monkeypatch.context() as patch:
        patch.setenv("CLIPFT_MLFLOW_URI", NOBODY)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        settings.cache_clear()
        with pytest.raises(TransientError, match="does not answer"):
            fire(alert("1", "image"), run="drifting")
    settings.cache_clear()
    assert now() == IncidentState()
    taken = drifting()
    with monkeypatch.context() as patch:
        patch.setenv("CLIPFT_MLFLOW_URI", NOBODY)
        settings.cache_clear()
        with pytest.raises(TransientError, match="does not answer"):
            close.run(SPEC, {"finetune": "failed"}, taken.incident)
    settings.cache_clear()
    assert now().incident and now().failures == 0
    for _ in range(2):  # the retry, and one too many
        close.run(SPEC, {"finetune": "failed"}, taken.incident)
    assert now().incident is None and now().failures == 1 and len(now().history) == 1


def test_a_new_model_that_does_not_verify_leaves_the_old_champion_and_counts_as_a_failure(server):
    taken = drifting()
    promoted = promote.run(SPEC, "2")
    deploy.run(SPEC, promoted.version, promoted.previous)
    change_answers(package("2"))
    with refuses("deploy.not_verified"):
        verify.run(SPEC, promoted.version, promoted.previous)
    said = close.run(SPEC, {"suggest": "success", "dataset": "success", "finetune": "failed"}, taken.incident)
    assert (said.outcome, said.failed, said.failures) == ("failed", ["finetune"], 1)
    assert (champion(), serving(server)) == ("1", "1") and now().incident is None


def test_a_champion_deleted_from_the_registry_is_named_and_goes_on_serving(server, tmp_path, monkeypatch):
    home = copied(server.home, tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setenv("CLIPFT_HOME", str(home))
        settings.cache_clear()
        taken = drifting()
        tracking.client().delete_model_version(NAME, "1")
        with refuses("model.not_registered"):
            suggest.run(SPEC, taken.signals, taken.incident)
        said = close.run(SPEC, {"suggest": "failed", "finetune": "upstream_failed"}, taken.incident)
        assert (said.outcome, said.failures) == ("failed", 1)
        assert now().incident is None
    settings.cache_clear()
    assert serving(server) == "1"


def test_a_version_to_go_back_to_that_was_deleted_is_a_failure_and_the_new_one_goes_on(server, tmp_path, monkeypatch):
    home = copied(server.home, tmp_path / "elsewhere")
    tracking.client().set_registered_model_alias(NAME, tracking.CHAMPION, "2")  # where the server reads it
    with monkeypatch.context() as patch:
        patch.setenv("CLIPFT_HOME", str(home))
        settings.cache_clear()
        readapted(server)
        judge(server, 0, 30)
        taken = fire(alert("2", "performance"), run="worse")
        tracking.client().delete_model_version(NAME, "1")
        with refuses("model.not_registered"):
            answer(taken)
        said = close.run(SPEC, {"suggest": "success", "rollback": "failed"}, taken.incident)
        assert said.outcome == "failed" and champion() == "2"
    settings.cache_clear()
    assert serving(server) == "2"


def test_a_reference_of_another_embedding_space_is_refused_and_nothing_is_suggested_from_it(server):
    """The package's reference was swapped for one that other weights made: the version answers, its drift is not measured."""
    for name in ("reference.safetensors", "reference.json"):
        shutil.copy(package("2") / name, package("1") / name)
    with refuses("reference.other_weights"):
        suggest.run(SPEC, ["image"])
    assert server.put("2").status_code == 200 and server.put("1").status_code == 200
    assert serving(server) == "1" and server.metrics()["clipft_drift_measured", "general", "1"] == 0
    with pytest.raises(ClipftError, match="No live version of general with a reference"):
        suggest.run(SPEC, ["image"])


# Captures -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def captured(server: Server, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Iterator[Path]:
    """70 judged captures, the data set that the models came from, and its DVC remote, whose folder this is."""
    home, repo, remote = tmp_path_factory.getbasetemp() / "two-versions" / "home", tmp_path / "datasets", tmp_path / "remote"
    shutil.copytree(home / "datasets", repo, symlinks=True)
    shutil.copytree(home / "dvc-remote", remote)
    config = repo / ".dvc" / "config"
    config.write_text(config.read_text().replace(str(home / "dvc-remote"), str(remote)))
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *who, "commit", "-qam", "another remote"], cwd=repo, check=True)

    def keep(share: float | None) -> None:
        server.client.put("/v1/captures/general", json={"share": share}, headers=SHOWN).raise_for_status()

    keep(1.0)
    tracking.client().set_model_version_tag(NAME, "2", "clipft.deploy", "")  # an earlier test let it fail
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPFT_DATA_REPO", str(repo))
        settings.cache_clear()
        judge(server, 50, 20)
        yield remote
        keep(None)
        shutil.rmtree(server.home / "captures")
    settings.cache_clear()


def test_the_suggestion_asks_every_model_and_other_words_and_shows_old_images_beside_new_ones(server, captured):
    suggested = suggest.run(SPEC, ["performance"])
    for said in (
        "Version 2: ", "with the prompts of industrial", "Reference of general version 1", "of general version 2",
        f"[Drift report]({suggested.links['Drift report']})",
    ):  # fmt: skip
        assert said in suggested.table, suggested.table
    assert "by image statistics alone" not in suggested.table
    assert sum(suggested.labels.values()) == 70 and suggested.action in ("readapt", "rollback", "recalibrate")
    page = Path(suggested.links["Drift report"].removeprefix("file://")).read_text()  # no MLflow answers here: the file itself
    assert (
        "each with the nearest image of the reference" in page and page.count('alt="the nearest image of the reference"') == 8
    )


def test_a_model_that_cannot_be_had_is_passed_over_and_the_report_does_without_old_images(server, captured, monkeypatch):
    (package("2") / "reference.json").unlink()
    monkeypatch.setenv("CLIPFT_DATA_REPO", "file:///nowhere")
    settings.cache_clear()
    suggested = suggest.run(SPEC, ["performance"])
    assert "of general version 1" in suggested.table and "version 2" not in suggested.table.lower()


def test_captures_become_one_version_once_everybody_is_there_again(server, captured, monkeypatch):
    """The server away, then the DVC remote: nothing half, and nothing twice."""
    spec = RunSpec.from_flat({"domain": "general", "source": "captures:general"})
    with monkeypatch.context() as patch:
        patch.setenv("CLIPFT_SERVER_URL", NOBODY)
        settings.cache_clear()
        with pytest.raises(TransientError, match="does not answer"):
            ingest.run(spec)
    settings.cache_clear()
    staging = ingest.run(spec).staging
    away = captured.with_name("away")
    captured.rename(away)
    captured.write_text("no folder")
    with pytest.raises(TransientError, match="dvc push"):
        version.run(spec, staging)
    assert [v.tag for v in versioning.versions("general")] == ["general/v1"] and champion() == "1"
    captured.unlink()
    away.rename(captured)
    made, again = version.run(spec, staging), version.run(spec, staging)
    assert made.dataset == again.dataset == "general/v2" and len(versioning.versions("general")) == 2
    card = versioning.find("general/v2", "general").card
    assert card.parents == ["general/v1"] and card.source == "captures:general"

"""One champion a domain, one change at a time: a real registry, a server that answers as it is told, runs that overlap, and kills."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from clipft_tasks import tracking
from clipft_tasks.contracts.recorded_answers import RecordedAnswers
from clipft_tasks.core.errors import BusyError, ClipftError, TransientError
from clipft_tasks.core.settings import settings
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import deploy, promote, reconcile, rollback, verify
from clipft_tasks.tracking import leases

SPEC = RunSpec.from_flat({"domain": "general", "resolution.train": 32, "resolution.evaluate": [32]})
NAME = "clipft-general"
A, B = "clipft_finetune/a", "clipft_finetune/b"


class StubServer(ThreadingHTTPServer):
    """Loads what it is told unless `refused`, answers with what is live; a version in `wrong` answers otherwise than recorded."""

    daemon_threads = True
    live, away = "1", False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.refused: set[str] = set()
        self.wrong: set[str] = set()


class StubHandler(BaseHTTPRequestHandler):
    server: StubServer

    def do_GET(self) -> None:
        about = {"domain": "general", "version": self.server.live, "since": 0, "side": 32, "classes": []}
        model = about | {"similarity": "cosine", "dimensions": [], "lineage": {}}
        replica = {"address": "", "live": {"general": self.server.live}, "problem": ""}
        self.answer([replica] if "replicas" in self.path else {"object": "list", "data": [model]})

    def do_PUT(self) -> None:
        version = json.loads(self.rfile.read(int(self.headers["content-length"])))["version"]
        if version in self.server.refused:
            return self.answer({"detail": "it answers otherwise than recorded"}, 409)
        replaced, self.server.live = self.server.live, version
        self.answer({"version": version, "replaced": replaced, "load_seconds": 0.1, "disagreement": 0.0})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.answer({"similarity": [[0.9 if self.server.live in self.server.wrong else 0.5]]})

    def answer(self, body: object, status: int = 200) -> None:
        self.send_response(503 if self.server.away else status)
        self.send_header("content-type", "application/json")
        self.send_header("x-clipft-model-version", self.server.live)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def four_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with versions 1 (champion) to 4, and the experiment of leases, made once."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPFT_HOME", str(folder))
        patch.delenv("CLIPFT_MLFLOW_URI", raising=False)
        settings.cache_clear()
        client = tracking.client()
        client.create_registered_model(NAME)
        for _ in range(4):
            client.create_model_version(NAME, "file:///x", client.create_run("0").info.run_id)
        client.set_registered_model_alias(NAME, tracking.CHAMPION, "1")
        leases.current("champion.general")
    settings.cache_clear()
    return folder / "mlflow" / "mlflow.db"


@pytest.fixture
def server(home: Path, four_versions: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    (home / "mlflow").mkdir(parents=True)
    shutil.copy(four_versions, home / "mlflow")
    recorded = RecordedAnswers(images=["x"], texts=["t"], similarity=[[0.5]], side=32, tolerance=0.05)
    (home / "recorded_answers.json").write_text(json.dumps(recorded.to_json()))
    monkeypatch.setattr(tracking, "fetch_package", lambda version: home)
    stub = StubServer()
    threading.Thread(target=stub.serve_forever, daemon=True).start()
    monkeypatch.setenv("CLIPFT_SERVER_URL", f"http://127.0.0.1:{stub.server_port}")
    settings.cache_clear()
    yield stub
    stub.shutdown()
    stub.server_close()


def aliased(alias: str) -> str:
    return tracking.version_number(tracking.version_by_alias("general", alias))


def now(server: StubServer) -> tuple[str, str, str]:
    """Champion, previous, live."""
    return aliased(tracking.CHAMPION), aliased(tracking.PREVIOUS), server.live


def deployed(version: str) -> str:
    return tracking.deploy_state(tracking.resolve_version(f"models:/{NAME}/{version}"))


def go_live(version: str, run: str = A) -> None:
    previous = promote.run(SPEC, version, dag_run=run).previous
    deploy.run(SPEC, version, previous, run)
    verify.run(SPEC, version, previous, run)


def time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the holder of every lease had been killed long ago."""
    real = time.time
    monkeypatch.setattr(leases.time, "time", lambda: real() + 2 * leases.SECONDS)


# Leases -------------------------------------------------------------------------------------------------------------


def test_of_many_who_ask_at_once_one_gets_the_lease_and_the_others_learn_who(server):
    def ask(number: int) -> str:
        try:
            return tracking.acquire("champion.general", f"run {number}").holder
        except BusyError as busy:
            return busy.holder

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1


def test_a_lease_is_renewed_given_back_and_taken_over_when_its_holder_is_gone(server, monkeypatch):
    lease = tracking.acquire("champion.general", A)
    assert tracking.acquire("champion.general", A).number == lease.number
    with pytest.raises(BusyError, match=A):
        tracking.acquire("champion.general", B)
    lease.release()
    taken = tracking.acquire("champion.general", B)
    time_is_over(monkeypatch)
    assert tracking.acquire("champion.general", A).number == taken.number + 1
    with pytest.raises(BusyError, match=A):
        taken.check()  # the one that stood still for too long learns it before it writes


def test_what_was_claimed_by_a_clock_that_was_wrong_by_a_day_holds_nobody_up(server, monkeypatch):
    with monkeypatch.context() as patch:
        real = time.time
        patch.setattr(leases.time, "time", lambda: real() + 86_400)
        tracking.acquire("champion.general", A)
    assert leases.current("champion.general") is None and tracking.acquire("champion.general", B).holder == B
    with monkeypatch.context() as patch:
        patch.setattr(leases.time, "time", lambda: real() - leases.AGREE / 2)  # the clock of another machine
        with pytest.raises(BusyError, match=B):
            tracking.acquire("champion.general", A)


def test_a_full_run_of_claims_is_followed_by_another(server, monkeypatch):
    monkeypatch.setattr(leases, "MOST", 3)
    for number in range(8):
        tracking.acquire("champion.general", f"run {number}").release()
    tracking.acquire("champion.general", "last")
    held = tracking.current("champion.general")
    assert held is not None and held.holder == "last"


# Runs that overlap --------------------------------------------------------------------------------------------------


def test_two_runs_of_a_domain_take_turns(server):
    previous = promote.run(SPEC, "2", dag_run=A).previous
    deploy.run(SPEC, "2", previous, A)
    for stage in (lambda: promote.run(SPEC, "3", dag_run=B), lambda: promote.run(SPEC, "1", dag_run="clipft_rollback/r")):
        with pytest.raises(BusyError, match=A):
            stage()
    verify.run(SPEC, "2", previous, A)
    go_live("3", B)
    assert now(server) == ("3", "2", "3")
    assert (deployed("2"), deployed("3")) == ("verified", "verified")


def test_a_run_that_comes_back_after_its_lease_leaves_the_newer_version(server, monkeypatch):
    previous = promote.run(SPEC, "2", dag_run=A).previous
    deploy.run(SPEC, "2", previous, A)
    time_is_over(monkeypatch)
    go_live("3", B)
    for stage in (deploy.run, verify.run):
        with pytest.raises(ClipftError, match="version 3 was promoted since") as caught:
            stage(SPEC, "2", previous, A)
        assert caught.value.code == "champion.superseded"
    assert now(server) == ("3", "2", "3") and deployed("3") == "verified" and deployed("2") != "failed"


def test_the_gate_is_asked_again_when_its_opponent_is_no_longer_champion(server, monkeypatch):
    from clipft_tasks.stages import evaluate, gate

    asked: list[str] = []
    monkeypatch.setattr(evaluate, "run", lambda spec, run_id, size: asked.append(run_id))
    monkeypatch.setattr(gate, "run", lambda *_: None)
    go_live("2", A)
    assert promote.run(SPEC, "3", opponent="1", dag_run=B).previous == "2" and asked
    asked.clear()
    promote.run(SPEC, "3", opponent="1", dag_run=B)  # its retry
    assert not asked

    def refuse(*_: object) -> None:
        raise ClipftError("the candidate", "it did not pass the gate", code="gate.failed")

    verify.run(SPEC, "3", "2", B)
    monkeypatch.setattr(gate, "run", refuse)
    with pytest.raises(ClipftError, match="version 3 became champion after the gate had compared it with version 1"):
        promote.run(SPEC, "4", opponent="1", dag_run=A)
    assert now(server) == ("3", "2", "3") and tracking.current("champion.general") is None


# What fails ---------------------------------------------------------------------------------------------------------


def test_what_comes_back_is_never_a_version_that_failed(server):
    go_live("2")
    go_live("3")
    tracking.client().set_model_version_tag(NAME, "2", "clipft.deploy", "failed")
    server.wrong.add("4")
    server.refused.add("3")  # its package is broken by now, and the one before it had failed
    with pytest.raises(ClipftError, match="Version 1 is champion and live again"):
        go_live("4", B)
    assert now(server)[::2] == ("1", "1") and [deployed(v) for v in "234"] == ["failed"] * 3
    with pytest.raises(ClipftError) as caught:
        rollback.run(SPEC)
    assert caught.value.code in ("rollback.no_previous", "rollback.all_failed")


def test_a_failed_version_that_a_person_names_is_verified_before_it_counts(server):
    server.wrong.add("2")
    with pytest.raises(ClipftError, match="differ"):
        go_live("2")
    server.wrong.clear()
    go_live(rollback.run(SPEC, "2").version)
    assert now(server) == ("2", "1", "2") and deployed("2") == "verified"


def test_a_server_that_stays_away_costs_the_new_version_its_title(server):
    previous = promote.run(SPEC, "2", dag_run=A).previous
    server.away = True
    with pytest.raises(TransientError):
        deploy.run(SPEC, "2", previous, A)
    assert aliased(tracking.CHAMPION) == "2"  # tried again
    with pytest.raises(ClipftError, match="Version 1 is champion again"):
        deploy.run(SPEC, "2", previous, A, last_try=True)
    assert now(server) == ("1", "", "1") and deployed("2") == "" and tracking.current("champion.general") is None


def test_verify_brings_the_server_to_where_the_registry_is(server):
    previous = promote.run(SPEC, "2", dag_run=A).previous
    verify.run(SPEC, "2", previous, A)
    assert now(server) == ("2", "1", "2")


# Kills: alias and server are a pair, and whoever looks next brings the second into line with the first ---------------


def cut(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """The process ends where this would be called."""

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, die)


@pytest.mark.parametrize("at", ["set_registered_model_tag", "set_registered_model_alias", "set_model_version_tag"])
def test_a_promotion_that_is_cut_is_finished_by_its_retry(server, monkeypatch, at):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut(patch, MlflowClient, at)
        promote.run(SPEC, "2", dag_run=A)
    go_live("2")
    assert now(server) == ("2", "1", "2") and deployed("2") == "verified"


def test_a_promotion_that_nobody_finishes_is_verified_by_the_reconciler(server):
    promote.run(SPEC, "2", dag_run=A)
    assert "left alone" in reconcile.run(SPEC, dag_run=B).done  # while the lease is in force
    assert "verified now" in reconcile.run(SPEC, dag_run=A).done
    assert now(server) == ("2", "1", "2") and deployed("2") == "verified"
    assert reconcile.run(SPEC, dag_run=B).done == ""


def test_a_promotion_that_nobody_finishes_steps_down_when_it_does_not_verify(server, monkeypatch):
    promote.run(SPEC, "2", dag_run=A)
    time_is_over(monkeypatch)
    server.wrong.add("2")
    assert "did not verify" in reconcile.run(SPEC).done
    assert now(server) == ("1", "", "1") and deployed("2") == "failed"


def test_cut_between_alias_and_server_the_old_version_comes_back_to_both(server, monkeypatch):
    from clipft_tasks.server.client import ServerClient

    previous = promote.run(SPEC, "2", dag_run=A).previous
    deploy.run(SPEC, "2", previous, A)
    server.wrong.add("2")
    for again in ("a retry", "the reconciler"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            cut(patch, ServerClient, "load")
            verify.run(SPEC, "2", previous, A)
        assert now(server)[::2] == ("1", "2")
        if again == "a retry":
            with pytest.raises(ClipftError, match="failed before"):
                verify.run(SPEC, "2", previous, A)
        else:
            assert "version 1, the champion, is now" in reconcile.run(SPEC, dag_run=A).done
        assert now(server)[::2] == ("1", "1")
        server.live = "2"


def test_only_a_new_candidate_becomes_challenger(server):
    client = tracking.client()
    runs = {v.version: v.run_id for v in client.search_model_versions(f"name = '{NAME}'")}
    tracking.register("general", runs[4], {}, "")
    assert aliased(tracking.CHALLENGER) == "4"
    go_live("4")
    assert aliased(tracking.CHALLENGER) == ""
    for old in (2, 4):
        tracking.register("general", runs[old], {}, "")
        assert aliased(tracking.CHALLENGER) == ""


def test_champions_are_those_of_every_page(server, monkeypatch):
    client = tracking.client()
    for number in range(101):
        client.create_registered_model(f"clipft-a{number:03d}")  # all before clipft-general
    assert tracking.champions() == {"general": "1"}


def test_a_registry_that_is_away_is_tried_again(server, monkeypatch):
    def away(*_: object, **__: object) -> None:
        raise MlflowException("API request to http://registry failed")

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", away)
    with pytest.raises(TransientError):
        promote.run(SPEC, "2", dag_run=A)

"""OpenLineage events: what each stage says of itself, as their library reads it; and that nothing fails for them."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from openlineage.client.event_v2 import RunState

from clipft_tasks.contracts.stages import FinetuneResult, VersionResult
from clipft_tasks.core.errors import BusyError, ClipftError
from clipft_tasks.core.settings import settings
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import call, lineage

SPEC = RunSpec.from_flat({"domain": "general", "source": "https://user:password@example.org/images"})


@pytest.fixture
def told(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stage of a name that does as it is told; returns the events of a call of it."""
    file = tmp_path / "logs" / "lineage.jsonl"
    monkeypatch.setenv("CLIPFT_LINEAGE", str(file))
    settings.cache_clear()

    def run(stage: str, result: object, inputs: dict[str, object], dag_run: str = "") -> list[dict]:
        file.unlink(missing_ok=True)
        with lineage.told(stage, SPEC, inputs, dag_run) as telling:
            if isinstance(result, Exception):
                raise result
            telling.returned(result.model_dump(mode="json"))
        return events(file)

    run.file = file
    return run


def events(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def named(things: list[dict]) -> list[str]:
    return [t["name"] + "".join(f"@{f['datasetVersion']}" for f in [t["facets"].get("version")] if f) for t in things]


VERSION = VersionResult(
    dataset="general/v3", domain="general", revision="c0ffee", new=True, rows=72, counts={"train": 72}, pushed_bytes=1
)
TRAINED = FinetuneResult(run_id="f" * 32, key="k", dataset="general/v3", done_before=False, steps=3, pairs_per_second=1.0)


def test_a_stage_says_what_it_took_and_what_it_made(told):
    start, end = told("version", VERSION, {"staging": "/a/path/of/this/machine/staged-7"}, "clipft_dataset/manual__1")
    assert [start["eventType"], end["eventType"]] == ["START", "COMPLETE"] == [RunState.START.name, RunState.COMPLETE.name]
    assert start["run"]["runId"] == end["run"]["runId"]
    assert start["run"]["facets"]["parent"]["job"] == {"namespace": "clipft", "name": "clipft_dataset", "facets": {}}
    assert start["job"]["name"] == "general.version" and named(start["inputs"]) == ["staging/staged-7"]
    assert named(end["outputs"]) == ["datasets/general@3"] and named(end["inputs"]) == ["staging/staged-7"]
    assert end["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 72
    for event in (start, end):
        assert event["schemaURL"].endswith("OpenLineage.json#/$defs/RunEvent") and event["producer"].startswith("https://")


def test_the_same_data_set_and_run_are_joined_from_stage_to_stage(told):
    _, trained = told("finetune", TRAINED, {"planned": {"dataset": "general/v3", "start": "models:/clipft-general/1"}})
    assert named(trained["inputs"]) == ["datasets/general@3", "models/clipft-general@1"]
    assert named(trained["outputs"]) == ["runs/" + "f" * 32]
    evaluated = told("evaluate", TRAINED, {"run_id": "f" * 32})[0]
    assert named(evaluated["inputs"]) == named(trained["outputs"])


def test_a_failure_says_why_and_a_wait_is_none_and_no_secret_is_told(told):
    failed = ClipftError("the source", "https://me:secret-word@example.org refused", code="source.x")
    with pytest.raises(ClipftError):
        told("ingest", failed, {})
    start, end = events(told.file)
    assert end["eventType"] == "FAIL" and "***@example.org refused" in end["run"]["facets"]["errorMessage"]["message"]
    assert named(start["inputs"]) == ["source/https://***@example.org/images"]
    with pytest.raises(BusyError):
        told("promote", BusyError("general", "another run", 0.0), {"version": "3"})
    assert events(told.file)[-1]["eventType"] == "ABORT"
    assert "secret-word" not in told.file.read_text() and "password" not in told.file.read_text()


def test_every_stage_is_told_of_and_nobody_where_nothing_is_set(told, monkeypatch):
    from clipft_tasks.stages import reconcile

    monkeypatch.setattr(reconcile, "run", lambda spec: {"domain": spec.domain})
    call.call_stage("reconcile", SPEC, {})
    assert [event["job"]["name"] for event in events(told.file)] == ["general.reconcile"] * 2
    monkeypatch.delenv("CLIPFT_LINEAGE")
    settings.cache_clear()
    call.call_stage("reconcile", SPEC, {})
    assert len(events(told.file)) == 2


class Receiver(ThreadingHTTPServer):
    daemon_threads = True
    status = 201

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ReceiverHandler)
        self.got: list[tuple[str, dict]] = []


class ReceiverHandler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.got.append((self.headers.get("authorization", ""), body))
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    server = Receiver()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("CLIPFT_LINEAGE", f"http://127.0.0.1:{server.server_port}/api/v1/lineage")
    monkeypatch.setenv("CLIPFT_LINEAGE_KEY", "a-key")
    settings.cache_clear()
    yield server
    server.shutdown()
    server.server_close()


def test_a_receiver_gets_each_event_and_one_that_refuses_or_is_away_fails_nothing(receiver, monkeypatch, caplog):
    def run() -> None:
        with lineage.told("version", SPEC, {}, "") as telling:
            telling.returned(VERSION.model_dump(mode="json"))

    run()
    assert [(key, event["eventType"]) for key, event in receiver.got] == [
        ("Bearer a-key", "START"),
        ("Bearer a-key", "COMPLETE"),
    ]
    receiver.status = 500
    run()
    monkeypatch.setenv("CLIPFT_LINEAGE", "http://127.0.0.1:9/")
    settings.cache_clear()
    run()
    assert caplog.text.count("A lineage event was not delivered") == 4

"""How tasks of Airflow end: waiting for another run, one red task with three lines, a note that says what came out, and events."""

import logging
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipft_tasks.contracts.dataset import DatasetCard
from clipft_tasks.core.errors import BusyError, ClipftError, TransientError

ROOT = Path(__file__).parents[2]
RUN = SimpleNamespace(dag_id="clipft_finetune", run_id="r")


@pytest.fixture
def dag_tools(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    import clipft_dag

    return clipft_dag


def in_a_task(monkeypatch: pytest.MonkeyPatch, tools: Any, try_number: int, stage: Callable[..., Any]) -> dict[str, str]:
    """Let a stage run as `stage` does, in a try of a task that may be tried six times more; returns what is pushed to XCom."""
    pushed: dict[str, str] = {}
    ti = SimpleNamespace(try_number=try_number, max_tries=6, xcom_push=lambda key, value: pushed.update({key: value}))
    monkeypatch.setattr(tools, "get_current_context", lambda: {"ti": ti, "dag_run": RUN})
    monkeypatch.setattr(tools, "call_stage", stage)
    return pushed


def test_a_task_waits_for_another_run_without_a_slot_and_without_using_up_a_try(dag_tools, monkeypatch, caplog):
    from airflow.sdk.exceptions import AirflowRescheduleException

    def busy(*_: object, **__: object) -> None:
        raise BusyError("champion.general", "clipft_finetune/other", 1_800_000_000.0)

    in_a_task(monkeypatch, dag_tools, 1, busy)
    with caplog.at_level(logging.INFO), pytest.raises(AirflowRescheduleException):
        dag_tools.stage("promote", {"domain": "general"}, version="2")
    assert "champion.general is being changed by clipft_finetune/other" in caplog.text


def test_a_mistake_is_three_lines_and_a_sentence_for_the_note(dag_tools, monkeypatch, caplog):
    from airflow.sdk.exceptions import AirflowFailException

    def wrong(*_: object, **__: object) -> None:
        raise ClipftError("row 3 of a.csv", "it has no image", "Add one.", code="source.no_image")

    pushed = in_a_task(monkeypatch, dag_tools, 1, wrong)
    with pytest.raises(AirflowFailException) as caught:
        dag_tools.stage("ingest", {"domain": "general"})
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert lines == ["What: row 3 of a.csv", "Why: it has no image", "Way out: Add one."]
    assert list(pushed.values()) == ["row 3 of a.csv: it has no image. Add one. [source.no_image]"]


def test_a_stage_knows_its_last_try(dag_tools, monkeypatch):
    seen: list[bool] = []

    def away(*_: object, last_try: bool, **__: object) -> None:
        seen.append(last_try)
        raise TransientError("away")

    for number in (1, 6, 7):
        in_a_task(monkeypatch, dag_tools, number, away)
        with pytest.raises(TransientError):
            dag_tools.stage("deploy", {"domain": "general"}, version="2")
    assert seen == [False, False, True]


# Notes ---------------------------------------------------------------------------------------------------------------

SCORE = {"low": 0.1, "high": 0.9}
VERDICT = {
    "format": 1, "passed": True, "metric": "balanced_accuracy", "opponent": "2", "rules": [], "table": "", "links": {}, "seconds": 1.0,
    "scores": {"96": {"start": {"value": 0.2, **SCORE}, "champion": {"value": 0.37, **SCORE}, "candidate": {"value": 1.0, **SCORE}}},
}  # fmt: skip
NOTES = [
    ("clipft_dataset", {"version": {"dataset": "medical/v2", "rows": 1200, "new": True}}, "medical/v2 · 1,200 images"),
    (
        "clipft_dataset",
        {"version": {"dataset": "medical/v2", "rows": 120, "new": False}},
        "medical/v2 · 120 images · nothing new",
    ),
    (
        "clipft_finetune",
        {"gate": VERDICT, "verify": {"version": "3"}, "finetune": {"cost": "about 4 Wh (65 W assumed for cpu; an estimate)"}},
        "version 3 live · 0.37 → 1.00 balanced_accuracy at 96 px · trained with about 4 Wh (65 W assumed for cpu; an estimate)",
    ),
    ("clipft_rollback", {"verify": {"version": "1"}}, "version 1 live"),
    ("clipft_drift_watch", {}, "nothing drifts now"),
    (
        "clipft_drift_watch",
        {"watch": [{"domain": "general"}], "triage": [{"conf": {"domain": "general"}}]},
        "acted on: general",
    ),
    ("clipft_retrain", {"due": []}, "nothing to train on"),
    (
        "clipft_readapt",
        {"suggest": {"kind": "camera", "action": "camera"}, "close": {"outcome": "declined"}},
        "camera · declined",
    ),
    (
        "clipft_dataset",
        {"validate": {"suspects": 12}, "version": {"dataset": "medical/v2", "rows": 120, "new": True}},
        "medical/v2 · 120 images · 12 labels to look at: clipft review",
    ),
    (
        "clipft_readapt",
        {"suggest": {"kind": "content", "action": "readapt", "suspects": 3}, "close": {"outcome": "probation"}},
        "content · readapt · probation · 3 labels to look at: clipft review",
    ),
    (
        "clipft_readapt",
        {"suggest": {"kind": "content", "action": "readapt"}, "close": {"outcome": "failed", "failed": ["finetune"]}},
        "content · readapt · failed at finetune",
    ),
    ("clipft_maintenance", {"backup": {"bytes": 2_000_000_000}, "gc": {"freed": {"runs": 10**9}}}, "2.00 GB · 1.00 GB freed"),
    (
        "clipft_maintenance",
        {"backup": {"bytes": 0, "removed": ["a", "b"]}, "gc": {"freed": {}}},
        "0.00 GB · 2 old backups removed · 0.00 GB freed",
    ),
    ("clipft_compare", {"compare": {"summary": ["3 is better."]}}, "3 is better."),
]


@pytest.mark.parametrize(("dag", "results", "said"), NOTES)
def test_a_note_says_what_came_out(dag_tools, dag, results, said):
    import clipft_notes

    assert said in clipft_notes.sentence(dag, results, {})
    assert clipft_notes.sentence(dag, results, {"gate": "it did not pass"}, "medical") == "medical: gate: it did not pass"
    assert clipft_notes.sentence(dag, results, {}, "medical").count("medical") == 1


def test_a_note_is_written_once_and_never_breaks_the_scheduler(dag_tools, monkeypatch):
    import clipft_notes

    monkeypatch.setattr(clipft_notes, "object_session", lambda run: "a session")
    monkeypatch.setattr(clipft_notes, "_said", lambda run, session: ({"verify": {"version": "1"}}, {}))
    run = SimpleNamespace(dag_id="clipft_rollback", run_id="r", note=None, conf={"domain": "general"})
    clipft_notes.on_dag_run_success(run, "")
    assert run.note == "general: version 1 live"
    run.note = "mine"
    clipft_notes.on_dag_run_failed(run, "")
    assert run.note == "mine"

    def broken(run: Any, session: Any) -> None:
        raise OSError

    monkeypatch.setattr(clipft_notes, "_said", broken)
    clipft_notes.on_dag_run_success(
        SimpleNamespace(dag_id="clipft_rollback", run_id="r", note=None, conf={"domain": "general"}), ""
    )


# Events --------------------------------------------------------------------------------------------------------------


def task(dag: str, name: str) -> tuple[Any, dict[str, Any]]:
    """A task's own function, and what it sees of its file."""
    made = runpy.run_path(str(ROOT / "dags" / f"{dag}.py"))[dag]()
    function = made.get_task(name).python_callable
    return function, function.__globals__


@pytest.mark.parametrize(("new", "announced", "told"), [(True, False, 1), (False, True, 0), (False, False, 1)])
def test_a_version_whose_try_was_killed_before_its_event_is_told_of_by_the_next(dag_tools, monkeypatch, new, announced, told):
    version, seen = task("clipft_dataset", "version")
    made = {"domain": "general", "dataset": "general/v1", "revision": "a", "rows": 1, "counts": {}, "new": new}
    events: list[dict[str, Any]] = []
    accessor = SimpleNamespace(add=lambda asset, extra: events.append(extra))
    alias = seen["AssetAlias"]("clipft-dataset")
    context = {"inlet_events": {alias: []}, "outlet_events": {alias: accessor}}
    monkeypatch.setitem(seen, "announced", lambda revision, events: announced)  # what Airflow's own record says
    monkeypatch.setitem(seen, "get_current_context", lambda: context)
    monkeypatch.setattr(dag_tools.ChainTasks, "run", lambda *_: made)
    version({}, {})
    assert [event["dataset"] for event in events] == ["general/v1"] * told


def test_what_a_re_adaptation_made_of_captures_starts_no_second_training(dag_tools, monkeypatch):
    from clipft_tasks.data import versioning

    due, seen = task("clipft_retrain", "due")

    def version(tag: str, source: str) -> SimpleNamespace:
        card = DatasetCard(domain="general", source=source, rows=1, rejected=0, counts={}, classes={}, content="")
        return SimpleNamespace(tag=tag, card=card)

    known = [version("general/v1", "folder:x"), version("general/v2", "captures:general")]
    monkeypatch.setattr(versioning, "versions", lambda domain: known if domain == "general" else [])

    def started(*tags: str, **form: Any) -> list[str]:
        events = [SimpleNamespace(extra={"domain": "general", "dataset": tag}) for tag in tags]
        monkeypatch.setitem(seen, "get_current_context", lambda: {"triggering_asset_events": {"a": events} if events else {}})
        return [run["conf"]["dataset"] for run in due(form)]

    assert started("general/v2") == []
    assert started("general/v1") == started("general/v1", "general/v2") == ["general/v2"]  # the newest
    assert started() == ["general/v2"]  # by the clock
    assert started("general/v2", domains=["general"]) == ["general/v2"]  # a person asked

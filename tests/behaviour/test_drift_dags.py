"""The drift DAGs' own tasks, as Airflow calls them: storms, who is asked, what a run is named, and what closes an incident."""

import json
import runpy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipft_tasks import tracking
from clipft_tasks.contracts.drift import Incident, IncidentState, Probation
from clipft_tasks.core.settings import settings
from clipft_tasks.drift import incident_store, incidents

ROOT = Path(__file__).parents[2]
DOMAINS = ("general", "industrial")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry with a model of each of DOMAINS."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        patch.setenv("CLIPFT_HOME", str(folder))
        patch.delenv("CLIPFT_MLFLOW_URI", raising=False)
        settings.cache_clear()
        for domain in DOMAINS:
            tracking.client().create_registered_model(tracking.model_name(domain))
        yield folder
    settings.cache_clear()


@pytest.fixture(autouse=True)
def nothing_yet(registry: Path) -> None:
    settings.cache_clear()
    for domain in DOMAINS:
        incident_store.save(domain, IncidentState())


@pytest.fixture(scope="module")
def task(registry: Path) -> Callable[[str, str], Any]:
    """A task of a DAG, by the names of both."""
    dags: dict[str, Any] = {}

    def find(dag: str, name: str) -> Any:
        if dag not in dags:
            dags[dag] = runpy.run_path(str(ROOT / "dags" / f"{dag}.py"))[dag]()
        return dags[dag].get_task(name)

    return find


@pytest.fixture
def triage(task) -> Callable[..., list[dict[str, Any]]]:
    def call(*alerts: dict[str, Any], run: str = "a run", approval: bool = True, cool_down: float = 60) -> list[dict[str, Any]]:
        params = {"cool_down_minutes": cool_down, "approval": approval}
        return task("clipft_drift_watch", "triage").python_callable(list(alerts), params, run)

    return call


def alert(domain: str = "general", *signals: str, version: str = "1", since: str = "") -> dict[str, Any]:
    return {"domain": domain, "version": version, "signals": list(signals or ("image",)), "ratio": 2.0, "since": since}


def probation(seconds: float = 0) -> Probation:
    """Of version 2, which went live so long ago."""
    return Probation(version="2", previous="1", since=time.time() - seconds)


def open_incident(domain: str = "general") -> Incident:
    found = incident_store.load(domain).incident
    assert found
    return found


# triage --------------------------------------------------------------------------------------------------------------


def test_what_is_admitted_starts_one_run_named_after_its_incident(triage):
    [run] = triage(alert("general", "image", "text"))
    incident = open_incident().id
    assert run["trigger_run_id"] == f"drift__{incident}"
    assert run["conf"] == {"domain": "general", "signals": ["image", "text"], "incident": incident, "approval.required": True}
    assert triage(alert(), run="a run") == [run | {"conf": run["conf"]}]  # a retry starts the same run, which is there already


def test_one_watcher_looks_for_all_domains(registry):
    found = runpy.run_path(str(ROOT / "dags" / "clipft_drift_watch.py"))
    [watcher] = found["drift"].watchers
    assert watcher.trigger.serialize()[1]["domains"] == [] and watcher.trigger.once is False


def test_two_alerts_at_once_for_one_domain_are_one_run(triage):
    """Alertmanager's delivery, the watcher's event and a person, in the same second."""
    with ThreadPoolExecutor(6) as crowd:
        started = [run for runs in crowd.map(lambda n: triage(alert(), run=f"run {n}"), range(6)) for run in runs]
    assert len(started) == 1
    assert started[0]["conf"]["incident"] == open_incident().id and incident_store.load("general").history == []


def test_two_alerts_at_once_for_two_domains_are_two_runs(triage):
    with ThreadPoolExecutor(6) as crowd:
        asked = [(f"run {n}", DOMAINS[n % 2]) for n in range(6)]
        started = [run for runs in crowd.map(lambda one: triage(alert(one[1]), run=one[0]), asked) for run in runs]
    assert sorted(run["conf"]["domain"] for run in started) == list(DOMAINS)
    both = triage(alert("general"), alert("industrial"), run="late")
    assert both == []


def test_drift_of_a_domain_that_this_airflow_does_not_know_holds_nobody_up(triage):
    [run] = triage(alert("somebody_elses"), alert("general"))
    assert run["conf"]["domain"] == "general"


def test_no_click_is_needed_where_that_was_set(triage):
    [run] = triage(alert(), approval=False)
    assert run["conf"]["approval.required"] is False


def test_the_cool_down_of_the_form_is_obeyed(triage):
    triage(alert())
    incident_store.update("general", lambda state: incidents.close(state, "declined", time.time() - 120))
    assert triage(alert(), run="soon", cool_down=3) == []
    assert len(triage(alert(), run="later", cool_down=1)) == 1


@pytest.mark.parametrize("rolled_back", [False, True])
def test_going_back_is_a_run_of_its_own_and_asks_only_the_second_time(triage, rolled_back):
    triage(alert())
    incident = open_incident().id
    incident_store.update("general", lambda state: incidents.begin_probation(state, probation(60)))
    incident_store.update("general", lambda state: state.model_copy(update={"rolled_back": rolled_back}))
    failing = alert("general", "errors", version="", since="2999-01-01T00:00:00Z")
    [run] = triage(failing, run="failing", approval=True)
    assert run["trigger_run_id"] == f"undo__{incident}"
    assert run["conf"]["incident"] == incident and run["conf"]["approval.required"] is rolled_back
    assert triage(failing, run="another") == []


# close --------------------------------------------------------------------------------------------------------------


def closing(task, states: dict[str, str], incident: str = "", suggested: dict[str, Any] | None = None) -> dict[str, Any]:
    ti = SimpleNamespace(get_task_states=lambda dag_id, run_ids: {run_ids[0]: states}, xcom_pull=lambda task_ids: suggested)
    return task("clipft_readapt", "close").python_callable({"domain": "general", "incident": incident}, "a run", ti)


def test_a_failed_training_is_the_incidents_failure_and_no_second_red_task(triage, task):
    triage(alert())
    said = closing(task, {"suggest": "success", "dataset": "failed", "finetune": "upstream_failed"}, open_incident().id)
    assert (said["outcome"], said["failed"]) == ("failed", ["dataset", "finetune"])
    assert incident_store.load("general").failures == 1


def test_what_failed_fails_the_run_though_its_end_is_recorded(task):
    """Airflow takes a run's state from its last tasks: one of them runs only where nothing failed."""
    close, ended = task("clipft_readapt", "close"), task("clipft_readapt", "ended")
    assert (close.trigger_rule, ended.trigger_rule) == ("all_done", "none_failed")
    assert close.upstream_task_ids == ended.upstream_task_ids == {"finetune", "rollback", "nothing"}
    assert not close.downstream_task_ids | ended.downstream_task_ids


def test_a_run_that_failed_before_it_suggested_anything_is_closed_too(triage, task):
    triage(alert())
    said = closing(task, {"suggest": "failed", "approve": "upstream_failed"}, open_incident().id)
    assert said["failed"] == ["approve", "suggest"] and incident_store.load("general").incident is None


def test_a_run_that_was_started_and_failed_is_one_red_task_that_says_where_the_reason_is(task, caplog):
    from airflow.sdk.exceptions import AirflowFailException

    finetune = task("clipft_readapt", "finetune").prepare_for_execution()
    event = {"run_ids": ["r1"], "r1": "failed"}
    context = {"ti": SimpleNamespace(log_url="http://airflow/dags/clipft_readapt/runs/r0/tasks/finetune")}
    with pytest.raises(AirflowFailException, match=r"http://airflow/dags/clipft_finetune/runs/r1 .run.failed"):
        finetune.execute_complete(context, ("a trigger", event))
    assert [record.message.partition(":")[0] for record in caplog.records if record.name == "clipft"] == [
        "What",
        "Why",
        "Way out",
    ]
    finetune.execute_complete(context, ("a trigger", event | {"r1": "success"}))


def test_a_rejected_or_unanswered_suggestion_is_declined(triage, task):
    triage(alert())
    said = closing(task, {"suggest": "success", "approve": "success", "choose": "skipped"}, open_incident().id)
    assert said["outcome"] == "declined" and incident_store.load("general").failures == 0


def test_a_rollback_of_a_worse_version_ends_the_run_well_and_the_incident_badly(triage, task):
    triage(alert())
    incident_store.update("general", lambda state: incidents.begin_probation(state, probation(60)))
    triage(alert("general", "errors", version="", since="2999-01-01T00:00:00Z"), run="failing")
    said = closing(task, {"suggest": "success", "rollback": "success", "finetune": "skipped"}, open_incident().id)
    assert (said["outcome"], said["failed"], said["failures"]) == ("failed", [], 1)


# approve ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(task, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], dict[str, Any]]:
    """What a person is asked, and until when."""
    from airflow.providers.standard.operators import hitl
    from airflow.sdk.exceptions import TaskAwaitingInput

    def ask(hours: float) -> dict[str, Any]:
        form: dict[str, Any] = {}
        monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **given: form.update(given))
        approve = task("clipft_readapt", "approve").prepare_for_execution()
        approve.required, approve.body = "True", "**Re-adapt the model**: …"
        with pytest.raises(TaskAwaitingInput) as waiting:
            ti = SimpleNamespace(id="1", try_number=1)
            approve.execute({"params": {"approval.hours": hours}, "task": approve, "ti": ti, "task_instance": ti})
        return form | {"timeout": waiting.value.timeout}

    return ask


def test_an_approval_that_nobody_answers_ends_and_the_form_says_what_that_means(asked):
    form = asked(36)
    assert form["timeout"] == timedelta(hours=36) and form["defaults"] is None  # neither button stands out
    assert form["body"].startswith("**Re-adapt the model**") and form["body"].endswith("Unanswered after 36 h means Reject.")
    assert asked(0.5)["body"].endswith("Unanswered after 0.5 h means Reject.")


def test_those_who_are_named_may_answer_and_else_whoever_may_start_runs(task, monkeypatch):
    from clipft_dag import Approval

    def asked() -> list[str] | None:
        settings.cache_clear()
        users = Approval(task_id="approve", required="True", subject="Promote?").assigned_users
        return users and [user["id"] for user in users]

    assert asked() is None
    monkeypatch.setenv("CLIPFT_APPROVERS", "ann bob")
    assert asked() == ["ann", "bob"]


def test_no_answer_in_time_is_a_no(task, monkeypatch):
    from airflow.sdk.exceptions import AirflowFailException

    unanswered, skipped = {"error": "The time has passed.", "error_type": "timeout"}, []
    approve = task("clipft_readapt", "approve").prepare_for_execution()
    monkeypatch.setattr(type(approve), "skip", lambda self, ti, tasks: skipped.extend(t.task_id for t in tasks))
    said = approve.execute_complete({"task": approve, "ti": None}, unanswered)
    assert said["chosen_options"] == ["Reject"] and skipped == ["choose"]
    with pytest.raises(AirflowFailException, match="Reject"):  # which is not tried again, to be asked again
        task("clipft_finetune", "approve").prepare_for_execution().execute_complete({}, unanswered)


@pytest.mark.parametrize("option", ["Approve", "Reject"])
def test_an_answer_whose_task_was_lost_counts_and_nobody_is_asked_twice(task, monkeypatch, option):
    import clipft_dag
    from airflow.sdk.exceptions import AirflowFailException, TaskAwaitingInput

    approve, paths = task("clipft_finetune", "approve").prepare_for_execution(), []
    given = {"response_received": True, "chosen_options": [option], "params_input": {}}
    given |= {"responded_at": "2026-12-01T01:44:58.264774Z", "responded_by_user": {"id": "ann", "name": "ann"}}
    airflow = SimpleNamespace(call=lambda method, path: paths.append(path) or given)
    monkeypatch.setattr(clipft_dag.Airflow, "of_settings", lambda timeout: airflow)
    monkeypatch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **_: None)
    approve.required, approve.notifiers = True, []

    def runs(number: int, most: int = approve.retries) -> Any:
        ti = SimpleNamespace(
            id="1", dag_id="clipft_finetune", run_id="r", task_id="approve", map_index=-1, try_number=number, max_tries=most
        )
        return approve.execute({"params": {"approval.hours": 1}, "ti": ti, "task_instance": ti, "task": approve})

    assert approve.retries >= 2
    if option == "Approve":
        assert runs(2)["responded_by_user"]["id"] == "ann"
    else:
        with pytest.raises(AirflowFailException):
            runs(2)
    assert paths == ["/dags/clipft_finetune/dagRuns/r/taskInstances/approve/-1/hitlDetails"]
    with pytest.raises(TaskAwaitingInput):  # a person cleared it
        runs(2, approve.retries + 2)
    given["response_received"] = False
    for number in (1, 2):
        with pytest.raises(TaskAwaitingInput):
            runs(number)


def test_no_approval_is_asked_for_where_none_is_required(task):
    approve = task("clipft_readapt", "approve").prepare_for_execution()
    for required in ("False", False):
        approve.required = required
        assert approve.execute({"params": {"approval.hours": 1}}) is None


# The page of models -------------------------------------------------------------------------------------------------


@pytest.fixture
def page(registry: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    from importlib import import_module

    monkeypatch.setenv("CLIPFT_SERVER_URL", "http://127.0.0.1:9")
    settings.cache_clear()
    return lambda: json.loads(json.dumps(import_module("clipft_models").models(None).model_dump(mode="json")))


def test_the_page_says_unknown_where_mlflow_is_away(page, monkeypatch):
    monkeypatch.setenv("CLIPFT_MLFLOW_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings.cache_clear()
    shown = page()
    assert all(d["versions"] is None and d["breaker"] == "unknown" for d in shown["domains"])
    assert any(problem.startswith("MLflow: ") for problem in shown["problems"])


def test_the_page_says_what_is_handled_and_what_is_on_probation(page, triage):
    domains = {d["name"]: d for d in page()["domains"]}
    assert domains["medical"]["versions"] == {} and domains["general"]["breaker"] == "closed"
    triage(alert())
    assert {d["name"]: (d["incident"], d["probation"]) for d in page()["domains"]}["general"] == (["image"], "")
    incident_store.update("general", lambda state: incidents.begin_probation(state, probation()))
    assert {d["name"]: (d["incident"], d["probation"]) for d in page()["domains"]}["general"] == ([], "2")


def test_the_page_is_sent_nothing_that_it_does_not_show(page, triage):
    triage(alert())
    incident_store.update("general", lambda state: incidents.close(state, "failed", time.time(), "finetune"))
    script = (ROOT / "plugins" / "models.html").read_text()
    shown = page()
    general = next(d for d in shown["domains"] if d["name"] == "general")
    for name in [*shown, *general, *general["history"][0]]:
        assert f".{name}" in script, name

"""Runs through the real Airflow that are refused, killed, stopped, approved and rolled back, and what new data starts."""

import re
import time
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import small, write_images, write_tiny
from fixtures.browser import chromium, program, visit

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.core.settings import settings
from e2e.conftest import call, cookies_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def form(tmp_path_factory):
    """A run of seconds: made images and the tiny model, as a person would fill the form."""
    folder = tmp_path_factory.mktemp("small")
    flat = small(write_images(folder / "source"), write_tiny(folder / "tiny"))
    data = {k: v for k, v in flat.items() if k in ("domain", "source", "model.start")}
    training = {k: v for k, v in flat.items() if k != "source"}
    return data, training


def wait(airflow, dag: str, run: str, seconds: float = 600) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        state = airflow.state(dag, run)
        if state in ("success", "failed"):
            return state
        time.sleep(1)
    raise AssertionError(f"{run} of {dag} did not end: {airflow.tasks(dag, run)}")


def finish(airflow, dag: str, conf: dict) -> str:
    run = airflow.trigger(dag, conf)
    ends_well(airflow, dag, run)
    return run


def ends_well(airflow, dag: str, run: str) -> None:
    state = wait(airflow, dag, run)
    failed = [t for t in airflow.tasks(dag, run) if t["state"] == "failed"]
    assert state == "success", {t["task_id"]: airflow.log(dag, run, t)[-8:] for t in failed}


def running_task(airflow, dag: str, run: str, task: str, said: str) -> psutil.Process:
    """The process of a running task, once it has said something."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        found = next((t for t in airflow.tasks(dag, run) if t["task_id"] == task), None)
        if found and found["state"] == "running" and any(said in line for line in airflow.log(dag, run, found)):
            from deploy.local import stack

            manager = stack.running()
            workers = [p for p in manager.children(recursive=True) if " ".join(p.cmdline()).startswith("airflow worker -- 0")]
            return max(workers, key=lambda p: p.create_time())
        time.sleep(0.3)
    raise AssertionError(f"{task} never said {said!r}")


def versions(domain: str) -> list[str]:
    from clipft_tasks import tracking

    return [str(v.version) for v in tracking.client().search_model_versions(f"name = 'clipft-{domain}'")]


def promoted(flat: dict) -> None:
    """Another domain's champion, from the stages themselves."""
    from clipft_tasks.spec import RunSpec
    from clipft_tasks.stages import chain

    spec, done = RunSpec.from_flat(flat | {"gate.rules": ["gain(score) >= -1"]}), {}
    for name in chain.stages_of(spec):
        done[name] = chain.run_stage(name, spec, done.__getitem__)


def test_the_form_refuses_a_wrong_value_before_anything_runs(airflow):
    with pytest.raises(ClipftError, match=r"objective\.positives|positives"):
        airflow.trigger("clipft_finetune", {"domain": "industrial", "objective.positives": "nonsense"})
    with pytest.raises(ClipftError, match="domain"):
        airflow.trigger("clipft_dataset", {"domain": "zoo", "source": "elpv:mono"})
    for forgotten in ({"domain": "industrial"}, {"domain": "industrial", "source": " "}, {"source": "elpv:mono"}):
        with pytest.raises(ClipftError, match="source|domain"):
            airflow.trigger("clipft_dataset", forgotten)


def test_an_unknown_field_fails_the_first_task_by_name(airflow):
    run = airflow.trigger("clipft_finetune", {"domain": "industrial", "train.epochz": 3})
    assert wait(airflow, "clipft_finetune", run) == "failed"
    failed = [t for t in airflow.tasks("clipft_finetune", run) if t["state"] == "failed"]
    assert any("train.epochz" in line for t in failed for line in airflow.log("clipft_finetune", run, t))
    assert all(t["try_number"] <= 1 for t in failed)  # what a person must mend is not tried again


def test_killed_in_training_it_resumes_and_equals_an_undisturbed_run(airflow, form):
    data, training = form
    finish(airflow, "clipft_dataset", data)
    long = training | {"train.epochs": 150, "train.checkpoint_seconds": 1}
    run = airflow.trigger("clipft_finetune", long)
    victim = running_task(airflow, "clipft_finetune", run, "finetune", "steps: ")
    victim.kill()
    ends_well(airflow, "clipft_finetune", run)
    task = next(t for t in airflow.tasks("clipft_finetune", run) if t["task_id"] == "finetune")
    assert task["try_number"] == 2
    assert any("Resumed at step" in line for line in airflow.log("clipft_finetune", run, task))
    assert versions("general") == ["1"]

    # The same training by hand, undisturbed, in a folder of its own: the weights must be the same to the bit.
    from clipft_tasks import tracking
    from clipft_tasks.contracts.stages import PlanResult
    from clipft_tasks.model import build, package
    from clipft_tasks.spec import RunSpec
    from clipft_tasks.train import launch

    result = airflow.result("clipft_finetune", run, "finetune")
    planned = PlanResult.model_validate(airflow.result("clipft_finetune", run, "plan"))
    plan, spec = planned.plan, RunSpec.from_flat(long).settled(planned.settled)
    clip = build.prepare(build.load(spec.model.start), spec)
    folder = settings().folder("undisturbed")
    job = launch.Job(spec=spec, plan=plan, start=spec.model.start, dataset=result["dataset"], key="k", folder=folder)
    launch.train(job, clip, lambda rows: None)
    theirs = package.open_folder(tracking.fetch_candidate(result["run_id"]))[0].state_dict()
    ours = clip.model.state_dict()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def sees_what_to_decide(airflow, installation, run: str) -> None:
    """The approval as a browser shows it: what it rests on, where the reports are, and two buttons of which none stands out."""
    page = f"{airflow.url}/dags/clipft_finetune/runs/{run}/tasks/approve/required_actions"
    with chromium() as browser, visit(browser, page, storage_state=cookies_of(installation, installation.USER)) as opened:
        buttons = [opened.page.get_by_role("button", name=name, exact=True) for name in ("Approve", "Reject")]
        for button in buttons:
            button.wait_for()
        looks = [button.evaluate("e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]") for button in buttons]
        assert looks[0] == looks[1], looks
        assert buttons[1].evaluate("e => e !== document.activeElement")  # Enter rejects nothing by accident
        said = opened.page.locator("body").inner_text()
        assert re.search(r"0\.\d+ \[0\.\d+, [01]\.\d+\]", said) and "test rows" in said and "groups" in said, said
        for name in ("Evaluation", "Model version"):
            assert str(opened.page.get_by_role("link", name=name).get_attribute("href")).startswith(settings().mlflow_ui)
        assert opened.elsewhere == []


def test_a_person_approves_a_promotion_and_rolls_it_back(airflow, form, installation):
    _, training = form
    search = {"tune.trials": 2, "tune.epochs": 4, "tune.patience": 0}
    gate = {"approval.required": True, "gate.rules": ["gain(score) >= -1"]}
    run = airflow.trigger("clipft_finetune", training | search | gate | {"train.epochs": 160})
    until = time.monotonic() + 600
    while time.monotonic() < until:
        waiting = airflow.call("GET", f"/dags/clipft_finetune/dagRuns/{run}/hitlDetails?response_received=false")[
            "hitl_details"
        ]
        waiting = [w for w in waiting if w["task_instance"]["state"] == "awaiting_input"]
        if waiting or airflow.state("clipft_finetune", run) == "failed":
            break
        time.sleep(1)
    assert "version 2" in waiting[0]["subject"] and "gain" in waiting[0]["body"]
    if program():
        sees_what_to_decide(airflow, installation, run)
    live = httpx.get(settings().server_url + "/readyz").json()["live"]
    assert live["general"] == "1"  # nothing is promoted before a person says so
    airflow.answer("clipft_finetune", run, "approve", "Approve")
    ends_well(airflow, "clipft_finetune", run)
    assert httpx.get(settings().server_url + "/readyz").json()["live"]["general"] == "2"

    # The search that the form asked for was a task a trial, the template's first; with its score no other may be worth running.
    trials = [t for t in airflow.tasks("clipft_finetune", run) if t["task_id"] == "tune.trial"]
    assert [t["state"] for t in trials] == ["success"] * 2
    decided = airflow.result("clipft_finetune", run, "tune.decide")
    template = decided["tried"][0]
    assert template["number"] == 0 and template["state"] == "complete" and decided["reason"]
    assert len(decided["tried"]) == 2 or "no other trial was run" in decided["reason"]

    compared = finish(airflow, "clipft_compare", {"models": ["general@champion", "general@previous"]})
    page = airflow.call("GET", f"/dags/clipft_compare/dagRuns/{compared}/taskInstances/compare/links")["extra_links"]
    assert page["Comparison"].startswith(settings().mlflow_ui)

    finish(airflow, "clipft_rollback", {"domain": "general"})
    assert httpx.get(settings().server_url + "/readyz").json()["live"]["general"] == "1"


def test_the_weekly_care_leaves_a_whole_backup_and_what_is_in_use(airflow, tmp_path):
    from clipft_tasks import tracking
    from clipft_tasks.ops import backup

    airflow.unpause("clipft_maintenance")
    run = finish(airflow, "clipft_maintenance", {"folder": str(tmp_path)})
    airflow.call("PATCH", "/dags/clipft_maintenance", json={"is_paused": True})
    made = airflow.result("clipft_maintenance", run, "backup")
    kept, problems = backup.verify(Path(made["folder"]))
    assert Path(made["folder"]).parent == tmp_path and kept.bytes == made["bytes"] and not problems
    cleared = airflow.result("clipft_maintenance", run, "gc")
    assert not cleared["failed"] and cleared.keys() >= {"freed", "removed", "skipped"}
    assert tracking.fetch_package(tracking.champion("general")).is_dir()


def test_stopped_in_mid_run_and_started_again_the_run_finishes(airflow, form):
    data, training = form
    promoted(data | training | {"domain": "scientific"})
    run = airflow.trigger(
        "clipft_finetune",
        training | {"train.epochs": 200, "train.checkpoint_seconds": 1, "train.seed": 3, "gate.rules": ["gain(score) >= -1"]},
    )
    victim = running_task(airflow, "clipft_finetune", run, "finetune", "steps: ")
    from clipft_tasks.ops import stack_processes

    family = stack_processes.members()
    assert victim in family
    assert call("deploy.local.stack", "down", seconds=120).returncode == 0
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]  # no child is left behind
    done = call("deploy.local.stack", "up", seconds=600)
    assert done.returncode == 0, done.stdout
    assert httpx.get(settings().server_url + "/readyz", timeout=60).status_code in (200, 503)
    ends_well(airflow, "clipft_finetune", run)
    assert len(versions("general")) == 3
    until = time.monotonic() + 60
    while time.monotonic() < until and "scientific" not in (
        live := httpx.get(settings().server_url + "/readyz").json()["live"]
    ):
        time.sleep(1)
    assert live["general"] == "3" and live["scientific"] == "1"  # champions are live again after a restart


def test_new_data_retrains_by_itself_once_a_person_switches_that_on(airflow, form, tmp_path):
    data, _ = form
    airflow.unpause("clipft_retrain")
    before = {r["dag_run_id"] for r in airflow.call("GET", "/dags/clipft_finetune/dagRuns?limit=100")["dag_runs"]}
    source = str(write_images(tmp_path / "more", per_class=44))
    data_run = airflow.trigger("clipft_dataset", data | {"source": source})
    until = time.monotonic() + 240
    by_new_data = []

    def started() -> list[dict]:
        runs = airflow.call("GET", "/dags/clipft_finetune/dagRuns?limit=100")["dag_runs"]
        return [r for r in runs if r["dag_run_id"] not in before]

    while time.monotonic() < until and not by_new_data:
        by_new_data = [r for r in started() if r["conf"].get("dataset") == "general/v2"]
        time.sleep(2)
    airflow.call("PATCH", "/dags/clipft_retrain", json={"is_paused": True})
    # Switching the DAG on also ran what the clock owed; of all that only the start is of interest here.
    for retrain in airflow.call("GET", "/dags/clipft_retrain/dagRuns?limit=100")["dag_runs"]:
        if retrain["state"] in ("queued", "running"):
            airflow.call("PATCH", f"/dags/clipft_retrain/dagRuns/{retrain['dag_run_id']}", json={"state": "failed"})
    time.sleep(2)
    for run in started():
        if run["state"] in ("queued", "running"):
            airflow.call("PATCH", f"/dags/clipft_finetune/dagRuns/{run['dag_run_id']}", json={"state": "failed"})
    assert airflow.state("clipft_dataset", data_run) == "success"
    assert by_new_data, "the new version did not start a fine-tuning"

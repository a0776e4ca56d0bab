"""Workers that share nothing with the control plane but what passes its gateway."""

import json
import re
import signal
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from conftest import small

from bench import worker_tasks
from team import engine
from team.fleet import fleet, until

pytestmark = [pytest.mark.team, pytest.mark.timeout(2400)]
READY = "takes tasks of the queue"
LONG = {
    "source": "/sources/images/images.csv", "model.start": "/sources/tiny", "resolution.evaluate": [32], "train.epochs": 900,
    "train.keep": "last", "train.checkpoint_seconds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    if reason := engine.lacking():
        pytest.skip(reason)
    with fleet(tmp_path_factory.mktemp("fleet")) as made:
        yield made


@pytest.fixture(scope="module")
def dataset(plane):
    """The data set that is trained on: made on the control plane, without any worker."""
    run = plane.run("clipft_dataset", {"domain": "general", "source": LONG["source"]})
    plane.finished("clipft_dataset", run, 600)
    return "general/v1"


@pytest.fixture(scope="module")
def two(plane):
    """Two workers of one queue; told to drain at the end, they do."""
    plane.alone()
    workers = {name: plane.worker(name) for name in ("left", "right")}
    for name, worker in workers.items():
        ready(plane, name, worker)
    yield list(workers)
    for worker in workers.values():
        worker.process.send_signal(signal.SIGINT)
    assert [ended(w, 200) for w in workers.values()] == [0, 0]


def form(**more):
    """A finetune form: made images, the tiny model, hundreds of short epochs."""
    return {k: v for k, v in small("", "", **(LONG | more)).items() if k != "source"}


def clock(shift: str) -> dict[str, str]:
    """A machine whose clock is wrong by so many seconds."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), "")
    return {"LD_PRELOAD": str(library), "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def ready(plane, name: str, worker, before: int = 0) -> None:
    """Wait until a worker takes tasks, again where it did so often `before`; one that was turned away fails at once, in its words."""
    until(lambda: plane.log(name).count(READY) > before or not worker.alive, 400, name)
    assert plane.log(name).count(READY) > before, plane.log(name)


def ended(container, seconds: float) -> int:
    assert container.process is not None
    return container.process.wait(seconds)


def test_the_whole_chain_survives_a_cut_network_a_killed_machine_and_a_drained_one(plane, dataset):
    """One run of the chain. Its training begins on `first`, whose cable is pulled for a minute, whose control plane loses its API and
    its database for a while, and whose power then goes for good; goes on on `second`, which is told to stop; and ends on `third`.
    There is one model version, and every step was taken once."""
    first = plane.worker("first")
    run = plane.run("clipft_finetune", form(dataset=dataset))

    def at(step: int):
        return until(lambda: (t := plane.training()) and t["step"] >= step and t, 900, f"step {step}")

    def goes_on(after: int, what: str) -> dict:
        """Airflow hears of the first try again, and MLflow of more steps."""
        since = time.time()
        until(lambda: plane.heard("finetune") > since, 150, f"a sign of the task after {what}")
        assert plane.task("clipft_finetune", run, "finetune")["try_number"] == 1, f"{what} cost a try"
        return at(after + 60)

    began = at(20)
    assert plane.sees(first) == [plane.home("first")], "a folder that it shares with the control plane"
    plane.team.cut(first)
    time.sleep(60)
    plane.team.cut(first, connected=True)
    seen = goes_on(began["step"], "a minute without network")
    for service in ("airflow-api", "postgres"):
        plane.team.restart(plane.team.one(service), 180)
        seen = goes_on(seen["step"], f"a restart of {service}")
    until(lambda: "clipft.checkpoint" in plane.training()["tags"], 60, "a checkpoint in MLflow")
    plane.team.kill(first)
    engine.run("rm", "-rf", str(plane.home("first")))  # lost for good

    second = plane.worker("second")
    assert at(seen["step"] + 60)["id"] == began["id"]
    second.process.terminate()  # as launchd, systemd or a container engine does
    assert ended(second, 300) == 0, plane.log("second")
    assert "handed over" in plane.log("second")
    third = plane.worker("third")
    plane.finished("clipft_finetune", run, 1200)

    done = plane.training()
    assert done["metrics"]["steps"] == 2700 and int(done["tags"]["clipft.resumed_at"]) > seen["step"]
    history = plane.mlflow.get(
        "/metrics/get-history", params={"run_id": done["id"], "metric_key": "train.loss", "max_results": 20000}
    )
    by_step: dict[int, set[float]] = {}
    for metric in history.json()["metrics"]:
        by_step.setdefault(int(metric["step"]), set()).add(metric["value"])
    assert all(len(values) == 1 for values in by_step.values()), "a step was trained twice with different results"
    assert len(by_step) >= 2600, "steps whose metrics were lost with the machine, at most those since its last report"
    assert [v["version"] for v in plane.versions()] == ["1"]
    assert plane.task("clipft_finetune", run, "finetune")["try_number"] == 3
    assert plane.task("clipft_finetune", run, "verify")["state"] == "success"
    assert "clipft.checkpoint" not in done["tags"]
    # The logs of tasks that ran on workers are where a person looks for them.
    task = plane.task("clipft_finetune", run, "evaluate")
    assert any("Evaluat" in line or "test images" in line for line in plane.airflow.log("clipft_finetune", run, task))
    third.process.send_signal(signal.SIGINT)
    assert ended(third, 200) == 0


def test_forty_small_tasks_over_two_workers_run_once_each(plane, two):
    plane.airflow.unpause("forty")
    run = plane.run("forty", {})
    plane.finished("forty", run, 1200)
    tasks = [t for t in plane.airflow.tasks("forty", run) if t["task_id"] == "on_workers"]
    assert Counter((t["state"], t["try_number"]) for t in tasks) == {("success", 1): 40}
    ran = [[int(p.name.partition("-")[0]) for p in (plane.home(name) / "ran").iterdir()] for name in two]
    assert sorted(chain.from_iterable(ran)) == list(range(40)) and all(ran)
    print("\nForty tasks:", json.dumps(worker_tasks.compared(plane.airflow.tasks("forty", run))))


def test_trials_and_evaluations_spread_over_the_workers_and_share_one_study(plane, dataset, two):
    tuning = {"tune.trials": 4, "tune.learning_rate": True, "tune.patience": 0, "resolution.evaluate": [32, 48]}
    tuning["train.learning_rate"] = 1e-6  # learns next to nothing: a template that scores 1 would end the study at once
    run = plane.run(
        "clipft_finetune", form(dataset=dataset, **tuning, **{"train.epochs": 6, "gate.rules": ["gain(score) >= -1"]})
    )
    plane.finished("clipft_finetune", run, 1200)
    for task, count in (("tune.trial", 4), ("evaluate", 2)):
        ran = [plane.ran(name, "clipft_finetune", run, task) for name in two]
        assert sorted(chain.from_iterable(ran)) == list(range(count)), task
        assert task == "evaluate" or all(ran), ran
    tried = plane.airflow.result("clipft_finetune", run, "tune.decide")["tried"]
    assert [t["number"] for t in tried] == [0, 1, 2, 3] and {t["state"] for t in tried} <= {"complete", "pruned"}, tried


def test_a_worker_with_a_wrong_secret_or_none_any_more_is_out_and_says_why(plane):
    worker = plane.worker("guest")
    ready(plane, "guest", worker)
    assert "guest" in plane.operator("list")

    kept = plane.home("guest") / "worker" / "worker.json"
    right = kept.read_text()
    kept.write_text(re.sub(r'"secret": "..', '"secret": "xx', right))
    plane.again(worker)
    assert ended(worker, 400) != 0
    assert "No worker has the name 'guest' and this secret" in plane.log("guest")
    assert "clipft worker invite NAME" in plane.log("guest") and "[gateway.wrong_secret]" in plane.log("guest")

    kept.write_text(right)
    started = plane.log("guest").count(READY)
    plane.team.start(worker)
    ready(plane, "guest", worker, started)
    plane.operator("revoke", "guest")
    plane.again(worker)
    assert ended(worker, 400) != 0
    assert "Worker guest was revoked" in plane.log("guest")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("wrong-code", {"code": "wrong-code.x"}, "unknown, was used, or is too old"),
        ("old-code", {"mount": "versions"}, "copy clipft_tasks, dags and plugins"),
        ("late", {"environment": clock("-120")}, r"1(19|20)\.\d s behind the control plane's; 30 are allowed"),
        ("early", {"environment": clock("+120")}, r"1(19|20)\.\d s ahead of the control plane's; 30 are allowed"),
        ("full", {"tmpfs": "/var/lib/clipft:mode=1777,size=64m"}, "GiB free under /var/lib/clipft; 8 are needed"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_taken(plane, tmp_path, name, change, said):
    real = plane.team._add

    def other(service_name, number, service):
        if "tmpfs" in change:
            service["volumes"] = [v for v in service["volumes"] if not v.endswith(":/var/lib/clipft")]
            service["tmpfs"] = [*service["tmpfs"], change["tmpfs"]]
        if "mount" in change:
            edited = tmp_path / "edited.py"
            edited.write_text("# somebody's own change\n")
            service["volumes"] = [*service["volumes"], f"{edited}:/opt/clipft/dags/edited.py:ro"]
        return real(service_name, number, service)

    plane.team._add = other
    try:
        worker = plane.worker(name, code=change.get("code", ""), **change.get("environment", {}))
    finally:
        plane.team._add = real
    assert ended(worker, 400) != 0
    assert re.search(said, plane.log(name)), plane.log(name)

"""DAG files are wiring: they import nothing heavy, and their forms are the spec's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
DAGS = sorted((PROJECT / "dags").glob("*.py"))

LOOK = """
import json, runpy, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
for file in sys.argv[3:]:
    dag = runpy.run_path(file)[Path(file).stem]()
    print("RESULT" + json.dumps({
        "heavy": sorted({"torch", "mlflow", "open_clip", "great_expectations", "dvc", "pandas"} & set(sys.modules)),
        "id": dag.dag_id, "doc": bool(dag.doc_md), "tags": sorted(dag.tags), "params": sorted(dag.params),
        "retries": {t.task_id: t.retries for t in dag.tasks}, "timeouts": {t.task_id: bool(t.execution_timeout) for t in dag.tasks},
        "kinds": {t.task_id: t.task_type for t in dag.tasks},
        "pools": {t.task_id: t.pool for t in dag.tasks}, "mapped": [t.task_id for t in dag.tasks if t.is_mapped],
        "upstream": {t.task_id: sorted(t.upstream_task_ids) for t in dag.tasks},
    }))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory) -> dict[str, dict]:
    """What each file makes, one after the other in a process like that which parses them; it imports Airflow once."""
    env = os.environ | {"AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow"))}
    command = [sys.executable, "-c", LOOK, str(PROJECT / "plugins"), str(PROJECT), *map(str, DAGS)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    made = [json.loads(line.removeprefix("RESULT")) for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return dict(zip([file.stem for file in DAGS], made, strict=True))


@pytest.fixture(params=DAGS, ids=lambda p: p.stem)
def dag(request, parsed) -> dict:
    return parsed[request.param.stem]


def test_a_dag_file_imports_nothing_heavy(dag):
    assert dag["heavy"] == []


def test_a_dag_explains_itself(dag):
    assert dag["doc"] and "clipft" in dag["tags"]


def test_lost_tasks_are_tried_again_and_none_runs_for_ever(dag):
    for task, retries in dag["retries"].items():
        waits = task == "approve" or dag["kinds"][task] == "TriggerDagRunOperator"  # whose own run has retries
        assert (retries >= 2 and dag["timeouts"][task]) or waits


def test_training_and_evaluation_share_one_accelerator(dag):
    if dag["id"] == "clipft_finetune":
        on_it = {"plan", "tune.begin", "tune.trial", "finetune", "blend", "evaluate"}
        assert {t for t, pool in dag["pools"].items() if pool == "accelerator"} == on_it


def test_a_form_is_made_of_the_specs_fields(dag):
    from clipft_tasks.spec import form

    own = {
        "clipft_rollback": {"version"},
        "clipft_retrain": {"domains"},
        "clipft_maintenance": {"folder", "clear"},
        "clipft_compare": {"models", "sizes", "metric", "unpaired", "watts"},
        "clipft_readapt": {"causes", "incident"},
        "clipft_drift_watch": {"domains", "wait_minutes", "cool_down_minutes", "approval"},
    }.get(dag["id"], set())
    assert set(dag["params"]) - own <= set(form())


def test_training_waits_for_its_tuning_one_mapped_task_a_trial(dag):
    if dag["id"] == "clipft_finetune":
        assert "tune.trial" in dag["mapped"]
        assert {"tune.trial", "tune.begin"} <= set(dag["upstream"]["tune.decide"])
        assert dag["upstream"]["finetune"] == ["plan", "tune.decide"]

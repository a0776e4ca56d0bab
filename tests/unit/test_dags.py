"""DAG files are wiring: they import nothing heavy, and their forms are the spec's."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jinja2
import jsonschema
import pytest

from clipft_tasks.ops.chaos.strikes import DURING
from clipft_tasks.stages.chain import CHAIN, ROLLBACK

PROJECT = Path(__file__).resolve().parents[2]
DAGS = sorted((PROJECT / "dags").glob("*.py"))

LOOK = """
import json, os, runpy, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
seen = set()
for file in [*sys.argv[3:], *(f for f in sys.argv[3:] if "clipft_dataset" in f)]:
    if file in seen:  # once more, as where an ingest is shared out
        os.environ["CLIPFT_INGEST_PARTS"] = "3"
        sys.modules["clipft_tasks.core.settings"].settings.cache_clear()
    seen.add(file)
    dag = runpy.run_path(file)[Path(file).stem]()
    print("RESULT" + json.dumps({
        "heavy": sorted({"torch", "mlflow", "open_clip", "great_expectations", "dvc", "pandas"} & set(sys.modules)),
        "id": dag.dag_id, "doc": bool(dag.doc_md), "tags": sorted(dag.tags), "params": sorted(dag.params), "form": {name: dag.params.get_param(name).dump() for name in dag.params},
        "question": dag.task_dict["approve"].body if "approve" in dag.task_dict else "",
        "late": bool(dag.deadline), "shown": [dag.dag_display_name, dag.description],
        "retries": {t.task_id: t.retries for t in dag.tasks}, "timeouts": {t.task_id: bool(t.execution_timeout) for t in dag.tasks},
        "kinds": {t.task_id: t.task_type for t in dag.tasks},
        "places": {t.task_id: [t.pool, t.queue, t.executor] for t in dag.tasks},
        "hours": {t.task_id: t.execution_timeout.total_seconds() / 3600 for t in dag.tasks if t.execution_timeout}, "mapped": [t.task_id for t in dag.tasks if t.is_mapped],
        "upstream": {t.task_id: sorted(t.upstream_task_ids) for t in dag.tasks},
    }))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory) -> dict[str, dict]:
    """What each file makes, one after the other in a process like that which parses them; it imports Airflow once."""
    env = os.environ | {"AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow")), "CLIPFT_ACCELERATOR_QUEUE": "mps"}
    command = [sys.executable, "-c", LOOK, str(PROJECT / "plugins"), str(PROJECT), *map(str, DAGS)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    made = [json.loads(line.removeprefix("RESULT")) for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return dict(zip([*(file.stem for file in DAGS), "shared out"], made, strict=True))


@pytest.fixture(params=DAGS, ids=lambda p: p.stem)
def dag(request, parsed) -> dict:
    return parsed[request.param.stem]


def test_a_dag_file_imports_nothing_heavy(dag):
    assert dag["heavy"] == []


def test_a_dag_explains_itself(dag):
    assert dag["doc"] and "clipft" in dag["tags"]


def test_lost_tasks_are_tried_again_and_none_runs_for_ever(dag):
    for task, retries in dag["retries"].items():
        waits = task == "approve" or dag["kinds"][task] in ("SubRun", "TriggerDagRunOperator")  # whose own run has retries
        assert (retries >= 2 and dag["timeouts"][task]) or waits


def test_somebody_is_told_of_a_run_that_takes_much_longer_than_usual(parsed):
    """Of every DAG that has tasks of more than an hour, or that waits for another run."""
    works_long = {
        name
        for name, dag in parsed.items()
        if any(hours > 1 for hours in dag["hours"].values()) or "SubRun" in dag["kinds"].values()
    }
    assert {name for name, dag in parsed.items() if dag["late"]} == works_long


def test_training_and_evaluation_share_one_accelerator_and_nothing_else_goes_there(parsed):
    on_it = {f"{dag}.{task}" for dag, found in parsed.items() for task, place in found["places"].items()
             if place[:2] == ["accelerator", "mps"]}  # fmt: skip
    tasks = {"plan", "tune.begin", "tune.trial", "finetune", "blend", "evaluate"}
    assert on_it == {f"clipft_finetune.{task}" for task in tasks} | {"clipft_compare.compare"}


@pytest.mark.parametrize(
    ("name", "declared"),
    [
        ("clipft_dataset", {name: stage for name, stage in CHAIN.items() if name in ("ingest", "validate", "version")}),
        ("clipft_finetune", {name: stage for name, stage in CHAIN.items() if name not in ("ingest", "validate", "version")}),
        ("clipft_rollback", ROLLBACK),
    ],
)
def test_the_tasks_of_a_chain_are_wired_as_it_is_declared(parsed, name, declared):
    dag, parts = parsed[name], {"tune": ["tune.begin", "tune.decide"]}

    def upstream(task: str) -> set[str]:
        """Of what a task waits for, directly or through tasks that are no stage."""
        found: set[str] = set()
        for other in set(dag["upstream"][task]) - {
            "resolutions"
        }:  # which waits for plan only so that one mistake is one red task
            found |= {other} if other.split(".")[0] in declared else upstream(other)
        return found

    for stage, about in declared.items():
        first, *_ = parts.get(stage, [stage, stage])
        assert upstream(first) == {parts.get(needed, [needed])[-1] for needed in about.needs}, stage
        assert (dag["places"][first][0] == "accelerator") == about.accelerator, stage
        assert dag["hours"][first] == about.hours, stage
        assert (stage in dag["mapped"]) == bool(about.each), stage
    others = {task for task in dag["upstream"] if task.split(".")[0] not in declared}
    own = {"clipft_finetune": {"resolutions", "approve", "reconcile"}, "clipft_rollback": {"reconcile"}}
    assert others == own.get(name, set())


def test_an_ingest_that_is_shared_out_decodes_and_checks_in_mapped_tasks(parsed):
    dag = parsed["shared out"]
    assert dag["upstream"] == {
        "decode": [], "ingest": ["decode"], "check": ["ingest"], "validate": ["check", "ingest"], "version": ["ingest", "validate"],
    }  # fmt: skip
    assert sorted(dag["mapped"]) == ["check", "decode"] and dag["hours"]["decode"] == CHAIN["ingest"].hours
    assert parsed["clipft_dataset"]["upstream"]["ingest"] == [] and parsed["clipft_dataset"]["mapped"] == []


def test_a_person_decides_before_anything_reaches_traffic(parsed):
    dag = parsed["clipft_finetune"]
    assert dag["upstream"]["approve"] == ["register"] and "approve" in dag["upstream"]["rollout"]


def test_who_approves_sees_what_it_is_about_and_where_the_reports_are(parsed):
    found = {
        "gate": {"table": "| gain |", "opponent": "2", "links": {"Evaluation": "http://m/e"}},
        "register": {"model": "clipft-general", "version": "3", "links": {"Model version": "http://m/v"}},
        "finetune": {"links": {"MLflow run": ""}},
        "plan": {"dataset": "general/v1"},
    }
    ti = SimpleNamespace(xcom_pull=lambda task_ids: found[task_ids])
    body = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(parsed["clipft_finetune"]["question"])
    shown = body.render(ti=ti, params={"domain": "general"})
    assert shown.startswith(
        "**clipft-general version 3**, trained on general/v1.\n[Evaluation](http://m/e) · [Model version](http://m/v)"
    )
    assert "\n\n| gain |\n\n" in shown and "version 2 is kept as previous. *Reject* changes nothing" in shown


def test_a_form_is_made_of_the_specs_fields(dag):
    from clipft_tasks.spec import form

    own = {
        "clipft_rollback": {"version"},
        "clipft_retrain": {"domains"},
        "clipft_maintenance": {"folder", "clear"},
        "clipft_compare": {"models", "sizes", "metric", "unpaired", "watts"},
        "clipft_readapt": {"signals", "incident"},
        "clipft_drift_watch": {"domains", "wait_minutes", "cool_down_minutes", "approval"},
    }.get(dag["id"], set())
    assert set(dag["params"]) - own <= set(form())


def test_a_dag_has_a_name_and_a_sentence_for_the_list(dag):
    name, description = dag["shown"]
    assert dag["id"] in name and name != dag["id"] and description.endswith(".")


# What Airflow 3.3.2's form makes of a schema: a star for a type without null, an open field for one without a section, a closed
# menu for an array with examples, Markdown where there is no plain description.


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("clipft_dataset", ["domain", "source"]),
        ("clipft_finetune", ["domain", "dataset", "model.start", "train.epochs", "memory.memory_gb", "approval.required"]),
        ("clipft_readapt", ["domain", "train.epochs", "approval.required", "incident", "signals"]),
        ("clipft_rollback", ["domain", "version"]),
    ],
)
def test_what_a_person_looks_at_stands_open_and_first(parsed, name, first):
    shown = parsed[name]["form"]
    assert [field for field, about in shown.items() if "section" not in about["schema"]] == first
    assert [*shown][:2] == first[:2]


def test_only_what_a_run_cannot_do_without_is_starred_and_has_no_preset(dag):
    from clipft_tasks.spec import form

    starred = {name for name, about in dag["form"].items() if "null" not in about["schema"]["type"]}
    assert starred & set(form()) <= {"domain", "source", "approval.required", "dataset"}
    for name in starred & {"domain", "source", "models"}:
        assert dag["form"][name]["value"] is None


def test_lists_can_be_typed_and_choices_say_what_an_empty_one_means(dag):
    from clipft_tasks.domains import domain_names

    for name, about in dag["form"].items():
        schema = about["schema"]
        if "array" in schema["type"]:
            assert "examples" not in schema or schema["examples"] == domain_names(), name
            assert schema["items"].get("type") in (None, "string") or name == "sizes"
        if None in schema.get("enum", ()):
            assert schema["values_display"]["null"].startswith(("the domain's choice: ", "as usual: ")), name
        assert about["description"] or schema["description_md"]


def refused(about: dict, value: object) -> bool:
    return not jsonschema.Draft202012Validator(about["schema"]).is_valid(value)


def test_a_wrong_value_is_refused_before_anything_runs(parsed):
    data, training = parsed["clipft_dataset"]["form"], parsed["clipft_finetune"]["form"]
    assert all(refused(data["source"], value) for value in (None, "", "  "))
    assert all(refused(data["domain"], value) for value in (None, "", "zoo"))
    assert all(refused(training["dataset"], value) for value in ("industrial-3", "industrial/3", "v3"))
    assert all(refused(training["model.start"], value) for value in ("", " starter", "  "))
    assert all(refused(training["resolution.evaluate"], value) for value in (["many"], "96"))
    for name, about in training.items():
        assert about["value"] is None or not refused(about, about["value"]), name


def test_what_a_person_types_into_a_list_is_read(parsed):
    from clipft_tasks.spec import RunSpec

    training = parsed["clipft_finetune"]["form"]
    typed = {
        "resolution.evaluate": ["96", "128", ""],
        "gate.rules": ["gain(score) > 0", "balanced_accuracy at 96 >= 0.5", ""],
        "train.rules": ["visual.*=0.1"],
        "objective.auxiliary": ["cyclic"],
    }
    assert not any(refused(training[name], value) for name, value in typed.items())
    spec = RunSpec.from_flat({"domain": "general", **typed})
    assert spec.resolution.evaluate == [96, 128] and len(spec.gate.rules) == 2 and spec.train.rules == ["visual.*=0.1"]


def test_training_waits_for_its_tuning_one_mapped_task_a_trial(dag):
    if dag["id"] == "clipft_finetune":
        assert "tune.trial" in dag["mapped"]
        assert {"tune.trial", "tune.begin"} <= set(dag["upstream"]["tune.decide"])
        assert dag["upstream"]["finetune"] == ["plan", "tune.decide"]


def test_what_chaos_strikes_is_a_task_of_its_dag(parsed):
    for name, tasks in DURING.items():
        assert set(tasks) <= parsed[name]["kinds"].keys()

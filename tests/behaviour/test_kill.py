"""SIGKILL in the middle of a stage, at the worst places; the next try ends as if nothing had happened."""

import json
import signal
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fixtures.forkserver
import pytest
from conftest import small

from clipft_tasks.contracts import Record
from clipft_tasks.contracts.evaluation import Interval
from clipft_tasks.contracts.gate import GateVerdict
from clipft_tasks.contracts.stages import PromoteResult
from clipft_tasks.data import versioning
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import evaluate, finetune, ingest, plan, promote, register, version

# Runs a stage in a process of its own that kills itself at the n-th call of one function (counting from 1).
VICTIM = """
import importlib, json, os, signal, sys
flat, stage, inputs, module, name, at, after = json.loads(sys.argv[1])
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages.call import call_stage
owner = importlib.import_module(module)
for part in name.split(".")[:-1]:
    owner = getattr(owner, part)
leaf, calls = name.split(".")[-1], [0]
real = getattr(owner, leaf)
def dying(*args, **kwargs):
    calls[0] += 1
    out = real(*args, **kwargs) if after or calls[0] != at else None
    if calls[0] == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return out
setattr(owner, leaf, dying)
call_stage(stage, RunSpec.from_flat(flat), inputs)
"""


def killed(flat: dict, stage: str, inputs: dict, function: str, at: int = 1, after: bool = False) -> bool:
    """Run a stage that kills itself at (or right after) a call; says whether it did."""
    module, _, name = function.partition(":")
    sent = {key: value.to_json() if isinstance(value, Record) else value for key, value in inputs.items()}
    argument = json.dumps([flat, stage, sent, module, name, at, after])
    done = fixtures.forkserver.run(VICTIM, argument)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
    return done.returncode == -signal.SIGKILL


@pytest.fixture
def flat(home, table, tiny):
    return small(table, tiny)


def test_killed_at_each_step_of_versioning_there_is_one_whole_version(flat):
    spec = RunSpec.from_flat(flat)
    staging = ingest.run(spec).staging
    inputs, module = {"staging": staging}, "clipft_tasks.data.repository:"
    assert killed(flat, "version", inputs, "clipft_tasks.data.versioning:shards.path_of", 1)
    assert killed(flat, "version", inputs, module + "dvc", 1)  # before add
    assert killed(flat, "version", inputs, module + "dvc", 2)  # between add and push
    assert killed(flat, "version", inputs, module + "git", 6)  # staged, not committed
    assert killed(flat, "version", inputs, module + "publish", 1)  # tagged, not published
    assert [v.tag for v in versioning.versions("general")] == ["general/v1"]
    made = version.run(spec, staging)
    assert made.dataset == "general/v1"
    assert [v.tag for v in versioning.versions("general")] == ["general/v1"]
    dataset = versioning.fetch(versioning.find("", "general"))
    assert len(dataset.frame) == 80 and all(dataset.image_bytes(row)[:4] == b"\x89PNG" for row in dataset.frame.itertuples())


@pytest.fixture
def planned(flat):
    spec = RunSpec.from_flat(flat)
    version.run(spec, ingest.run(spec).staging)
    return plan.run(spec)


def test_killed_in_training_and_while_logging_the_model_there_is_one_run(flat, planned):
    from clipft_tasks import tracking

    flat = flat | {"train.checkpoint_seconds": 0}
    spec = RunSpec.from_flat(flat)
    assert killed(flat, "finetune", {"planned": planned}, "clipft_tasks.train.step:backward", 5)
    assert killed(flat, "finetune", {"planned": planned}, "clipft_tasks.train.checkpoints:os.replace", 2)
    assert killed(flat, "finetune", {"planned": planned}, "clipft_tasks.tracking:log_model", after=True)
    result = finetune.run(spec, planned)
    assert not result.done_before
    runs = tracking.client().search_runs(
        [tracking.get_or_create_experiment("clipft-general")], f"tags.`clipft.key` = '{result.key}'"
    )
    assert [r.info.status for r in runs] == ["FINISHED"]

    # Metrics are those of an undisturbed run: another home, the same spec.
    history = tracking.client().get_metric_history(result.run_id, "train.loss")
    assert {m.step for m in history} == set(range(12))
    by_step = {step: {m.value for m in history if m.step == step} for step in range(12)}
    assert all(len(values) == 1 for values in by_step.values())  # a repeated step repeats its loss exactly


def test_the_form_again_after_an_evaluation_that_died_finds_what_was_done_and_trains_nothing(flat, planned, monkeypatch):
    from clipft_tasks import tracking
    from clipft_tasks.evaluate import artifacts, evaluator
    from clipft_tasks.train import candidate

    spec = RunSpec.from_flat(flat)
    trained = finetune.run(spec, planned)
    monkeypatch.setattr(candidate, "train_candidate", None)  # no second training

    # Killed with one size done and the next one's file half written, as MLflow writes it.
    assert killed(flat, "evaluate", {"run_id": trained.run_id, "size": 32}, "clipft_tasks.evaluate.artifacts:save", after=True)
    done = artifacts.load(trained.run_id, 32)
    kept = Path(url2pathname(urlsplit(tracking.client().get_run(trained.run_id).info.artifact_uri).path)) / artifacts.FOLDER
    (kept / "48.json").write_bytes((kept / "32.json").read_bytes()[:500])

    again = finetune.run(spec, planned)
    assert again.done_before and again.run_id == trained.run_id
    assert evaluate.run(spec, again.run_id, 48).size == 48
    monkeypatch.setattr(evaluator, "evaluate", None)  # and no second evaluation
    assert evaluate.run(spec, again.run_id, 32) == done


def test_killed_while_registering_there_is_one_model_version(flat, planned):
    from clipft_tasks import tracking

    spec = RunSpec.from_flat(flat)
    run_id = finetune.run(spec, planned).run_id
    score = Interval(value=0.9, low=0.8, high=1.0)
    gate = GateVerdict(passed=True, metric="accuracy", opponent="", rules=[], table="", scores={32: {"candidate": score}})
    inputs = {"run_id": run_id, "gate": gate}
    client = "mlflow.tracking:MlflowClient."
    assert killed(flat, "register", inputs, client + "create_model_version", after=True)
    assert killed(flat, "register", inputs, client + "set_model_version_tag", at=3)
    assert killed(flat, "register", inputs, client + "set_registered_model_alias")
    made = register.run(spec, run_id, gate)
    found = tracking.client().search_model_versions("name = 'clipft-general'")
    assert [str(v.version) for v in found] == [made.version] == ["1"]
    assert found[0].tags["clipft.dataset"] == "general/v1"

    # Promotion: between the two aliases, the old champion must still be one of them.
    promote.run(spec, "1")
    tracking.client().create_model_version("clipft-general", found[0].source, run_id)
    assert killed(flat, "promote", {"version": "2"}, client + "set_registered_model_alias", at=2)
    assert tracking.version_number(tracking.champion("general")) == "1"
    assert promote.run(spec, "2") == PromoteResult(version="2", previous="1")
    assert tracking.version_number(tracking.version_by_alias("general", "previous")) == "1"


def test_killed_between_commit_and_tag_the_tag_is_made_up_for(flat):
    spec = RunSpec.from_flat(flat)
    staging = ingest.run(spec).staging
    calls = ("status", "for-each-ref", "add", "status", "commit", "tag")
    assert killed(flat, "version", {"staging": staging}, "clipft_tasks.data.repository:git", len(calls))
    assert versioning.versions("general") == []
    assert version.run(spec, staging).dataset == "general/v1"
    assert [v.tag for v in versioning.versions("general")] == ["general/v1"]

"""Tuning on a real study: trials that are tried, killed, resumed, failed; and a decision that only sees the validation split."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import optuna
import pytest
from conftest import small, write_images
from fixtures.errors import refuses

from behaviour.test_kill import killed
from clipft_tasks import tracking
from clipft_tasks.contracts.stages import PlanResult, StudyResult
from clipft_tasks.core.errors import TransientError
from clipft_tasks.core.settings import settings
from clipft_tasks.data import versioning
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import finetune, ingest, plan, tune, version
from clipft_tasks.train import launch
from clipft_tasks.tuning.study import Study

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny) -> Iterator[tuple[dict, Path]]:
    """A home with a dataset version, and the form of a run whose template learns nothing."""
    root = tmp_path_factory.mktemp("tuning")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPFT_HOME", str(root / "home"))
        settings.cache_clear()
        more = {
            "objective.name": "fixtures.tuned_losses:Strength",
            "tune.trials": 3,
            "train.epochs": 2,
            "train.checkpoint_seconds": 0,
        }
        flat = small(write_images(root / "source"), tiny, **more)
        spec = RunSpec.from_flat(flat)
        version.run(spec, ingest.run(spec).staging)
        yield flat, root / "home"
    settings.cache_clear()


@pytest.fixture
def flat(base, home, monkeypatch) -> dict:
    """The form, in the home of this file, with studies of the test's own."""
    flat, installed = base
    monkeypatch.setenv("CLIPFT_HOME", str(installed))
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    elsewhere(monkeypatch, home.parent / "studies.db")
    return dict(flat)


def elsewhere(monkeypatch, path: Path) -> None:
    """Studies in another database; locks and work of the last one are gone."""
    monkeypatch.setenv("CLIPFT_TUNING_URL", f"sqlite:///{path}")
    settings.cache_clear()
    shutil.rmtree(settings().root / "work", ignore_errors=True)


class CutError(BaseException):
    """A process that ends here."""


def cut(*_args, **_options) -> None:
    raise CutError


def begun(flat: dict, **more) -> tuple[RunSpec, PlanResult, StudyResult]:
    spec = RunSpec.from_flat(flat | more)
    planned = plan.run(spec)
    return spec, planned, tune.begin(spec, planned)


def test_values_that_are_surely_better_are_found_taken_and_reproducible(flat):
    spec = RunSpec.from_flat(flat | {"tune.trials": 5})
    planned = plan.run(spec)
    tuned = tune.run(spec, planned)
    assert tuned.values["objective.options.strength"] == 1.0 and "validation" not in tuned.reason
    assert tuned.measured["gain"] >= 0.25 and tuned.measured["gain_low"] > 0
    assert tuned.tried[0].values["objective.options.strength"] == 0.0
    assert {t.state for t in tuned.tried} <= {"complete", "pruned"}

    again = tune.run(spec, planned)  # everything is there
    assert again.tried == tuned.tried and again.values == tuned.values and again.run_id == tuned.run_id

    client = tracking.client()
    children = client.search_runs([client.get_run(tuned.run_id).info.experiment_id], f"tags.`clipft.study` = '{tuned.study}'")
    trials = [r for r in children if r.data.tags.get("mlflow.parentRunId") == tuned.run_id]
    assert len(trials) == len(tuned.tried) == len(children) - 1
    assert all(len(client.get_metric_history(r.info.run_id, "validation_score")) in (1, 2) for r in trials)
    assert {"history.png", "decision.json"} <= {a.path for a in client.list_artifacts(tuned.run_id)}

    trained = finetune.run(spec, planned, tuned)
    card = json.loads((tracking.fetch_candidate(trained.run_id) / "card.json").read_text())
    written = json.loads(mlflow.artifacts.load_text(f"runs:/{trained.run_id}/spec.json"))
    assert card["spec"] == written and written["objective"]["options"] == {
        k.rpartition(".")[2]: v for k, v in tuned.values.items() if ".options." in k
    }
    alone = RunSpec.model_validate(written)  # without tuning, without its study
    repeated = finetune.run(alone, plan.run(alone))
    assert repeated.done_before and repeated.run_id == trained.run_id


def test_a_killed_trial_is_repeated_under_its_number_and_nothing_is_doubled(flat, monkeypatch, tmp_path):
    spec, planned, opened = begun(flat)
    inputs = {"planned": planned, "begun": opened, "number": 0}
    study = Study(opened.study)
    assert killed(flat, "tune.trial", inputs, "clipft_tasks.train.step:backward", 5)
    assert [(t.number, t.state) for t in study.trials()] == [(0, "running"), (1, "waiting"), (2, "waiting")]
    with monkeypatch.context() as patch, pytest.raises(CutError):
        patch.setattr(Study, "end", cut)  # trained, and not yet written down
        tune.trial(spec, planned, opened, 0)
    done = tune.trial(spec, planned, opened, 0).trial
    assert (done.number, done.state) == (0, "complete")
    second = tune.trial(spec, planned, opened, 1).trial
    tried = study.trials()
    assert [t.state for t in tried] == ["complete", "complete", "waiting"] and list(tried[0].epochs) == [1, 2]
    runs = tracking.client().search_runs(
        [tracking.get_or_create_experiment("clipft-general")], f"tags.`clipft.key` = '{opened.key}-0'"
    )
    assert len(runs) == 1

    elsewhere(monkeypatch, tmp_path / "undisturbed.db")
    tune.begin(spec, planned)
    for there in (done, second):
        here = tune.trial(spec, planned, opened, there.number).trial
        assert (here.values, here.score) == (there.values, there.score)


def test_cut_while_it_begins_a_study_has_no_trial_too_many(flat, monkeypatch):
    real, calls = optuna.study.Study.enqueue_trial, []

    def cut_after_two(study, params):
        real(study, params)
        calls.append(params)
        if len(calls) == 2:
            raise CutError

    monkeypatch.setattr(optuna.study.Study, "enqueue_trial", cut_after_two)
    with pytest.raises(CutError):
        begun(flat)
    _, _, opened = begun(flat)
    assert [t.number for t in Study(opened.study).trials()] == [*opened.trials] == [0, 1, 2]
    assert calls == [calls[0], {}, {}] and calls[0]["objective.options.strength"] == 0.0


def test_an_interrupted_study_goes_on_where_it_was(flat, monkeypatch):
    spec = RunSpec.from_flat(flat)
    planned = plan.run(spec)
    trained: list[str] = []
    real = launch.train

    def stops(job, *args):
        trained.append(job.key.rpartition("-")[2])
        if trained == ["0", "1"]:
            raise TransientError("the machine goes to sleep")
        return real(job, *args)

    monkeypatch.setattr(launch, "train", stops)
    with pytest.raises(TransientError):
        tune.run(spec, planned)
    tuned = tune.run(spec, planned)
    assert trained == ["0", "1", "1", "2"]
    assert [t.number for t in tuned.tried] == [0, 1, 2] and tuned.stopped == "all 3 trials ended"


def test_other_code_or_space_is_another_study_and_says_why(flat, monkeypatch):
    _, _, first = begun(flat)
    assert "is new" in first.reason and "since" not in first.reason
    _, _, same = begun(flat, **{"tune.trials": 5, "tune.minutes": 3})  # the budget is no part of it
    assert same.study == first.study and "goes on" in same.reason
    _, _, wider = begun(flat, **{"tune.learning_rate": True})
    assert wider.study != first.study and "space changed (train.learning_rate)" in wider.reason
    monkeypatch.setattr("clipft_tasks.objectives.source_digests", lambda spec: {"fixtures.tuned_losses:Strength": "other"})
    _, _, other = begun(flat)
    assert other.study not in (first.study, wider.study)
    assert "code changed (fixtures.tuned_losses:Strength)" in other.reason


def test_values_that_give_no_number_fail_their_trial_alone(flat):
    spec = RunSpec.from_flat(flat | {"objective.name": "fixtures.tuned_losses:Broken", "tune.seed": 1, "tune.trials": 4})
    tuned = tune.run(spec, plan.run(spec))
    failed = [t for t in tuned.tried if t.state == "failed"]
    assert failed and all("nan" in t.reason and t.values["objective.options.strength"] == -1 for t in failed)
    assert tuned.tried[0].state == "complete" and tuned.values.get("objective.options.strength") != -1


def test_when_every_trial_fails_that_is_said(flat):
    spec = RunSpec.from_flat(flat | {"objective.name": "fixtures.tuned_losses:Nothing", "tune.trials": 2})
    with refuses("tune.all_failed", "2 trials", "nan"):
        tune.run(spec, plan.run(spec))


def test_a_budget_that_ends_leaves_the_rest_undone(flat):
    spec = RunSpec.from_flat(flat | {"tune.minutes": 1e-4})
    planned = plan.run(spec)
    tuned = tune.run(spec, planned)
    assert tuned.values == {} and "budget" in tuned.stopped and "budget" in tuned.reason
    assert [t.state for t in tuned.tried] == ["running"]
    more = tune.run(RunSpec.from_flat(flat | {"tune.minutes": 10, "tune.trials": 2}), planned)
    assert [t.state for t in more.tried] == ["complete", "complete"] and more.study == tuned.study


def test_a_space_of_one_point_needs_no_trial(flat):
    spec, planned, opened = begun(flat, **{"tune.objective": False})
    assert opened.trials == () and "one point" in opened.reason
    assert tune.decide(spec, planned, opened).values == {}
    assert not (settings().root / "studies.db").exists()


def test_the_test_split_is_never_looked_at(flat, monkeypatch, tmp_path):
    spec = RunSpec.from_flat(flat)
    planned = plan.run(spec)
    honest = tune.run(spec, planned)

    real = {"fetch": versioning.fetch, "read_manifest": versioning.read_manifest}

    def poison(frame):
        frame = frame.copy()
        is_test = frame["split"] == "test"
        assert is_test.any()
        frame.loc[is_test, ["label", "caption", "group"]] = "poison"
        frame.loc[is_test, "length"] = 1  # whoever opens such an image finds that it is none
        return frame

    def fetch(version):
        dataset = real["fetch"](version)
        return replace(dataset, frame=poison(dataset.frame))

    monkeypatch.setattr(versioning, "fetch", fetch)
    monkeypatch.setattr(versioning, "read_manifest", lambda version: poison(real["read_manifest"](version)))
    elsewhere(monkeypatch, tmp_path / "poisoned.db")
    shutil.rmtree(settings().root / "cache" / "images")
    poisoned = tune.run(spec, planned)
    looked_at, varies = {"values", "measured", "tried", "reason"}, {"tried": {"__all__": {"seconds"}}}
    seen = [run.model_dump(include=looked_at, exclude=varies) for run in (honest, poisoned)]
    assert seen[0] == seen[1] and seen[0]["tried"]


def test_a_run_deleted_in_mlflow_changes_nothing(flat):
    spec, planned, opened = begun(flat)
    for number in (0, 1):
        tune.trial(spec, planned, opened, number)
    client = tracking.client()
    experiment = tracking.get_or_create_experiment("clipft-general")
    child = tracking.find_run(f"{opened.key}-0", experiment)
    assert child is not None
    client.delete_run(child.info.run_id)
    client.delete_run(opened.run_id)
    tuned = tune.decide(spec, planned, opened)
    assert [t.state for t in tuned.tried] == ["complete", "complete"]
    assert tuned.run_id != opened.run_id
    assert client.get_run(tuned.run_id).data.tags["clipft.decision"] == tuned.reason

"""The stages evaluate and gate on a trained candidate: what they return, what they leave in the run, and the page."""

import json
import re

import mlflow
import pandas as pd
import pytest
from fixtures.errors import refuses

from clipft_tasks import tracking
from clipft_tasks.contracts.evaluation import EvaluationResult
from clipft_tasks.contracts.stages import EvaluateResult
from clipft_tasks.evaluate import artifacts, robustness
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import chain, evaluate, gate

OWN = "fixtures.own_metrics:TopTwo"


@pytest.fixture(scope="module")
def kept() -> dict:
    return {}


@pytest.fixture
def results(shared_home, small_spec, kept) -> dict:
    """Everything up to the evaluation, once for this file, with robustness and the linear probe."""
    if not kept:
        spec = RunSpec.from_flat(
            small_spec.flat() | {"evaluate.robustness": 1, "evaluate.linear_probe": True, "evaluate.metrics": [OWN]}
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(robustness, "ROWS", 8)
            for name in ("ingest", "validate", "version", "plan", "finetune", "blend", "evaluate"):
                kept[name] = chain.run_stage(name, spec, kept.__getitem__)
        kept["spec"] = spec
    return kept


def artifact(results: dict, name: str) -> str:
    tracking.client()
    return mlflow.artifacts.load_text(f"runs:/{results['finetune']['run_id']}/evaluation/{name}")


def evaluations(results: dict) -> list[EvaluationResult]:
    return EvaluateResult.model_validate(results["evaluate"]).evaluations


def test_the_result_holds_every_metric_and_is_plain_json(results):
    raw = results["evaluate"]["evaluations"][0]
    assert json.loads(json.dumps(raw, allow_nan=False)) == raw and len(json.dumps(raw)) < 20_000
    small, large = evaluations(results)
    for role in ("start", "candidate"):
        model = small.models[role]
        for metric in ("balanced_accuracy", "accuracy", "image_to_text_r1", "text_to_image_r1"):
            interval = model.intervals[metric]
            assert interval.low <= interval.value <= interval.high
            assert model.metrics[metric] == pytest.approx(interval.value)
        assert model.metrics["milliseconds_per_image"] > 0
        assert {"fitted_temperature", "linear_probe_accuracy", "macro_auroc"} <= model.metrics.keys()
    assert small.gains.keys() == {"start"} and small.gain.low <= small.gain.value <= small.gain.high and 0 < small.gain.p <= 1
    assert {c.metric for c in small.comparisons} == {
        "balanced_accuracy",
        "accuracy",
        "image_to_text_r1",
        "text_to_image_r1",
    }
    assert all(c.p_holm >= c.p for c in small.comparisons)
    # What costs more is done once, at the size that the model is for.
    assert small.size == 32 and small.candidate.general_score and small.candidate.robustness
    assert large.candidate.general_score is None and large.candidate.robustness is None
    assert "fitted_temperature" not in large.candidate.metrics


def test_the_general_score_is_of_both_models_and_the_start_model_did_not_move(results):
    small = evaluations(results)[0]
    assert small.models["start"].general_score.cosine_to_start == pytest.approx({"image": 1, "text": 1})
    known = small.candidate.general_score
    assert known.cosine_to_start["image"] < 0.999 and 0 <= known.value <= 1


def test_what_was_said_of_each_row_is_in_the_run(results):
    tracking.client()
    run_id = results["finetune"]["run_id"]
    path = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/evaluation/32-rows.parquet")
    rows = pd.read_parquet(path)
    first, second = evaluations(results)
    assert len(rows) == first.rows and rows["key"].is_unique
    right = (rows["candidate.predicted"] == rows["truth"]).mean()
    assert right == pytest.approx(first.candidate.intervals["accuracy"].value)
    errors = artifacts.load_errors(run_id, 32)
    assert sum(c.rows for c in errors.models["candidate"].classes) == first.rows
    assert client_metrics(run_id)["test.candidate.macro_f1"] == pytest.approx(second.candidate.metrics["macro_f1"])
    assert client_metrics(run_id)[f"test.candidate.{OWN}"] == pytest.approx(second.candidate.metrics[OWN])


def client_metrics(run_id: str) -> dict[str, float]:
    return tracking.client().get_run(run_id).data.metrics


def test_the_same_again_is_not_computed_again(results, capsys):
    spec, run_id = results["spec"], results["finetune"]["run_id"]
    again = evaluate.run(spec, run_id, 32)
    assert again == evaluations(results)[0] and "Evaluated before" in capsys.readouterr().out


def test_the_page_says_whether_to_approve_and_needs_nothing_else(results):
    spec, run_id = results["spec"], results["finetune"]["run_id"]
    verdict = gate.run(spec, run_id, evaluations(results))
    assert verdict.links["Evaluation"].endswith("artifacts/evaluation/report.html")
    page = artifact(results, "report.html")
    value = evaluations(results)[0].candidate.intervals["balanced_accuracy"].value
    assert "Passed the gate" in page and f"<b>{value:.3f}</b>" in page and "general/v1" in page
    assert "the right class among the best two" in page
    for heading in ("Rules", "At every size", "All metrics", "Is the difference real?", "Classes", "Who is taken for whom",
                    "Is it as sure as it is right?", "Corrupted images", "What it still knows of the world"):  # fmt: skip
        assert f"<h2>{heading}" in page, heading
    assert page.count("<svg") == 3 and "currentColor" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "<script" not in page and "@import" not in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()


def test_mlflow_shows_what_a_person_looks_for_in_a_run(results):
    client, run_id = tracking.client(), results["finetune"]["run_id"]
    gate.run(results["spec"], run_id, evaluations(results))
    run = client.get_run(run_id)
    inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert inputs.keys() == {"training", "validation", "testing"} and len({i.digest for i in inputs.values()}) == 3
    assert all(i.name == "general/v1" and json.loads(i.source)["tag"] == i.name for i in inputs.values())
    tags, metrics = run.data.tags, run.data.metrics
    assert tags["mlflow.user"] and tags["mlflow.source.name"] == "clipft" and "general/v1" in tags["mlflow.note.content"]
    assert client.get_experiment(run.info.experiment_id).tags["mlflow.note.content"]
    at_trained_size = next(e for e in evaluations(results) if e.size == results["spec"].resolution.train)
    assert metrics["score"] == pytest.approx(at_trained_size.candidate.intervals[at_trained_size.metric].value)
    assert "score_start" in metrics and not {"resumed_at", "overflows", "out_of_memory"} & metrics.keys()
    assert tags["clipft.overflows"] == "0"
    signature = mlflow.models.get_model_info(tags["clipft.model_uri"]).signature
    assert [column.name for column in signature.outputs] == ["image_embedding", "text_embedding", "similarity"]


def test_a_candidate_that_does_not_pass_has_its_page_too(results):
    spec = RunSpec.from_flat(results["spec"].flat() | {"gate.rules": ["gain(score) >= 0.99"]})
    with refuses("gate.not_passed", "report.html"):
        gate.run(spec, results["finetune"]["run_id"], evaluations(results))
    assert "Did not pass the gate" in artifact(results, "report.html")

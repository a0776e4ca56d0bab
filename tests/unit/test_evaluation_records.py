"""Evaluations as records: what JSON does to them, and what the release before wrote."""

import json
import math
from pathlib import Path

import pytest
from fixtures.errors import refuses

from clipft_tasks.contracts.evaluation import EvaluationResult, Interval
from clipft_tasks.contracts.gate import GateVerdict
from clipft_tasks.contracts.interpolation import BlendResult
from clipft_tasks.evaluate import gate
from clipft_tasks.spec.gate_rules import GateRule

# What the stage evaluate of the release before format numbers left in a run: 32 px, with everything that it could measure.
FORMAT_0 = Path(__file__).parents[1] / "fixtures" / "evaluation_format_0.json"


@pytest.fixture
def old() -> dict:
    return json.loads(FORMAT_0.read_text())


def test_an_evaluation_of_the_release_before_is_read(old):
    found = EvaluationResult.from_json(old)
    assert (found.size, found.rows, found.metric, found.opponent, found.key) == (
        32, 20, "balanced_accuracy", "", "a17f24d9d8cd0767"
    )  # fmt: skip
    assert found.roles == ["start", "candidate"] and found.gain.value == pytest.approx(0.4)
    for role, was in (("start", "before"), ("candidate", "after")):
        values, general = found.values(role), found.models[role].general_score
        assert values["balanced_accuracy"] == old[was]["balanced_accuracy"]["value"]
        assert values["milliseconds_per_image"] == old["figures"][was]["milliseconds_per_picture"]
        assert values["nearest_neighbors_accuracy"] == old["figures"][was]["nearest_neighbours_accuracy"]
        assert values["general_score"] == general.value == old["retention"][was]["retention"]["value"]
        assert general.license == "Twemoji graphics, CC-BY 4.0" and general.cosine_to_start.keys() == {"image", "text"}
        assert values["robustness"] == old["robustness"][was]["kept"]
    assert {(c.metric, c.against) for c in found.comparisons} == {(c["metric"], "start") for c in old["comparisons"]}


def test_a_champion_and_slices_of_the_release_before_are_read(old):
    interval = old["before"]["balanced_accuracy"]
    part = {"rows": 12, **{who: {"balanced_accuracy": interval} for who in ("before", "after", "champion")}}
    more = {"opponent": "3", "champion": old["before"], "gain_over_champion": old["gain_over_before"]}
    found = EvaluationResult.from_json(old | more | {"slices": {"mode=L": part | {"gain": old["gain_over_before"]}}})
    assert found.roles == ["start", "champion", "candidate"] and found.opponent_role == "champion"
    assert found.slices["mode=L"].models.keys() == {"start", "candidate", "champion"}
    rules = [GateRule.parse(text) for text in ("gain(score) on mode=L >= 0.4", "gain_lower_bound(score) > 0.3")]
    assert [(r.measured, r.passed) for r in gate.judge(rules, [found], 32)] == [
        (0.4, True),
        (pytest.approx(0.2608, 1e-3), False),
    ]


def test_what_is_read_is_written_in_todays_form(old):
    found = EvaluationResult.from_json(old)
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["format"] == EvaluationResult.FORMAT and EvaluationResult.from_json(written) == found


def test_what_cannot_be_computed_is_null_in_json():
    written = Interval(value=math.nan, low=0.1, high=math.nan).to_json()
    assert written == {"value": None, "low": 0.1, "high": None, "groups": 0}
    assert math.isnan(Interval.model_validate(written).value)


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"format": 99}, "record.newer_format", "format 99"),
        ({"after": None}, "record.invalid", "models.candidate.intervals"),
        ({"metric": "macro_f1", "slices": {"a": {"rows": 1, "after": {}, "gain": {}}}}, "record.invalid", "macro_f1"),
        ({"format": 1}, "record.invalid", "Field required"),
    ],
)
def test_what_is_no_evaluation_is_refused(old, change, code, named):
    with refuses(code, "evaluation/32.json", named):
        EvaluationResult.from_json(old | change, "evaluation/32.json")


def test_a_verdict_of_the_release_before_is_read():
    rule = {"rule": "gain(score) >= 0", "measured": 0.1, "where": "32 px", "sign": ">=", "limit": 0.0, "passed": True}
    kept = {"passed": True, "metric": "accuracy", "opponent": "", "rules": [rule], "table": "| rule |"}
    assert GateVerdict.from_json(kept).rules[0].measured == 0.1
    scores = {"32": {"before": {"value": 0.5, "low": 0.4, "high": 0.6}, "after": {"value": 0.7, "low": 0.6, "high": 0.8}}}
    read = GateVerdict.from_json(kept | {"scores": scores, "links": {"Evaluation": "http://x"}, "seconds": 2.5})
    assert read.scores[32].keys() == {"start", "candidate"} and read.scores[32]["candidate"].value == 0.7


def test_a_blending_of_the_release_before_is_read():
    point = {"alpha": 0.5, "score": 0.8, "retention": 0.3, "gain": 0.1, "forgotten": 0.02}
    old = {"key": "k", "run_id": "r", "alpha": 0.5, "reason": "why", "metric": "accuracy", "curve": [point], "links": {}}
    (read,) = BlendResult.from_json(old).curve
    assert (read.general_score, read.forgotten) == (0.3, 0.02)

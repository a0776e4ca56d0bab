"""Gate rules: what a person may write, what is refused and how, and what a rule says of an evaluation."""

import math

import numpy as np
import pytest
from fixtures.errors import refuses
from hypothesis import given
from hypothesis import strategies as st

from clipft_tasks.contracts.evaluation import (
    AnswerShares,
    Comparison,
    DoubtedLabels,
    EvaluationResult,
    GeneralScore,
    Interval,
    ModelScores,
    PairedGain,
    Robustness,
    SliceScores,
)
from clipft_tasks.contracts.gate import RuleResult
from clipft_tasks.core.errors import ClipftError
from clipft_tasks.evaluate import gate, predictions
from clipft_tasks.evaluate.advice import DOUBTED, advice
from clipft_tasks.evaluate.predictions import Predictions
from clipft_tasks.spec import GateSpec, RunSpec
from clipft_tasks.spec.gate_rules import GAINS, SIGNS, GateRule
from clipft_tasks.spec.metric_catalog import METRICS


def metric(value: float, spread: float = 0.05) -> Interval:
    return Interval(value=value, low=value - spread, high=value + spread)


def gain(value: float, spread: float = 0.02) -> PairedGain:
    return PairedGain(**dict(metric(value, spread)), p=0.5)


def scores(value: float, **more: object) -> ModelScores:
    return ModelScores(intervals={"balanced_accuracy": metric(value), "accuracy": metric(value + 0.1)}, **more)


def evaluation(size: int, start: float, candidate: float, champion: float | None = None, **more: object) -> EvaluationResult:
    """What the stage evaluate says at one size: balanced accuracy as given, accuracy a tenth better."""
    values = {"start": start, "candidate": candidate} | ({"champion": champion} if champion is not None else {})
    fields = {
        "size": size,
        "rows": 100,
        "metric": "balanced_accuracy",
        "opponent": "3" if champion is not None else "",
        "models": {role: scores(value) for role, value in values.items()},
        "gains": {role: gain(candidate - value) for role, value in values.items() if role != "candidate"},
    }
    return EvaluationResult(**fields | more)


def one(text: str, *results: EvaluationResult, size: int = 128) -> RuleResult:
    return gate.judge([GateRule.parse(text)], results, size)[0]


# How a rule is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("gain(score) >= 0", ("score", "gain", None, "", ">=", 0.0)),
        ("  gain_lower_bound( score )>0.01 ", ("score", "gain_lower_bound", None, "", ">", 0.01)),
        ("gain(accuracy) at every size >= -.05", ("accuracy", "gain", "every size", "", ">=", -0.05)),
        ("accuracy at 96 px >= 5e-1", ("accuracy", "value", 96, "", ">=", 0.5)),
        ("gain(score) on every slice >= -0.1", ("score", "gain", None, "every slice", ">=", -0.1)),
        ("gain(score) on cracked cells at 128 > 0", ("score", "gain", 128, "cracked cells", ">", 0.0)),
        ("accuracy < 1", ("accuracy", "value", None, "", "<", 1.0)),
        ("gain(my_metrics.shape:TopTwo) on new >= 0", ("my_metrics.shape:TopTwo", "gain", None, "new", ">=", 0.0)),
    ],
)
def test_a_rule_is_read(text, parsed):
    r = GateRule.parse(text)
    assert (r.metric, r.statistic, r.size, r.slice, r.sign, r.limit) == parsed
    assert GateRule.parse(str(r)) == r


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("retention >= 0.7", "general_score >= 0.7"),
        ("sure_gain(retention) at 96 > 0", "gain_lower_bound(general_score) at 96 > 0"),
        ("gain(score) on retention >= 0", "gain(score) on retention >= 0"),
    ],
)
def test_words_of_earlier_releases_are_read_as_todays(old, now):
    assert GateRule.parse(old) == GateRule.parse(now) and str(GateRule.parse(old)) == now


SLICES = st.lists(st.text("abyz09_=", min_size=1, max_size=8), min_size=1, max_size=3).map(" ".join)


@given(
    metric=st.sampled_from(["score", *METRICS]),
    statistic=st.sampled_from(["value", *GAINS]),
    size=st.none() | st.just("every size") | st.integers(1, 4096),
    part=st.just("") | st.just("every slice") | SLICES,
    sign=st.sampled_from([*SIGNS]),
    limit=st.floats(allow_nan=False, allow_infinity=False),
    size_first=st.booleans(),
)
def test_a_rule_is_what_was_written(metric, statistic, size, part, sign, limit, size_first):
    where = [f" at {size}" if size else "", f" on {part}" if part else ""]
    text = metric if statistic == "value" else f"{statistic}({metric})"
    text += "".join(where if size_first else where[::-1])
    found = GateRule.parse(f"  {text}  {sign} {limit!r} ")
    assert (found.metric, found.statistic, found.size, found.slice, found.sign, found.limit) == (
        metric,
        statistic,
        size,
        part,
        sign,
        limit,
    )
    assert GateRule.parse(found.text) == found


@given(st.text() | st.text("gain()score atonevryslicz0123.e+-<>= ", max_size=40))
def test_any_text_is_a_rule_or_a_refusal(text):
    try:
        assert RunSpec.from_flat({"gate.rules": [text]}).gate.rules == [GateRule.parse(text)]
    except ClipftError as refused:
        assert "gate.rules" in str(refused)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "like `gain(score) >= 0`"),
        ("gain(score)", "like `gain(score) >= 0`"),
        (">= 0", "like `gain(score) >= 0`"),
        ("0 <= gain(score) <= 1", "like `gain(score) >= 0`"),
        ("gain(score) >= good", "`good` is not a number"),
        ("gain(score) >= nan", "`nan` is not a finite number"),
        ("gain(score) = 0", "like `gain(score) >= 0`"),
        ("gain >= 0", "`gain` of what? Write gain(score)"),
        ("loss(score) >= 0", "only gain(…) and gain_lower_bound(…)"),
        ("gain(score >= 0", "`gain(score` is not a metric"),
        ("gain(balanced_acuracy) >= 0", "did you mean `balanced_accuracy`?"),
        ("beauty >= 0.5", "there is no metric `beauty`; There are score, balanced_accuracy"),
        ("accuracy at any size >= 0", "`at any size`: write an image size"),
        ("accuracy at 96 at 128 >= 0", "once each"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_would_be(text, said):
    with pytest.raises(ValueError) as caught:
        GateRule.parse(text)
    assert said in str(caught.value) and f"`{text}`" in str(caught.value)


def test_the_spec_refuses_a_wrong_rule_by_name():
    with refuses("spec.invalid", "gate.rules", "`gain(beauty) >= 0`", "`beauty`"):
        RunSpec.from_flat({"gate.rules": ["gain(score) >= 0", "gain(beauty) >= 0"]})


def test_the_spec_refuses_a_rule_about_a_size_that_is_not_evaluated():
    with refuses("spec.invalid", "gate.rules", "resolution.evaluate", "512 px", "96, 128, 160"):
        RunSpec.from_flat({"resolution.evaluate": [96, 128, 160], "gate.rules": ["accuracy at 512 >= 0.5"]})


def test_a_command_line_and_a_file_write_the_same_rules(tmp_path):
    from clipft_tasks.cli.options import read_fields

    file = tmp_path / "spec.yaml"
    file.write_text("gate:\n  rules:\n    - gain(score) >= 0\n    - accuracy at every size >= 0.5\n")
    by_hand = RunSpec.from_flat(read_fields(None, {"gate__rules": "gain(score) >= 0; accuracy at every size >= 0.5"}))
    assert by_hand.gate == RunSpec.from_flat(read_fields(file, {})).gate
    assert [str(rule) for rule in by_hand.gate.rules] == ["gain(score) >= 0", "accuracy at every size >= 0.5"]


# What a rule says -----------------------------------------------------------------------------------------------------


def test_the_opponent_is_the_champion_and_without_one_the_start_model():
    text = "gain(score) >= 0"
    assert one(text, evaluation(128, start=0.5, candidate=0.7)).measured == pytest.approx(0.2)
    verdict = one(text, evaluation(128, start=0.5, candidate=0.7, champion=0.75))
    assert verdict.measured == pytest.approx(-0.05) and not verdict.passed


@pytest.mark.parametrize(
    ("text", "measured", "passed"),
    [
        ("gain(score) >= 0.1", 0.1, True),
        ("gain(score) > 0.1", 0.1, False),
        ("gain_lower_bound(score) >= 0.05", 0.08, True),
        ("gain_lower_bound(score) >= 0.09", 0.08, False),
        ("gain(accuracy) >= 0.09", 0.1, True),
        ("score >= 0.6", 0.6, True),
        ("balanced_accuracy < 0.6", 0.6, False),
        ("accuracy <= 0.71", 0.7, True),
    ],
)
def test_each_kind_of_metric(text, measured, passed):
    verdict = one(text, evaluation(128, start=0.5, candidate=0.6, gains={"start": gain(0.1)}))
    assert verdict.measured == pytest.approx(measured)
    assert (verdict.passed, verdict.where) == (passed, "128 px")


def test_without_a_size_the_one_nearest_to_the_training_size_counts():
    results = [evaluation(96, 0.5, 0.4), evaluation(160, 0.5, 0.7)]
    assert one("gain(score) >= 0", *results, size=144).where == "160 px"
    assert one("gain(score) >= 0", *results, size=100).where == "96 px"
    assert one("gain(score) at 96 >= 0", *results, size=144).measured == pytest.approx(-0.1)


def test_at_every_size_the_worst_counts_whichever_way_is_worse():
    results = [evaluation(96, 0.5, 0.4), evaluation(128, 0.5, 0.8)]
    floor = one("score at every size >= 0.5", *results)
    assert (floor.measured, floor.where, floor.passed) == (pytest.approx(0.4), "96 px", False)
    ceiling = one("score at every size <= 0.5", *results)
    assert (ceiling.measured, ceiling.where, ceiling.passed) == (pytest.approx(0.8), "128 px", False)


def measured(**values: float) -> EvaluationResult:
    """An evaluation with metrics that have no interval, general score and robustness."""

    def model(value: float, metrics: dict[str, float], general: float, kept: float) -> ModelScores:
        known = GeneralScore(**dict(metric(general)), rows=499, set="everyday", license="")
        robust = Robustness(rows=9, clean=1.0, corruptions={}, mean_corruption_score=kept, kept=kept)
        return scores(value, metrics=metrics, general_score=known, robustness=robust)

    models = {"start": model(0.5, dict.fromkeys(values, 0.1), 0.8, 0.8), "candidate": model(0.6, values, 0.74, 0.9)}
    return evaluation(128, 0.5, 0.6, models=models)


@pytest.mark.parametrize(
    ("text", "value", "passed"),
    [
        ("calibration_error <= 0.2", 0.15, True),
        ("gain(calibration_error) <= 0", 0.05, False),
        ("milliseconds_per_image at 128 <= 50", 62.0, False),
        ("forgetting <= 0.05", 0.06, False),
        ("general_score >= 0.7", 0.74, True),
        ("robustness > 0.85", 0.9, True),
    ],
)
def test_calibration_latency_forgetting_and_robustness(text, value, passed):
    verdict = one(text, measured(calibration_error=0.15, milliseconds_per_image=62.0))
    assert verdict.measured == pytest.approx(value) and verdict.passed == passed


def test_a_paired_test_of_another_metric_is_taken_where_there_is_one():
    made = Comparison(metric="accuracy", against="start", value=0.1, low=0.03, high=0.2, p=0.1, p_holm=0.2)
    result = evaluation(128, 0.5, 0.6, comparisons=[made.model_copy(update={"against": "champion", "low": 0.5}), made])
    assert one("gain_lower_bound(accuracy) > 0", result).measured == 0.03
    with refuses("gate.no_paired_test", "`macro_f1`", "balanced_accuracy, accuracy"):
        one("gain_lower_bound(macro_f1) > 0", result)


def test_a_metric_that_these_rows_cannot_give_is_no_pass_and_says_why():
    one_class = {"macro_auroc": "the rows are all of one class"}
    result = evaluation(128, 0.5, 0.6, models={"candidate": scores(0.6, absent=one_class), "start": scores(0.5)})
    verdict = one("macro_auroc >= 0", result)
    assert not verdict.passed and verdict.where == "128 px: the rows are all of one class"
    unlabeled = scores(0.6, absent={"classification": "no row has a label"})
    nowhere = evaluation(128, 0.5, 0.6, models={"candidate": unlabeled, "start": scores(0.5)})
    assert one("macro_f1 >= 0", nowhere).where == "128 px: no row has a label"
    verdict = one("forgetting <= 0.05", result)
    assert not verdict.passed and "general set is not installed" in verdict.where


def slices(**gains: float) -> dict[str, SliceScores]:
    return {
        name: SliceScores(rows=9, models={"candidate": metric(0.5 + g), "start": metric(0.5)}, gain=gain(g, 0.01))
        for name, g in gains.items()
    }


def test_a_slice_by_name_and_the_worst_of_all():
    result = evaluation(128, 0.5, 0.6, slices=slices(mono=0.2, poly=-0.07))
    assert one("gain(score) on mono >= 0", result).passed
    verdict = one("gain(score) on every slice >= -0.05", result)
    assert (verdict.measured, verdict.where) == (pytest.approx(-0.07), "128 px, poly (9 rows)") and not verdict.passed
    assert one("gain_lower_bound(score) on mono >= 0", result).measured == pytest.approx(0.19)
    assert one("score on poly >= 0.4", result).passed


def test_a_slice_that_is_not_there_is_an_error_except_growth_by_captures():
    result = evaluation(128, 0.5, 0.6, slices=slices(mono=0.2))
    with refuses("gate.unknown_slice", "`gain(score) on polly >= 0`", "`polly`", "mono"):
        one("gain(score) on polly >= 0", result)
    verdict = one("gain(score) on old >= -0.03", result)
    assert verdict.passed and verdict.measured is None and "does not apply" in gate.rules_table([verdict])
    assert one("gain(score) on every slice >= 0", evaluation(128, 0.5, 0.6, slices={})).passed


def test_a_metric_that_was_not_evaluated_is_answered_with_those_that_were():
    with refuses("gate.not_evaluated", "`image_to_text_r1`", "128 px", "balanced_accuracy, accuracy"):
        one("image_to_text_r1 >= 0", evaluation(128, 0.5, 0.6))
    with refuses("gate.unknown_size", "64 px", "128 px"):
        one("score at 64 >= 0", evaluation(128, 0.5, 0.6))
    with refuses("gate.no_paired_test", "`accuracy`", "balanced_accuracy"):
        one("gain_lower_bound(accuracy) >= 0", evaluation(128, 0.5, 0.6))


@pytest.mark.parametrize(
    "text", ["gain(score) >= -1", "gain(score) <= 1", "score at every size >= -1", "score at every size < 9"]
)
def test_what_cannot_be_computed_is_no_pass(text):
    broken = evaluation(96, 0.5, math.nan)
    verdict = one(text, evaluation(128, 0.5, 0.6), broken, size=96)
    assert not verdict.passed and verdict.measured is None and "cannot be computed" in verdict.where


def test_the_default_rules_are_what_the_gate_always_asked():
    default = GateSpec().rules
    good = [evaluation(96, 0.5, 0.46, slices={}), evaluation(128, 0.5, 0.5, slices=slices(old=-0.03, new=0.0))]
    assert all(v.passed for v in gate.judge(default, good, 128))
    worse = [evaluation(96, 0.5, 0.44), evaluation(128, 0.5, 0.49, slices=slices(old=-0.04, new=-0.01))]
    assert [v.passed for v in gate.judge(default, worse, 128)] == [False] * 4


def test_the_table_says_rule_measured_limit_and_verdict():
    verdicts = gate.judge(GateSpec().rules[:2], [evaluation(128, 0.5, 0.3)], 128)
    assert gate.rules_table(verdicts).splitlines()[2:] == [
        "| gain(score) >= 0 | -0.200 at 128 px | >= 0 | **NO** |",
        "| gain(score) at every size >= -0.05 | -0.200 at 128 px | >= -0.05 | **NO** |",
    ]


def test_a_chosen_metric_that_cannot_be_computed_fails_by_name_and_the_domains_usual_one_gives_way(capsys):
    from clipft_tasks.stages.gate import deciding_metric

    captions_only = ["image_to_text_r1", "text_to_image_r1"]
    assert deciding_metric(RunSpec.from_flat({"domain": "industrial"}), captions_only, "industrial/v1") == captions_only[0]
    assert "the gate looks at image_to_text_r1" in "".join(capsys.readouterr())
    chosen = RunSpec.from_flat({"domain": "industrial", "gate.metric": "accuracy"})
    assert deciding_metric(chosen, ["accuracy"], "industrial/v1") == "accuracy"
    with pytest.raises(ClipftError, match=r"accuracy.*no labels.*They allow image_to_text_r1") as caught:
        deciding_metric(chosen, captions_only, "industrial/v1")
    assert caught.value.code == "gate.metric_not_computable"


# What the numbers say -------------------------------------------------------------------------------------------------


def said(result: EvaluationResult, rule: str = "gain(score) >= 0", **flat: object) -> str:
    spec = RunSpec.from_flat({"domain": "general", "train.epochs": 1, **flat})
    return " ".join(advice(result, gate.judge([GateRule.parse(rule)], [result], result.size), spec))


def predictions_of(truth: np.ndarray, scores: np.ndarray, scale: float) -> Predictions:
    rows = np.arange(len(truth))
    ordered = np.sort(scores, axis=1)
    zero, one = np.zeros(len(truth)), np.ones(len(truth))
    return Predictions(
        rows, rows, truth, scores.argmax(1), ordered[:, -1] - ordered[:, -2], scores, zero, zero, one, scores, scale, 0.0, {}
    )


def naming(share: float, auroc: float, start_auroc: float = 0.575) -> EvaluationResult:
    """A candidate that calls `share` of the images a cat, a third of which are."""
    answers = AnswerShares(commonest="cat", share=share, expected=1 / 3, chance=1 / 3)
    models = {
        "start": scores(0.4, metrics={"macro_auroc": start_auroc}),
        "candidate": scores(1 / 3, metrics={"macro_auroc": auroc}, answers=answers),
    }
    return evaluation(128, 0.4, 1 / 3, models=models)


def test_a_candidate_that_names_one_class_for_all_but_ranks_well_is_told_to_train_longer():
    found = said(naming(1.0, 0.95))
    assert (
        "calls 100% of the images 'cat' (33% are), though it ranks them well (macro AUROC 0.95, the start model's was 0.57"
        in found
    )
    assert "Train longer (`train.epochs` is 1)" in found
    assert "no better than chance" in said(naming(0.97, 0.5)) and "a little better than chance" in said(naming(1.0, 0.6))
    assert "calls" not in said(naming(0.5, 0.95)) and "calls" in said(naming(1.0, 0.95), "gain(score) >= -1")


def test_labels_that_look_wrong_are_said_where_many_errors_may_be_theirs():
    def doubted(errors: int, rows: int) -> EvaluationResult:
        return evaluation(128, 0.5, 0.4).model_copy(update={"labels": DoubtedLabels(errors=errors, doubted=rows)})

    found = said(doubted(20, 9), dataset="general/v2")
    assert "of 20 test rows that the candidate gets wrong, 9 look as if their label were" in found
    assert "`clipft review general/v2`" in found
    assert said(doubted(20, 7)) == said(doubted(5, 4)) == said(doubted(20, 9), "gain(score) >= -1") == ""


@pytest.mark.parametrize("classes", [2, 5])
def test_errors_of_a_weak_model_are_its_own_and_wrong_labels_are_seen_through(classes):
    """Shares of errors that both models lay on the label, over 20 test splits of 250 rows each."""
    rng, rows = np.random.default_rng(0), 250

    def share(strength: float, wrong: float) -> float:
        errors = doubted = 0
        for _ in range(20):
            truth = rng.integers(0, classes, rows)
            label = np.where(rng.random(rows) < wrong, (truth + 1) % classes, truth)
            image = 0.8 * rng.normal(size=(rows, classes))  # how hard an image is, whichever model looks
            models = []
            for s in (strength, 0.6 * strength):
                scores = s * np.eye(classes)[truth] + image + 0.6 * rng.normal(size=image.shape)
                models.append(predictions_of(label, scores, scale=s))
            found = predictions.doubted_labels(*models)
            errors, doubted = errors + found.errors, doubted + found.doubted
        return doubted / errors

    weak = [share(strength, 0.0) for strength in (1.0, 1.5, 2.0)]
    assert max(weak) < DOUBTED, weak
    assert min(share(strength, wrong) for strength, wrong in ((3.0, 0.1), (4.0, 0.05))) > DOUBTED


def test_a_gain_of_too_few_groups_is_said_to_be_too_few_to_tell():
    few, many = ({"start": PairedGain(value=-0.02, low=-0.3, high=0.26, groups=n, p=0.8)} for n in (5, 60))
    found = said(evaluation(128, 0.5, 0.48, gains=few))
    assert "-0.020 [-0.300, +0.260] of 5 groups, cannot be told from none" in found and "too few to tell" in found
    assert "of 60 groups." in said(evaluation(128, 0.5, 0.48, gains=many))
    assert said(evaluation(128, 0.5, 0.48, gains=few), "gain(score) >= -1") == ""  # of a gate that passes nothing is said
    assert said(evaluation(128, 0.5, 0.4)) == ""  # beyond chance, or by a release that did not count groups


def test_an_opponent_without_fault_and_too_much_forgetting_are_said():
    assert "leave hardly anything to gain" in said(evaluation(128, 0.995, 0.97))
    general = {"rows": 9, "set": "everyday", "license": ""}
    models = {
        role: scores(0.5, general_score=GeneralScore(value=value, low=0, high=1, **general))
        for role, value in (("start", 0.3), ("candidate", 0.1))
    }
    assert "forgot too much" in said(evaluation(128, 0.5, 0.5, models=models), "forgetting <= 0.05")


def test_the_tables_say_how_many_groups_stand_behind_an_interval():
    result = evaluation(128, 0.4, 0.6, gains={"start": PairedGain(value=0.2, low=0.1, high=0.3, groups=1234, p=0.1)})
    assert "+0.200 [+0.100, +0.300] of 1,234 groups |" in gate.scores_table([result])
    assert "| 0.400 [0.350, 0.450] |" in gate.scores_table([result])  # a release before did not say

"""What is packed of a model's certainty: quantiles that hold for new groups, prediction sets, temperature, the limit of novelty."""

import numpy as np
import pytest
from fixtures.references import SEEN, compared, held_out, looked, measured

from clipft_tasks.contracts.calibration import Calibration
from clipft_tasks.drift import signals
from clipft_tasks.evaluate import conformal, metrics
from clipft_tasks.evaluate.calibration import calibrate
from clipft_tasks.model.group_quantile import can_cover, effective_groups, group_quantile, most_coverage
from clipft_tasks.model.held_out import HeldOut

# Quantiles of groups --------------------------------------------------------------------------------------------------


def test_with_a_group_for_each_row_it_is_the_usual_quantile_of_split_conformal_prediction():
    for rows in (9, 19, 99, 200):
        values = np.random.default_rng(rows).permutation(rows).astype(float)
        for coverage in (0.5, 0.8, 0.9):
            rank = int(np.ceil((rows + 1) * coverage - 1e-9))
            assert group_quantile(values, np.arange(rows), coverage) == pytest.approx(rank - 1, abs=1)


@pytest.mark.parametrize("groups", [list(range(20)), [i // 2 for i in range(40)]])
def test_a_value_that_all_share_is_every_quantile(groups):
    assert group_quantile([0.25] * len(groups), groups, 0.9) == 0.25


@pytest.mark.parametrize(
    ("sizes", "most"), [([60, 60, 60], 0.75), ([60] * 9, 0.9), ([1] * 99, 0.99), ([1000, 1, 1, 1, 1], 0.5), ([7], 0.5), ([], 0)]
)
def test_groups_vouch_for_what_their_number_allows_and_a_large_one_among_small_counts_for_little_more_than_one(sizes, most):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    assert most_coverage(groups) == pytest.approx(most, abs=0.01)
    assert not can_cover(groups, most + 0.02) and can_cover(groups, most - 0.02)


def test_of_one_group_nothing_is_large_enough_for_the_next():
    assert group_quantile([0.1, 0.2, 0.3], [0, 0, 0], 0.9) is None
    assert group_quantile([], [], 0.9) is None
    assert group_quantile(np.arange(501.0), [0] * 500 + [1], 0.9) is None


def drawn(rng: np.random.Generator, groups: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of groups that differ by as much as the rows of one do."""
    shift = rng.normal(size=(groups, 1))
    return (shift + rng.normal(size=(groups, rows))).ravel(), np.repeat(np.arange(groups), rows)


def test_the_quantile_covers_rows_of_new_groups_at_the_rate_asked_for():
    rng, ours, of_rows = np.random.default_rng(0), [], []
    for _ in range(150):
        values, groups = drawn(rng, 12, 20)
        new, _ = drawn(rng, 20, 20)
        ours.append((new <= group_quantile(values, groups, 0.9)).mean())
        of_rows.append((new <= np.quantile(values, 0.9)).mean())
    assert 0.88 <= np.mean(ours) <= 0.92 and np.mean(of_rows) < np.mean(ours)


# Prediction sets ------------------------------------------------------------------------------------------------------


def test_a_set_is_never_empty_and_a_model_of_one_class_has_that_one():
    probabilities = np.array([[0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.06, 0.04]])
    assert conformal.sets(probabilities, limit=0.0).tolist() == [
        [True, False, False],
        [True, False, False],
        [True, False, False],
    ]
    assert conformal.sets(probabilities, limit=0.7).sum(axis=1).tolist() == [2, 3, 1]
    assert conformal.sets(np.ones((2, 1)), limit=0.0).all()


@pytest.mark.parametrize(("groups", "coverage"), [(100, 0.9), (9, 0.9), (8, 0.85), (3, 0.75), (2, 0.65), (1, 0.5), (0, None)])
def test_the_usual_coverage_is_what_the_groups_allow(groups, coverage):
    assert conformal.default_coverage(np.arange(groups)) == coverage


# Temperature ----------------------------------------------------------------------------------------------------------


def rows_at(scale: float, rows: int, seed: int = 0, groups: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, the classes that are drawn from their softmax at a scale, and groups."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, 4)) * 0.1
    chances = np.exp(metrics.log_softmax(scale * scores))
    truth = (rng.random((rows, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    return scores, truth, np.arange(rows) % (groups or rows)


def test_the_temperature_is_the_one_that_made_the_labels_where_the_groups_agree():
    scores, truth, groups = rows_at(25, 4000)
    assert metrics.calibrated_scale(truth, scores, groups, own=10.0) == pytest.approx(25, rel=0.1)


def test_few_groups_that_disagree_leave_the_models_own_temperature():
    modules = [rows_at(scale, 60, seed) for seed, scale in enumerate((60, 3, 60, 3))]
    scores, truth = (np.concatenate(parts) for parts in list(zip(*modules, strict=True))[:2])
    found = metrics.calibrated_scale(truth, scores, np.repeat(np.arange(4), 60), own=12.0)
    assert found == pytest.approx(12.0, rel=0.35)
    for few in (np.zeros(240), np.arange(240) // 80):  # one and three groups say nothing
        assert metrics.calibrated_scale(truth, scores, few, own=12.0) == 12.0
        assert not metrics.can_calibrate(few)


def test_rows_that_are_all_right_do_not_make_a_model_certain():
    truth = np.arange(16) % 2
    scores = np.where(np.eye(2)[truth] == 1, 0.4, 0.1)
    found = metrics.fitted_scale(truth, scores)
    confidence = np.exp(metrics.log_softmax(found * scores)).max()
    assert 0.9 < confidence < 0.99


# The record -----------------------------------------------------------------------------------------------------------


def a_held_out(rows: int = 60, classes: int = 4, labeled: bool = True) -> HeldOut:
    scores, truth, groups = rows_at(25, rows, groups=rows // 3)
    return HeldOut(np.eye(rows), scores[:, :classes], truth if labeled else np.full(rows, -1), groups.astype(str))


def test_a_calibration_is_written_and_read_and_says_what_it_was_measured_with():
    found = calibrate(a_held_out(), ["a", "b", "c", "d"], ["a photo of {}."], own_scale=14.0)
    assert found is not None and Calibration.from_json(found.to_json()) == found
    assert (found.classes, found.prompts, found.coverage) == (["a", "b", "c", "d"], ["a photo of {}."], 0.9)
    assert len(found.scores) == len(found.groups) == 60 and effective_groups(found.groups) == 20
    assert 1 / 50 < found.temperature < 1 / 10


@pytest.mark.parametrize("rows", [a_held_out(labeled=False), a_held_out(0), a_held_out(classes=0, labeled=False)])
def test_nothing_is_claimed_of_rows_without_labels_or_classes(rows):
    assert calibrate(rows, ["a"], ["{}"], own_scale=14.0) is None


# None of these --------------------------------------------------------------------------------------------------------


def test_the_limit_of_novelty_is_what_held_out_groups_seldom_pass():
    reference = measured(looked(SEEN, 0))
    limit = reference.facts.novelty_limit
    assert limit is not None and limit.false_alarms == 0.05 and limit.groups == limit.rows == SEEN
    assert (reference.novelty(looked(400, 5).image) > 1).mean() <= 0.1
    assert (reference.novelty(looked(400, 5, strange=3.0).image) > 1).mean() > 0.95


def test_too_few_groups_give_a_limit_but_no_rate_of_false_alarms():
    rows = looked(90, 0)
    few = held_out(rows, np.full(90, -1), [f"module {i // 30}" for i in range(90)])
    limit = measured(rows, held_out=few, groups=list(few.groups)).facts.novelty_limit
    assert limit is not None and limit.false_alarms is None and limit.most_of_group < 0.2 and limit.groups == 3
    assert measured(rows, held_out=held_out(rows.take(np.arange(0)), np.zeros(0, int))).facts.novelty_limit is None


def test_traffic_of_another_kind_is_a_drift_signal_and_that_of_the_usual_kind_is_none():
    reference, signal = measured(looked(SEEN, 0)), signals.signals()["none_of_these"]
    usual, strange = (compared(reference, looked(64, 7, strange=away)) for away in (0.0, 3.0))
    limit = signal.limit(reference)
    assert limit == 0.1
    assert signals.ratio(signal.measure(usual), limit) < 1 < signals.ratio(signal.measure(strange), limit)
    assert signal.values(strange, signal.measure(strange))["none_of_these"] > 0.9


def test_a_reference_of_before_has_no_such_signal():
    reference = measured(looked(SEEN, 0))
    before = type(reference)(reference.rows, reference.text, reference.facts.model_copy(update={"novelty_limit": None}))
    assert signals.signals()["none_of_these"].limit(before) is None
    assert before.novelty(looked(20, 5, strange=3.0).image).min() > 0

"""Figures: the same numbers as others compute, ties and broken models never flatter, intervals that mean what they say."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from clipft_tasks.evaluate.metrics import accuracy, balanced_accuracy, bootstrap, recall_at


@pytest.mark.parametrize("seed", range(10))
def test_balanced_accuracy_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, 200, p=[0.7, 0.2, 0.08, 0.02])
    predicted = np.where(rng.random(200) < 0.6, truth, rng.integers(0, 4, 200))
    assert balanced_accuracy(truth, predicted) == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert accuracy(truth, predicted) == pytest.approx((truth == predicted).mean())


def test_always_saying_the_common_class_is_worth_half_in_balanced_accuracy():
    truth = np.array([0] * 95 + [1] * 5)
    assert accuracy(truth, np.zeros(100, int)) == 0.95
    assert balanced_accuracy(truth, np.zeros(100, int)) == 0.5


def ranked(similarity: np.ndarray, relevant: np.ndarray, k: int) -> list[float]:
    """Recall by sorting, for similarities without ties."""
    return [float(r[np.argsort(-s)[:k]].any()) for s, r in zip(similarity, relevant, strict=True)]


@pytest.mark.parametrize("k", [1, 3, 10])
def test_recall_is_what_sorting_says(k):
    rng = np.random.default_rng(k)
    similarity = rng.normal(size=(80, 30))
    relevant = rng.random((80, 30)) < 0.1
    relevant[np.arange(80), rng.integers(0, 30, 80)] = True
    assert recall_at(similarity, relevant, k).tolist() == ranked(similarity, relevant, k)


def test_ties_count_against_the_query():
    relevant = np.eye(4, dtype=bool)
    collapsed = np.ones((4, 4))  # a model that gives every picture the same embedding
    assert recall_at(collapsed, relevant, 1).tolist() == [0.0] * 4
    assert recall_at(collapsed, relevant, 3).tolist() == [0.0] * 4
    assert recall_at(collapsed, relevant, 4).tolist() == [1.0] * 4


def test_two_relevant_items_do_not_stand_in_each_others_way():
    assert recall_at(np.array([[0.9, 0.9, 0.1]]), np.array([[True, True, False]]), 1).tolist() == [1.0]


def test_a_model_that_answers_nan_finds_nothing():
    similarity = np.full((3, 3), np.nan)
    assert recall_at(similarity, np.eye(3, dtype=bool), 1).tolist() == [0.0] * 3
    partly = np.eye(3)
    partly[1, 1] = np.nan
    assert recall_at(partly, np.eye(3, dtype=bool), 1)[1] == 0.0


def test_a_query_without_any_relevant_item_is_never_a_hit():
    assert recall_at(np.ones((1, 3)), np.zeros((1, 3), bool), 5).tolist() == [0.0]


# bootstrap ------------------------------------------------------------------------------------------------------------


def test_the_interval_holds_the_truth_about_nineteen_times_of_twenty():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        hits = rng.random(120) < 0.7
        low, high = bootstrap(lambda rows, hits=hits: float(hits[rows].mean()), np.arange(120), 200, seed=trial)
        held += low <= 0.7 <= high
    assert 0.89 <= held / 200 <= 0.99


def test_rows_that_depend_on_each_other_make_the_interval_wider():
    rng = np.random.default_rng(1)
    hits = np.repeat(rng.random(30) < 0.7, 20)  # whole groups are right or wrong
    groups = np.repeat([f"patient-{i}" for i in range(30)], 20)

    def width(by: np.ndarray) -> float:
        low, high = bootstrap(lambda rows: float(hits[rows].mean()), by, 500)
        return high - low

    assert width(groups) > 3 * width(np.arange(600))


def test_groups_are_drawn_whole_wherever_their_rows_lie():
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    members = {"a": [1, 4], "b": [0, 2, 5], "c": [3]}
    seen: list[np.ndarray] = []
    bootstrap(lambda rows: float(seen.append(rows) or 0), groups, 50)
    assert len(seen) == 50
    for rows in seen:
        counts = np.bincount(rows, minlength=6)
        assert all(len({counts[i] for i in m}) == 1 for m in members.values())
        assert sum(counts[m[0]] for m in members.values()) == 3


def test_the_interval_is_the_same_each_time_and_holds_the_figure():
    hits = np.random.default_rng(2).random(100) < 0.5
    figure = lambda rows: float(hits[rows].mean())  # noqa: E731
    one = bootstrap(figure, np.arange(100), 300, seed=3)
    assert one == bootstrap(figure, np.arange(100), 300, seed=3) != bootstrap(figure, np.arange(100), 300, seed=4)
    assert one[0] <= hits.mean() <= one[1]

"""DriftMetrics: the same numbers as others compute, ties and broken models never flatter, intervals that mean what they say."""

import time

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn import metrics as theirs

from clipft_tasks.evaluate import metrics, zero_shot
from clipft_tasks.evaluate.bootstrap import (
    Groups,
    Sums,
    drawn,
    gain_interval,
    holm,
    interval,
    interval_of_rows,
    p_value,
    resampled,
)
from clipft_tasks.evaluate.metrics import ranks, recall_at


def made(seed: int, rows: int = 200, classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, rows, p=np.array([8.0, 3, *[1] * (classes - 2)]) / (9 + classes))
    scores = rng.normal(size=(rows, classes)).astype(np.float32)
    scores[np.arange(rows), truth] += 1
    return truth, metrics.answers(scores), metrics.log_softmax(scores)


@pytest.mark.parametrize("seed", range(5))
def test_classification_metrics_are_scikit_learns(seed):
    truth, predicted, sure = made(seed)
    found = metrics.classification(truth, predicted, sure)
    chance = np.exp(sure)
    assert found["accuracy"] == pytest.approx(theirs.accuracy_score(truth, predicted))
    assert found["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(truth, predicted))
    assert found["macro_f1"] == pytest.approx(theirs.f1_score(truth, predicted, average="macro"))
    assert found["macro_auroc"] == pytest.approx(theirs.roc_auc_score(truth, chance, multi_class="ovr", average="macro"))
    one_hot = truth[:, None] == np.arange(4)
    assert found["macro_average_precision"] == pytest.approx(theirs.average_precision_score(one_hot, chance, average="macro"))
    assert found["top3_accuracy"] == pytest.approx(theirs.top_k_accuracy_score(truth, chance, k=3))
    assert "top5_accuracy" not in found  # of four classes


def test_always_saying_the_common_class_is_worth_half_in_balanced_accuracy():
    truth, scores = np.array([0] * 95 + [1] * 5), np.tile([1.0, 0.0], (100, 1))
    found = metrics.classification(truth, metrics.answers(scores), metrics.log_softmax(scores))
    assert (found["accuracy"], found["balanced_accuracy"], found["macro_auroc"]) == (0.95, 0.5, 0.5)


def test_classes_that_do_not_occur_neither_help_nor_crash():
    truth, predicted, sure = made(1, classes=6)
    rows = truth < 2
    found = metrics.classification(truth[rows], predicted[rows], sure[rows])
    assert found["balanced_accuracy"] == pytest.approx(np.mean([np.mean(predicted[truth == c] == c) for c in (0, 1)]))
    assert all(np.isfinite(list(found.values())))
    table = metrics.by_class(truth[rows], predicted[rows], list("abcdef"))
    assert [c.rows for c in table] == [*np.bincount(truth[rows]), 0, 0, 0, 0] and table[5].recall is None


def test_rows_of_one_class_have_no_auroc_and_the_other_metrics():
    truth, predicted, sure = made(2)
    found = metrics.classification(truth[truth == 0], predicted[truth == 0], sure[truth == 0])
    assert np.isnan(found["macro_auroc"]) and np.isnan(found["macro_average_precision"])
    assert found["accuracy"] == found["balanced_accuracy"] == np.mean(predicted[truth == 0] == 0)


def test_a_model_that_answers_nan_is_right_about_nothing():
    scores = np.full((4, 3), np.nan)
    assert metrics.answers(scores).tolist() == [-1] * 4
    found = metrics.classification(np.zeros(4, int), metrics.answers(scores), scores)
    assert found["accuracy"] == found["balanced_accuracy"] == found["macro_f1"] == 0
    scores[1] = [0.9, 0.1, 0.2]
    assert metrics.answers(scores).tolist() == [-1, 0, -1, -1]
    assert metrics.confusion(np.zeros(4, int), metrics.answers(scores), 3).toarray()[0].tolist() == [1, 0, 0, 3]


def test_the_confusion_matrix_is_scikit_learns():
    truth, predicted, _ = made(3)
    ours = metrics.confusion(truth, predicted, 4).toarray()
    assert (ours[:, :4] == theirs.confusion_matrix(truth, predicted)).all() and not ours[:, 4].any()


# retrieval ------------------------------------------------------------------------------------------------------------


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
    collapsed = np.ones((4, 4))  # a model that gives every image the same embedding
    assert ranks(collapsed, relevant).tolist() == [3.0] * 4
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


# calibration ----------------------------------------------------------------------------------------------------------


def test_a_model_that_is_as_sure_as_it_is_right_has_no_calibration_error():
    sure = np.log(np.tile([0.8, 0.2], (1000, 1)))
    predicted = np.zeros(1000, int)
    truth = (np.arange(1000) % 5 == 0).astype(int)  # right four times of five
    assert metrics.calibration_error(metrics.reliability(truth, predicted, sure)) == pytest.approx(0)
    [curve] = metrics.reliability(np.ones(1000, int), predicted, sure)
    assert curve.rows == 1000 and curve.confidence == pytest.approx(0.8) and curve.accuracy == 0
    assert metrics.calibration_error([curve]) == pytest.approx(0.8)


def test_the_fitted_temperature_is_the_one_that_made_the_labels():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20_000, 5)) * 0.1
    chances = np.exp(metrics.log_softmax(25 * scores))
    truth = (rng.random((20_000, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    assert metrics.fitted_scale(truth, scores) == pytest.approx(25, rel=0.03)


@pytest.mark.parametrize("scores", [np.zeros((0, 3)), np.zeros((4, 0)), np.full((4, 3), np.nan)])
def test_no_temperature_fits_nothing(scores):
    assert np.isnan(metrics.fitted_scale(np.zeros(len(scores), int), scores))


def test_probabilities_near_one_stay_apart():
    sure = metrics.log_softmax(np.array([[20.0, 0, 0], [21.0, 0, 0]], np.float32))
    assert sure[0, 0] < sure[1, 0] < 0


# where embeddings lie -------------------------------------------------------------------------------------------------


def test_alignment_uniformity_and_gap_are_what_their_paper_says():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    image, text = (metrics.unit(rng.normal(size=(50, 8))) for _ in range(2))
    found = metrics.geometry(image * 3, text * 0.1)  # lengths do not matter
    x, y = torch.from_numpy(image), torch.from_numpy(text)
    assert found["alignment"] == pytest.approx(float((x - y).norm(p=2, dim=1).pow(2).mean()))
    assert found["uniformity_image"] == pytest.approx(float(torch.pdist(x).pow(2).mul(-2).exp().mean().log()))
    assert found["modality_gap"] == pytest.approx(float((x.mean(0) - y.mean(0)).norm()))
    same = metrics.geometry(image, image)
    assert same["alignment"] == pytest.approx(0) and same["modality_gap"] == pytest.approx(0)


def test_one_caption_for_all_has_no_uniformity_of_texts():
    rng = np.random.default_rng(0)
    found = metrics.geometry(rng.normal(size=(9, 4)), np.ones((9, 4)))
    assert np.isnan(found["uniformity_text"]) and np.isfinite(found["uniformity_image"])


def test_a_thousand_classes_cost_seconds_and_give_scikit_learns_numbers():
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 1000, 4000), rng.normal(size=(4000, 1000)).round(1)  # with ties
    scores[np.arange(4000), truth] += 1
    began = time.monotonic()
    sure = metrics.log_softmax(scores)
    found = metrics.classification(truth, metrics.answers(scores), sure)
    metrics.by_class(truth, metrics.answers(scores), [str(i) for i in range(1000)])
    assert metrics.confusion(truth, metrics.answers(scores), 1000).nnz <= 4000
    assert time.monotonic() - began < 15  # two on one quiet core
    some, one_hot = [0, 7, 500], truth[:, None] == np.unique(truth)
    each = [metrics.one_against_rest((truth == np.unique(truth)[i]).astype(int), np.c_[-sure[:, i], sure[:, i]]) for i in some]
    assert [a for a, _ in each] == pytest.approx([theirs.roc_auc_score(one_hot[:, i], sure[:, i]) for i in some])
    assert 0.5 < found["macro_auroc"] < 1 and 0 < found["macro_average_precision"] < found["macro_auroc"]


@pytest.mark.parametrize("block", [1, 50, 10**9])
def test_ranks_of_pairs_in_blocks_are_those_of_the_whole_mask(monkeypatch, block):
    monkeypatch.setattr("clipft_tasks.evaluate.zero_shot.BLOCK", block)
    rng = np.random.default_rng(0)
    similarity = rng.integers(0, 9, (40, 30)).astype(np.float32)  # many ties
    similarity[3, 4], similarity[5] = np.nan, np.inf
    query, item = rng.integers(0, 39, 60), rng.integers(0, 30, 60)  # some twice, the last has none
    mask = np.zeros(similarity.shape, bool)
    mask[query, item] = True
    best = np.where(mask, similarity, -np.inf).max(axis=1, keepdims=True)
    expected = np.where(np.isfinite(best[:, 0]), (~(similarity < best) & ~mask).sum(axis=1), np.inf)
    assert zero_shot.ranked(query, item, similarity.shape, lambda some: similarity[some]).tolist() == expected.tolist()
    assert ranks(similarity, mask).tolist() == expected.tolist() and expected[39] == np.inf


# bootstrap ------------------------------------------------------------------------------------------------------------


def mean(hits: np.ndarray) -> Sums:
    return Sums.ratio(hits, np.ones(len(hits)))


def interval_by(
    metric: Sums, groups: np.ndarray, resamples: int = 200, seed: int = 0, **ends: float | None
) -> tuple[float, float]:
    [values] = resampled([metric], groups, resamples, seed)
    return interval(metric.value, values, Groups.of(groups, metric), **ends)


@pytest.mark.parametrize("count", [5, 10, 50])
@pytest.mark.parametrize("share", [0.7, 0.97])
def test_the_interval_holds_the_truth_about_nineteen_times_of_twenty_however_few_groups_there_are(count, share):
    rng = np.random.default_rng(0)
    groups, held = np.repeat(np.arange(count), 20), 0
    for trial in range(200):
        of_group = rng.beta(share * 9, (1 - share) * 9, count)
        low, high = interval_by(mean(rng.random(len(groups)) < of_group[groups]), groups, seed=trial)
        held += low <= share <= high
    assert 0.90 <= held / 200 <= 1


@pytest.mark.parametrize("rows", [30, 300])
def test_a_perfect_score_is_as_sure_as_its_groups_and_never_certain(rows):
    perfect, none = (mean(np.full(rows, hit)) for hit in (1, 0))
    low, high = interval_by(perfect, np.arange(rows))
    assert high == 1 and 1 - 5 / rows < low < 1 - 3 / rows  # the rule of three, and a little more
    assert interval_by(none, np.arange(rows)) == pytest.approx((0, 1 - low))
    wide, _ = interval_by(perfect, np.arange(rows) % 6)
    assert wide == pytest.approx(6 / (6 + 1.96**2), abs=1e-3)
    assert interval_by(perfect, np.zeros(rows)) == (0, 1)  # of one group nothing is known


def test_one_large_group_and_some_small_ones_are_hardly_more_than_one():
    groups = np.repeat(np.arange(5), [96, 1, 1, 1, 1])
    rows = mean(np.arange(100) % 3 > 0)
    assert Groups.of(groups, rows).count == 5 and Groups.of(groups, rows).effective < 1.2
    assert Groups.of(np.arange(100) % 5, rows).effective == pytest.approx(5, abs=0.1)
    rare = Sums(
        sparse.csr_array(np.eye(2)[(groups == 4).astype(int)]), lambda sums: sums[..., 0]
    )  # a class that only one group has
    assert Groups.of(np.arange(100) % 5, rare).effective < 3


def test_a_metric_without_ends_has_a_symmetric_interval():
    values = np.random.default_rng(0).normal(5, 2, 64)
    low, high = interval_by(mean(values), np.arange(64), 4000, low=None, high=None)
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 63) * values.std(ddof=1) / 8, rel=0.1)
    assert interval_by(mean(values), np.arange(64), low=0, high=None)[1] > 5
    assert interval_by(mean(values), np.arange(64), low=0, high=1)[1] > 5  # whoever wrote these ends was wrong


def test_rows_that_depend_on_each_other_make_the_interval_wider():
    rng = np.random.default_rng(1)
    hits = np.repeat(rng.random(30) < 0.7, 20)  # whole groups are right or wrong
    groups = np.repeat([f"patient-{i}" for i in range(30)], 20)

    def width(by: np.ndarray) -> float:
        low, high = interval_by(mean(hits), by, 500)
        return high - low

    assert width(groups) > 3 * width(np.arange(600))


def test_a_resample_is_what_its_rows_say_whole_groups_wherever_they_lie():
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    hits = np.array([1, 0, 0, 1, 1, 0])
    [values] = resampled([mean(hits)], groups, 50)
    [weights] = drawn(3, 50)
    assert (weights.sum(axis=1) == 3).all()
    for value, (a, b, c) in zip(values, weights, strict=True):
        rows = np.repeat(np.arange(6), np.array([b, a, b, c, a, b], int))
        assert value == pytest.approx(hits[rows].mean())


def test_the_bootstrap_of_rows_says_the_same_as_that_of_sums():
    rng = np.random.default_rng(5)
    hits, groups = rng.random(200) < 0.6, rng.integers(0, 50, 200)
    of_rows = interval_of_rows(lambda rows: float(hits[rows].mean()), groups, 2000)
    assert of_rows == pytest.approx(interval_by(mean(hits), groups, 2000, low=None, high=None), abs=0.01)


def test_blocks_change_memory_and_nothing_else(monkeypatch):
    hits = np.random.default_rng(2).random(40) < 0.5
    whole = resampled([mean(hits)], np.arange(40), 300)
    monkeypatch.setattr("clipft_tasks.evaluate.bootstrap.BLOCK", 40 * 7)
    assert (resampled([mean(hits)], np.arange(40), 300) == whole).all()


def test_the_interval_is_the_same_each_time_and_holds_the_metric():
    hits = np.random.default_rng(2).random(100) < 0.5
    one, again, other = (resampled([mean(hits)], np.arange(100), 300, seed=s)[0] for s in (3, 3, 4))
    assert (one == again).all() and (one != other).any()
    low, high = interval(hits.mean(), one, Groups.of(np.arange(100)))
    assert low <= hits.mean() <= high


@pytest.mark.parametrize("count", [5, 20])
def test_a_difference_that_is_none_has_a_p_like_any_number_and_an_interval_that_agrees(count):
    rng = np.random.default_rng(0)
    groups, found = np.repeat(np.arange(count), 20), []
    for trial in range(200):
        effect = rng.normal(0, 0.1, count)[groups]
        a, b = (mean(rng.random(len(groups)) < 0.6 + side * effect) for side in (1, -1))
        new, old = resampled([a, b], groups, 200, seed=trial)
        behind = Groups.of(groups, a)
        p = p_value(a.value - b.value, new - old, behind)
        low, high = gain_interval(a.value - b.value, new - old, behind)
        assert (p < 0.05) == (not low <= 0 <= high)
        found.append(p)
    assert np.mean(np.array(found) < 0.05) < 0.1 and np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.15)


def test_a_difference_that_is_there_has_a_small_p_both_ways():
    gain, groups = np.random.default_rng(0).normal(0.2, 0.01, 999), Groups(30, 30.0, 30)
    assert 0 < p_value(0.2, gain, groups) == p_value(-0.2, -gain, groups) < 1e-6
    assert p_value(0, np.zeros(99), groups) == 1


def test_where_all_groups_show_one_difference_their_number_says_how_sure_that_is():
    same, few, many = np.full(99, 0.5), Groups(5, 5.0, 5), Groups(300, 300.0, 300)
    assert p_value(0.5, same, few) == 2 / 2**5  # what an exact sign test says of five that agree
    assert gain_interval(0.5, same, few) == pytest.approx((0.5 - 0.434, 0.5 + 0.434), abs=1e-3)
    assert gain_interval(0.0, 0 * same, many) == pytest.approx((-0.0126, 0.0126), abs=1e-4)
    assert gain_interval(0.9, same, few)[1] == 1 and gain_interval(9, same, few, span=None) == (9, 9)
    assert p_value(0.5, same, Groups(1, 1.0, 1)) == 1 and gain_interval(0.5, same, Groups(1, 1.0, 1)) == (-1, 1)


def test_a_resample_that_draws_no_label_does_not_count():
    values, groups = np.array([0.1, np.nan, 0.3]), Groups(9, 9.0, 9)
    assert groups.standard_error(values) == pytest.approx(0.1 * np.sqrt(9 / 8))
    assert interval(0.2, values, groups) == interval(0.2, values[[0, 2]], groups)
    assert np.isnan([*interval(np.nan, values, groups), p_value(np.nan, values, groups)]).all()


def test_holm_is_what_its_paper_says():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    corrected = holm([0.02, float("nan"), 0.01])
    assert corrected[0] == 0.02 and corrected[2] == 0.02 and np.isnan(corrected[1])

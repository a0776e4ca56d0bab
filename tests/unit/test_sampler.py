"""Samplers: epochs are permutations, each step is a pure function of (seed, step), and classes and groups are kept apart as said."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clipft_tasks.data.sampler import Sampler

HOWS = ["shuffled", "balanced", "spread"]
LABELS = np.repeat([0, 1, 2], [40, 15, 9])


def epoch(sampler: Sampler, number: int) -> np.ndarray:
    per_epoch = sampler.steps_per_epoch
    return np.concatenate([sampler.rows(number * per_epoch + step) for step in range(per_epoch)])


def grouped(sizes: list[int]) -> np.ndarray:
    """Group ids of these sizes, in an order of rows that says nothing about groups."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


# Order ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["shuffled", "spread"])
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_an_epoch_is_a_permutation_of_the_rows(how, batch):
    sampler = Sampler(LABELS, batch, 0, how, groups=grouped([4] * 16))
    for number in range(3):
        assert sorted(epoch(sampler, number)) == list(range(64))


@pytest.mark.parametrize("how", HOWS)
def test_rows_left_over_are_dropped_and_every_batch_is_full(how):
    sampler = Sampler(LABELS, 10, 0, how)
    assert sampler.steps_per_epoch == 6
    assert [len(sampler.rows(step)) for step in range(12)] == [10] * 12
    if how != "balanced":
        assert len(set(epoch(sampler, 0))) == 60


@pytest.mark.parametrize("how", HOWS)
def test_a_step_depends_on_seed_and_step_alone(how):
    forward, backward = (Sampler(LABELS, 8, 3, how) for _ in range(2))
    wanted = [forward.rows(step) for step in range(40)]
    for step in reversed(range(40)):
        assert np.array_equal(backward.rows(step), wanted[step])
    other = Sampler(LABELS, 8, 4, how)
    assert not all(np.array_equal(other.rows(step), wanted[step]) for step in range(8))


@pytest.mark.parametrize("how", HOWS)
def test_several_threads_in_any_order_see_the_same_rows(how):
    sampler = Sampler(LABELS, 8, 0, how)
    wanted = [Sampler(LABELS, 8, 0, how).rows(step) for step in range(64)]
    steps = np.random.default_rng(1).permutation(np.repeat(np.arange(64), 10))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(sampler.rows, steps.tolist()))
    assert all(np.array_equal(rows, wanted[step]) for step, rows in zip(steps, found, strict=True))


@pytest.mark.parametrize("how", HOWS)
def test_every_epoch_has_an_order_of_its_own(how):
    sampler = Sampler(LABELS, 8, 0, how, groups=grouped([4] * 16))
    assert len({tuple(epoch(sampler, number)) for number in range(5)}) == 5


# Classes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [6, 8, 16])
def test_balanced_gives_each_class_its_share_of_every_batch(batch):
    sampler = Sampler(LABELS, batch, 0, "balanced")
    for step in range(2 * sampler.steps_per_epoch):
        counts = np.bincount(LABELS[sampler.rows(step)], minlength=3)
        assert counts.min() >= batch // 3 and counts.max() <= -(-batch // 3)


def test_balanced_draws_a_rare_class_evenly_and_all_of_it():
    sampler = Sampler(LABELS, 16, 0, "balanced")
    drawn = np.bincount(epoch(sampler, 0), minlength=64)[LABELS == 2]
    assert drawn.min() >= 2 and drawn.max() - drawn.min() <= 1


def test_balanced_comes_to_all_of_a_common_class_over_epochs():
    sampler = Sampler(LABELS, 16, 0, "balanced")
    assert {int(row) for number in range(12) for row in epoch(sampler, number)} == set(range(64))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("label", [0, -1], ids=["one class", "none known"])
def test_a_single_class_or_none_is_shuffled(how, label):
    sampler = Sampler(np.full(24, label), 6, 0, how)
    assert sorted(epoch(sampler, 0)) == list(range(24))
    assert not np.array_equal(epoch(sampler, 0), epoch(sampler, 1))


# Groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[4] * 16, [8] * 8, [1] * 20 + [2] * 10 + [3] * 8, [8, 7, 1, 6, 5, 5, 8, 8, 8, 8]], ids=str)
def test_spread_keeps_a_group_in_different_batches(sizes):
    groups = grouped(sizes)
    sampler = Sampler(np.zeros(64, int), 8, 0, "spread", groups=groups)
    for step in range(3 * sampler.steps_per_epoch):
        assert len(set(groups[sampler.rows(step)])) == 8


def test_spread_deals_a_group_larger_than_the_number_of_batches_evenly():
    groups = grouped([20, 44])
    sampler = Sampler(np.zeros(64, int), 8, 0, "spread", groups=groups)
    for step in range(8):
        assert (groups[sampler.rows(step)] == 0).sum() in (2, 3)


# Captions and sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["shuffled", "spread"])
def test_a_image_comes_once_an_epoch_and_with_all_its_captions_over_epochs(how):
    images = np.random.default_rng(0).permutation(np.repeat([7, 3, 9, 1, 4, 8], [1, 2, 3, 4, 5, 1]))
    sampler = Sampler(np.zeros(16, int), 3, 0, how, images=images)
    seen = set()
    for number in range(60):
        rows = epoch(sampler, number)
        assert sorted(images[rows]) == [1, 3, 4, 7, 8, 9]
        seen |= set(rows.tolist())
    assert seen == set(range(16))


@pytest.mark.parametrize("how", HOWS)
def test_a_batch_larger_than_the_data_is_all_of_it(how):
    sampler = Sampler(np.array([0, 1, 0, 1, 0]), 64, 0, how, images=np.array([0, 1, 2, 3, 3]))
    assert sampler.batch == 4 and sampler.steps_per_epoch == 1
    assert [len(sampler.rows(step)) for step in range(3)] == [4] * 3


@pytest.mark.parametrize(("rows", "batch"), [(31, 3), (64, 8), (50, 7), (10, 4)])
def test_spread_deals_groups_over_batches_even_when_rows_are_left_over(rows, batch):
    groups = np.arange(rows) // max(1, rows // batch)  # each group has at most as many members as there are batches
    sampler = Sampler(np.zeros(rows, int), batch, 0, "spread", groups=groups)
    for step in range(3 * sampler.steps_per_epoch):
        assert len(set(groups[sampler.rows(step)])) == batch


def test_spread_without_groups_still_makes_other_batches_each_epoch():
    sampler = Sampler(np.zeros(64, int), 8, 0, "spread")
    assert set(sampler.rows(0)) != set(sampler.rows(8))


@pytest.mark.parametrize(("classes", "batch"), [(1000, 64), (200, 64), (100, 32)])
def test_with_more_classes_than_a_batch_holds_nearly_all_pairs_of_them_meet(classes, batch):
    labels = np.repeat(np.arange(classes), 5)
    drawn = Sampler(labels, batch, 0, "balanced")
    seen = np.zeros((classes, classes), bool)
    passes = [classes * classes * 3 // (batch * batch), drawn.steps_per_epoch]
    for step in range(max(passes)):
        own = labels[drawn.rows(step)]
        seen[np.ix_(own, own)] = True
        assert len(set(own)) >= 0.55 * batch  # of two passes over all classes at most
    chance = 1 - np.exp(-3)
    assert seen.mean() > chance - 0.05
    first, second = (labels[drawn.rows(step)] for step in (0, drawn.steps_per_epoch))
    assert len(set(first) & set(second)) < 0.75 * batch


def test_a_row_of_no_known_class_is_drawn_once_and_takes_no_share_of_a_class():
    labels = np.concatenate([np.full(60, -1), np.repeat([0, 1], [30, 10])])
    drawn = epoch(Sampler(labels, 10, 0, "balanced"), 0)
    assert sorted(drawn[labels[drawn] < 0]) == list(range(60))
    assert np.bincount(labels[drawn][labels[drawn] >= 0]).tolist() == [20, 20]
    nothing = epoch(Sampler(np.full(20, -1), 10, 0, "balanced"), 0)
    assert sorted(nothing) == list(range(20))

"""Splits: near-duplicates are all found, nothing that belongs together is parted, nothing once split ever moves."""

import time

import numpy as np
import pytest
from conftest import made_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps

from clipft_tasks.data import splits
from clipft_tasks.data.images import perceptual_hash
from clipft_tasks.data.splits import SPLITS, assign, components, near_duplicates
from clipft_tasks.domains import Augment

SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}


def hex_of(bits: np.ndarray) -> str:
    return np.packbits(bits).tobytes().hex()


def planted(count: int, copies: int, most: int, seed: int = 0) -> list[str]:
    """Random 256-bit hashes plus copies of some with 0 to `most` bits turned."""
    rng = np.random.default_rng(seed)
    rows = list(rng.integers(0, 2, (count, 256)).astype(np.uint8))
    for turned in np.tile(np.arange(most + 1), copies):
        copy = rows[rng.integers(count)].copy()
        copy[rng.choice(256, turned, replace=False)] ^= 1
        rows.append(copy)
    order = rng.permutation(len(rows))
    return [hex_of(rows[i]) for i in order]


def brute(hashes: list[str], bits: int) -> set[tuple[int, int]]:
    unpacked = np.array([np.unpackbits(np.frombuffer(bytes.fromhex(h), np.uint8)) for h in hashes]).astype(int)
    distance = unpacked @ (1 - unpacked).T + (1 - unpacked) @ unpacked.T
    return {(i, j) for i, j in zip(*np.nonzero(distance <= bits), strict=True) if i < j}


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == x).tolist()) for x in np.unique(labels)}


# near-duplicates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 1, 6, 12, 31])
@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_join_what_brute_force_joins_and_nothing_twice(bits, seed):
    hashes = planted(150, 6, bits + 3, seed)
    found = near_duplicates(hashes, bits)
    expected = brute(hashes, bits)
    assert set(found) <= expected
    nothing = [""] * len(hashes)
    joined = components(len(hashes), found, nothing)
    assert partition(joined) == partition(components(len(hashes), sorted(expected), nothing))
    assert len(found) == len(hashes) - len(np.unique(joined))  # a pair that joins nothing new is not named
    assert len(expected) >= 6  # the plants are there


@pytest.mark.parametrize("of", [2, 3, 17])
def test_parts_of_the_search_join_what_one_search_joins(of):
    hashes = [*planted(150, 6, 15, 0), *scene(100, 5)]
    augment = Augment(flip_horizontal=True, rotate90=True)
    alone, nothing = near_duplicates(hashes, 12, augment), [""] * len(hashes)
    parts = [near_duplicates(hashes, 12, augment, part, of) for part in range(of)]
    assert sum(bool(part) for part in parts) > 1
    together = sorted(pair for part in parts for pair in part)
    assert components(len(hashes), together, nothing).tolist() == components(len(hashes), alone, nothing).tolist()


@pytest.mark.parametrize("few", [1, 2, 5])
def test_how_many_are_compared_at_once_changes_nothing(monkeypatch, few):
    hashes = [*planted(150, 6, 15, 0), *scene(60, 5)]
    augment, nothing = Augment(flip_horizontal=True, rotate90=True), [""] * len(hashes)
    usual = near_duplicates(hashes, 12, augment)
    monkeypatch.setattr(splits, "FEW", few)
    found = near_duplicates(hashes, 12, augment)
    assert len(found) == len(usual) > 60
    assert components(len(hashes), found, nothing).tolist() == components(len(hashes), usual, nothing).tolist()


def scene(frames: int, noise: int, seed: int = 0) -> list[str]:
    """Hashes that differ from one of them in `noise` bits each: what a camera that does not move sees."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.integers(0, 2, (1, 256)).astype(np.uint8), frames, axis=0)
    for row in rows:
        row[rng.choice(256, noise, replace=False)] ^= 1
    return [hex_of(row) for row in rows]


@pytest.mark.parametrize("noise", [3, 5])
def test_ten_thousand_frames_of_one_scene_are_one_component_in_seconds(noise):
    hashes = scene(10_000, noise)
    began = time.monotonic()
    pairs = near_duplicates(hashes, 6, Augment(flip_horizontal=True, rotate90=True))
    assert time.monotonic() - began < 30
    assert len(pairs) == 9_999 and len(set(components(10_000, pairs, [""] * 10_000))) == 1


TURNS = {
    "mirrored": (ImageOps.mirror, Augment(flip_horizontal=True), Augment(flip_horizontal=False, flip_vertical=True)),
    "upside down": (ImageOps.flip, Augment(flip_horizontal=False, flip_vertical=True), Augment()),
    "a quarter turn": (
        lambda image: image.transpose(Image.Transpose.ROTATE_90),
        Augment(flip_horizontal=False, rotate90=True),
        Augment(flip_vertical=True),
    ),
    "a half turn": (lambda image: image.transpose(Image.Transpose.ROTATE_180), Augment(flip_vertical=True), Augment()),
}


@pytest.mark.parametrize("name", TURNS)
def test_an_image_in_another_orientation_is_found_where_training_allows_it_and_only_there(name):
    turn, allowed, other = TURNS[name]
    images = [made_image("red", i, side=96).filter(ImageFilter.GaussianBlur(3)) for i in range(30)]
    hashes = [perceptual_hash(image).hex() for image in [*images, *map(turn, images)]]
    pairs = near_duplicates(hashes, 12, allowed)
    assert set(pairs) <= {(i, i + 30) for i in range(30)} and len(pairs) >= 15
    assert not near_duplicates(hashes, 12, other) and not near_duplicates(hashes, 12)


def test_the_limit_itself_is_inside_and_one_more_is_not():
    base = np.zeros(256, np.uint8)
    at, over = base.copy(), base.copy()
    at[np.linspace(0, 255, 6).astype(int)] = 1
    over[np.linspace(0, 255, 7).astype(int)] = 1
    assert near_duplicates([hex_of(base), hex_of(at)], 6) == [(0, 1)]
    assert near_duplicates([hex_of(base), hex_of(over)], 6) == []


def test_no_hashes_and_one_hash_have_no_pairs():
    assert near_duplicates([], 6) == [] and near_duplicates(["00" * 32], 6) == []


def test_many_copies_of_one_image_stay_cheap():
    began = time.monotonic()
    pairs = near_duplicates(["ab" * 32] * 20_000, 6)
    assert time.monotonic() - began < 20
    assert len(set(components(20_000, pairs, [""] * 20_000))) == 1


# components -----------------------------------------------------------------------------------------------------------


def test_rows_hang_together_by_edge_or_group_and_through_each_other():
    labels = components(7, [(0, 1), (3, 4)], ["", "a", "a", "", "b", "b", ""])
    assert partition(labels) == {frozenset({0, 1, 2}), frozenset({3, 4, 5}), frozenset({6})}


def test_rows_without_group_do_not_hang_together():
    assert len(set(components(4, [], [""] * 4))) == 4


# assign ---------------------------------------------------------------------------------------------------------------


def random_set(seed: int, rows: int = 600):
    rng = np.random.default_rng(seed)
    component = np.sort(rng.integers(0, rows // 4, rows))
    labels = rng.choice(["common", "some", "rare"], rows, p=[0.7, 0.22, 0.08]).tolist()
    return component, labels


@pytest.mark.parametrize("seed", range(5))
def test_what_belongs_together_is_never_parted(seed):
    component, labels = random_set(seed)
    done = assign(component, labels, [""] * len(labels), SHARES, seed)
    assert set(done.splits) == set(SPLITS) and not done.straddling
    for comp in np.unique(component):
        assert len({done.splits[i] for i in np.flatnonzero(component == comp)}) == 1


@pytest.mark.parametrize("seed", range(5))
def test_each_class_comes_close_to_the_wanted_shares(seed):
    component, labels = random_set(seed)
    splits = np.array(assign(component, labels, [""] * len(labels), SHARES, seed).splits)
    for label in set(labels):
        own = splits[np.array(labels) == label]
        for name, share in SHARES.items():
            assert abs((own == name).mean() - share) < 0.05, (label, name)


def test_single_rows_meet_the_shares_to_the_row():
    labels = ["a"] * 100 + ["b"] * 20
    splits = assign(np.arange(120), labels, [""] * 120, SHARES, 0).splits
    counted = {(x, s): sum(y == x and t == s for y, t in zip(labels, splits, strict=True)) for x in "ab" for s in SPLITS}
    assert counted == {
        ("a", "train"): 60,
        ("a", "val"): 15,
        ("a", "test"): 25,
        ("b", "train"): 12,
        ("b", "val"): 3,
        ("b", "test"): 5,
    }


def test_a_split_that_is_fixed_never_changes_and_new_rows_join_their_component():
    component, labels = random_set(1)
    rng = np.random.default_rng(0)
    of = dict(zip(np.unique(component).tolist(), rng.choice(["", *SPLITS], len(np.unique(component))), strict=True))
    fixed = [str(of[c]) if rng.random() < 0.5 else "" for c in component.tolist()]
    done = assign(component, labels, fixed, SHARES, 0)
    assert not done.straddling and "" not in done.splits
    assert all(now == was for now, was in zip(done.splits, fixed, strict=True) if was)
    for comp in np.unique(component):
        assert len({done.splits[i] for i in np.flatnonzero(component == comp)}) == 1


def test_growing_a_set_moves_no_row_and_keeps_the_shares():
    labels = ["a"] * 400
    first = assign(np.arange(200), labels[:200], [""] * 200, SHARES, 0).splits
    then = assign(np.arange(400), labels, first + [""] * 200, SHARES, 0).splits
    assert then[:200] == first
    assert [then.count(s) for s in SPLITS] == [240, 60, 100]


def test_new_rows_between_two_fixed_splits_are_returned_and_put_nowhere():
    done = assign(np.array([0, 0, 0, 1]), ["a"] * 4, ["train", "test", "", ""], SHARES, 0)
    assert done.straddling == [2]
    assert done.splits[:2] == ["train", "test"] and done.splits[3] in SPLITS


def test_the_seed_decides_and_nothing_else_does():
    component, labels = random_set(3)
    nothing = [""] * len(labels)
    one = assign(component, labels, nothing, SHARES, 5).splits
    assert assign(component, labels, nothing, SHARES, 5).splits == one
    assert assign(component, labels, nothing, SHARES, 6).splits != one


# in general -----------------------------------------------------------------------------------------------------------

PLACES = st.sampled_from(["", *SPLITS])
ROWS = st.lists(st.tuples(st.sampled_from(["", "g", "h", "i", "j"]), st.sampled_from(["", "a", "b"]), PLACES), max_size=40)


@st.composite
def row_sets(draw):
    """Groups, classes and given splits of some rows, and near-duplicates among them."""
    rows = draw(ROWS)
    index = st.integers(0, max(len(rows) - 1, 0))
    edges = draw(st.lists(st.tuples(index, index), max_size=12 if rows else 0))
    groups, labels, fixed = ([row[k] for row in rows] for k in range(3))
    return groups, labels, fixed, edges


@given(row_sets(), st.integers(0, 5))
def test_no_component_ever_straddles_and_no_given_split_ever_changes(rows, seed):
    groups, labels, fixed, edges = rows
    component = components(len(groups), edges, groups)
    assert all(component[i] == component[j] for i, j in edges)
    done = assign(component, labels, fixed, SHARES, seed)
    assert done == assign(component, labels, fixed, SHARES, seed)
    assert all(after == before for before, after in zip(fixed, done.splits, strict=True) if before)
    for comp in np.unique(component):
        members = np.flatnonzero(component == comp).tolist()
        given_splits = {fixed[i] for i in members} - {""}
        left_out = set(members) & set(done.straddling)
        new = {done.splits[i] for i in members if not fixed[i]}
        if len(given_splits) > 1:  # parted by whoever made it: its new rows are left out
            assert left_out == {i for i in members if not fixed[i]} and new <= {""}
        else:
            assert not left_out and len(new | given_splits) == 1 and new <= set(SPLITS)


@given(row_sets(), st.randoms(use_true_random=False))
def test_what_belongs_together_does_not_depend_on_the_order_of_rows(rows, random):
    groups, _, _, edges = rows
    order = list(range(len(groups)))
    random.shuffle(order)
    place = {row: k for k, row in enumerate(order)}
    shuffled = components(len(groups), [(place[i], place[j]) for i, j in edges], [groups[row] for row in order])
    there = {frozenset(order[k] for k in part) for part in partition(shuffled)}
    assert there == partition(components(len(groups), edges, groups))

"""What a domain's versions held is known again by bytes, look and group, and keeps its side of the split."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipft_tasks.data.ledger import COLUMNS, Ledger, Likeness, place
from clipft_tasks.data.splits import SPLITS, absent, assign, components, near_duplicates, nearest

SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}
BITS = 6


def look(number: int, turned: int = 0) -> str:
    """A perceptual hash; `turned` bits away from that of the same number."""
    bits = np.random.default_rng(number).integers(0, 2, 256).astype(np.uint8)
    bits[:turned] ^= 1
    return np.packbits(bits).tobytes().hex()


def rows(*numbers: int, turned: int = 0, group="", split="", label="a", version: str = "") -> pd.DataFrame:
    """Rows of one image each; `version` makes other bytes of the same look."""
    given_group = group if callable(group) else lambda _: group
    given_split = split if callable(split) else lambda _: split
    return pd.DataFrame({
        "sha256": [f"{n}{version}" for n in numbers],
        "phash": [look(n, turned) for n in numbers],
        "group": [given_group(n) for n in numbers],
        "split": [given_split(n) for n in numbers],
        "label": [label] * len(numbers),
    })  # fmt: skip


def placed(frame: pd.DataFrame, ledger: Ledger = Ledger.empty(), seed: int = 0):
    return place(frame, ledger, Likeness(BITS), SHARES, seed, "general")


def after(frame: pd.DataFrame, ledger: Ledger = Ledger.empty()) -> Ledger:
    """The ledger once a frame became a version."""
    found = placed(frame, ledger)
    kept = frame.assign(split=found.splits)
    return ledger.joined(kept[kept["split"] != ""])


def test_the_same_images_at_another_quality_keep_their_split():
    ledger = after(rows(*range(100)))
    again = placed(rows(*range(103), turned=5, version="-q80"), ledger)
    assert again.splits[:100] == [ledger.splits[str(n)] for n in range(100)] and not again.reasons


def test_images_that_were_compressed_hard_follow_the_nearest_without_joining_anything():
    ledger = after(rows(*range(100)))
    again = placed(rows(*range(100), turned=9, version="-q30"), ledger)
    assert again.splits == [ledger.splits[str(n)] for n in range(100)] and not again.reasons
    clearly = placed(rows(*range(100), turned=25, version="-crop"), ledger, seed=1)
    assert sum(map(str.__eq__, clearly.splits, again.splits)) > 95 and not clearly.reasons
    far = placed(rows(*range(100), turned=80, version="-other"), ledger, seed=1)
    assert far.splits != again.splits


@pytest.mark.parametrize("bits", [0, 6, 12])
def test_the_nearest_is_the_one_that_brute_force_finds(bits):
    ours, known = [look(n, n % 15) for n in range(120)], [look(n, n % 3) for n in range(60, 200)]
    apart = [[(int(a, 16) ^ int(b, 16)).bit_count() for b in known] for a in ours]
    expected = [(d.index(min(d)), min(d)) if min(d) <= bits else (-1, bits + 1) for d in apart]
    assert nearest(ours, known, bits) == expected
    assert nearest([], known, bits) == [] and nearest(ours[:1], [], bits) == [(-1, bits + 1)]


def test_later_images_of_a_known_patient_join_the_earlier_ones():
    ledger = after(rows(*range(300), group=lambda n: f"p{n // 5}"))
    later = placed(rows(*range(1000, 1315), group=lambda n: f"p{(n - 1000) // 5}"), ledger)
    of = dict(zip(ledger.frame["group"], ledger.frame["split"], strict=True))
    assert later.splits[:300] == [of[f"p{n // 5}"] for n in range(300)] and set(later.splits[300:]) <= set(SPLITS)


def test_who_left_and_comes_back_in_another_way_is_known():
    ledger = after(rows(*range(40), group=lambda n: f"p{n}"))
    ledger = after(rows(*range(20)), ledger)  # the rest is in no newest version
    back = placed(rows(*range(20, 40), turned=3, version="again"), ledger)
    assert back.splits == [ledger.splits[str(n)] for n in range(20, 40)]


def test_a_corrected_split_of_the_source_changes_nothing_and_is_counted():
    first = rows(*range(60), split=lambda n: SPLITS[n % 3])
    ledger = after(first)
    second = placed(rows(*range(60), split=lambda n: SPLITS[(n + 1) % 3]), ledger)
    assert second.splits == list(first["split"]) and second.overruled == 60


def test_what_the_source_puts_on_the_other_side_of_its_likeness_is_left_out():
    ledger = after(rows(1, 2, split="test"))
    found = placed(rows(1, split="train", turned=2, version="b"), ledger)
    assert found.splits == [""] and "rows of test" in found.reasons[0] and "into train" in found.reasons[0]
    assert placed(rows(1, split="test", turned=2, version="b"), ledger).splits == ["test"]


def test_a_group_that_becomes_known_later_parts_rows_which_are_left_out_where_it_costs_least():
    ledger = after(rows(*range(100)))
    grouped = rows(*range(100), group=lambda n: f"p{n // 4}")
    found = placed(grouped, ledger)
    kept = grouped.assign(split=found.splits).query("split != ''")
    assert (kept.groupby("group")["split"].nunique() == 1).all()
    assert found.parted == len(found.reasons) > 0 and "clipft resplit general" in next(iter(found.reasons.values()))
    assert all(ledger.splits[sha] == split for sha, split in zip(kept["sha256"], kept["split"], strict=True))


def test_one_pair_across_a_published_split_costs_the_training_row_and_the_second_time_too():
    frame = pd.concat([rows(*range(20), split=lambda n: SPLITS[n % 3]), rows(2, turned=3, split="train", version="copy")])
    frame = frame.reset_index(drop=True)
    first = placed(frame)
    assert first.reasons.keys() == {20} and first.splits[:20] == list(frame["split"][:20])
    again = placed(frame, after(frame))
    assert again.splits == first.splits and again.reasons.keys() == {20}


def test_a_row_between_two_sides_is_left_out_and_they_stay():
    ledger = after(pd.concat([rows(1, group="p", split="train"), rows(2, group="q", split="test")]))
    between = pd.concat([rows(1, group="p"), rows(2, group="q"), rows(1, turned=2, group="q", version="x")])
    found = placed(between.reset_index(drop=True), ledger)
    assert found.splits == ["train", "test", ""] and "two different splits" in found.reasons[2]


def test_a_ledger_of_before_is_made_whole_from_the_manifests():
    one, two = rows(1, 2, 3, group="p"), rows(3, 4, group=lambda n: "q" if n == 3 else "")
    one["split"], two["split"] = ["train", "val", "test"], ["train", "test"]  # the second run did not see the first
    old = pd.DataFrame({"sha256": ["3", "4", "9"], "split": ["train", "test", "val"]})
    ledger = Ledger.upgraded(old, [one, two])
    assert ledger.splits == {"1": "train", "2": "val", "3": "train", "4": "test", "9": "val"}
    assert list(ledger.frame.columns) == list(COLUMNS) and set(ledger.frame.query("sha256 == '3'")["group"]) == {"p", "q"}
    assert placed(rows(4, turned=4, version="b"), ledger).splits == ["test"]


def test_the_ledger_is_the_same_whatever_came_first():
    frame = rows(*range(30), split="train")
    assert Ledger.empty().joined(frame).frame.equals(Ledger.empty().joined(frame[::-1]).joined(frame).frame)


def test_nothing_gives_nothing():
    found = placed(rows(1, 2)[:0])
    assert found.splits == [] and not found.reasons


# stratification -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", [3, 4, 5])
def test_a_class_with_three_groups_has_one_in_each_split(each):
    labels = [f"c{i}" for i in range(10) for _ in range(each)]
    splits = assign(np.arange(len(labels)), labels, [""] * len(labels), SHARES, 0).splits
    assert absent(labels, splits) == {}


def test_a_class_that_cannot_be_in_each_split_is_named_with_those_where_it_is_missing():
    labels = ["common"] * 60 + ["rare"] * 9
    component = np.array([*range(60), *[60] * 9])  # nine images of one patient
    splits = assign(component, labels, [""] * 69, SHARES, 0).splits
    (there,) = set(splits[60:])
    assert absent(labels, splits) == {"rare": [s for s in SPLITS if s != there]}


def test_many_classes_take_memory_and_time_by_row_and_not_by_class():
    labels = [f"c{i % 10_000}" for i in range(40_000)]
    splits = assign(np.arange(40_000), labels, [""] * 40_000, SHARES, 0).splits
    assert absent(labels, splits) == {}


# in general -----------------------------------------------------------------------------------------------------------

ROW = st.tuples(
    st.integers(0, 9),  # which image
    st.integers(0, 8),  # bits turned
    st.sampled_from(["", "p", "q", "r"]),
    st.sampled_from(["", *SPLITS]),
)
VERSIONS = st.lists(st.lists(ROW, max_size=12), min_size=1, max_size=4)


def framed(made: list) -> pd.DataFrame:
    frames = [rows(n, turned=turned, group=group, split=split, version=f"/{turned}") for n, turned, group, split in made]
    return pd.concat(frames, ignore_index=True) if frames else rows(1)[:0]


@given(VERSIONS, st.integers(0, 3))
def test_no_test_row_of_one_version_is_ever_a_training_row_of_another(versions, seed):
    """By bytes always; and no row that a version adds is on another side than what it resembles or shares a group with."""
    ledger, sides = Ledger.empty(), {}
    for made in versions:
        frame = framed(made)
        found = placed(frame, ledger, seed)
        known, before = frame["sha256"].isin(ledger.splits), ledger
        kept = frame.assign(split=found.splits, old=known)[np.array([bool(s) for s in found.splits], dtype=bool)]
        for sha256, split in zip(kept["sha256"], kept["split"], strict=True):
            assert sides.setdefault(sha256, split) == split
        both = pd.concat([kept, before.frame.assign(old=True)], ignore_index=True)
        component = components(len(both), near_duplicates(both["phash"].tolist(), BITS), both["group"].tolist())
        for part in set(component[: len(kept)].tolist()):
            members = both[component == part]
            if not members["old"].all():
                assert members["split"].nunique() == 1
        within = components(len(kept), near_duplicates(kept["phash"].tolist(), BITS), kept["group"].tolist())
        assert (kept.groupby(within)["split"].nunique() <= 1).all() if len(kept) else True
        ledger = ledger.joined(kept)
        assert placed(frame, ledger, seed).splits == found.splits  # the same source again is the same version

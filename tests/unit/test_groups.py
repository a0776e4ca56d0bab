"""One patient or part is one group, however its name is spelled; numbers that differ stay apart."""

import pytest

from clipft_tasks.contracts.erasure import Erasure, salted
from clipft_tasks.data.groups import same_group
from clipft_tasks.data.splits import components
from clipft_tasks.data.tombstones import Tombstones


@pytest.mark.parametrize(
    "spellings",
    [
        ["P-01", "p-01", "P01", "P 1", "p_001 "],
        ["7", "07", "007", "7.0"],
        ["Müller", "Mu\u0308ller", "MÜLLER"],
        ["Los 12", "LOS12", "los-012"],
        ["２０", "20"],
        ["2024-03-01", "2024-3-1"],
    ],
)
def test_spellings_of_one_name_are_one_group(spellings):
    assert len({same_group(name) for name in spellings}) == 1
    assert len(set(components(len(spellings), [], spellings).tolist())) == 1


@pytest.mark.parametrize(
    "names", [["1-11", "11-1", "111"], ["P1", "P10", "P100"], ["1.5", "15"], ["A-1", "B-1"], ["0", "00 b"]]
)
def test_other_names_stay_apart(names):
    assert len({same_group(name) for name in names}) == len(names)


def test_a_group_that_was_erased_does_not_come_back_under_another_spelling():
    salt = "00" * 16
    one, before = (
        Erasure(id=g, at="", by="", domain="general", chosen=[], salt=salt, groups=[salted(salt, g)]) for g in ("p1", "Q-2")
    )
    erased = Tombstones([one, before])  # the latter as releases before wrote it
    assert erased.holds("", "P-01") and erased.holds("", "p01") and erased.holds("", "Q-2")
    assert not erased.holds("", "P-02")

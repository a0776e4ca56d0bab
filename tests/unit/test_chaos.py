"""What `clipft ops chaos` strikes and when is its seed's; what it compares, it tells apart."""

from collections import Counter

from clipft_tasks.ops.chaos import state
from clipft_tasks.ops.chaos.strikes import BRIEF, DURING, KINDS, LONGEST, POWER, TASK, draw
from clipft_tasks.stages.chain import CHAIN


def test_a_seed_strikes_the_same_and_every_kind_before_any_twice():
    drawn = draw(0, 20, 5, 5)
    assert drawn == draw(0, 20, 5, 5) != draw(1, 20, 5, 5)
    kinds = Counter(strike.kind for strike in drawn)
    assert kinds.pop(POWER) == 5 and kinds.keys() == set(KINDS) and max(kinds.values()) == 2
    assert {strike.round for strike in drawn} == {1, 2, 3, 4, 5}
    assert all(strike.delay <= (BRIEF if strike.kind == TASK else LONGEST) for strike in drawn)
    assert all(strike.task in DURING[strike.dag] and strike.task in CHAIN for strike in drawn)


def test_what_is_otherwise_than_undisturbed_is_said_by_name():
    expected = {"runs": [["FINISHED"]], "models": {"1": {"aliases": []}, "2": {"aliases": ["champion"]}}}
    assert state.differences(expected, expected) == []
    found = {"runs": [["FINISHED", "RUNNING"]], "models": {"1": {"aliases": ["champion"]}}}
    said = state.differences(expected, found)
    assert len(said) == 3 and "RUNNING" in said[0] and said[1].startswith("models, 1:") and "null instead of" in said[2]

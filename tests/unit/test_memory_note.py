"""A training that was killed without a word takes smaller passes the next time, where it was its memory, as far as can be told."""

import pytest
from conftest import a_plan

from clipft_tasks.train.memory_note import MemoryNote


@pytest.fixture
def plan():
    return a_plan([32], micro_batch={32: 16})


def sizes(folder, plan) -> dict[int, int]:
    return MemoryNote(folder).smaller(plan).micro_batch.value


def killed(folder, *seen: int) -> None:
    note = MemoryNote(folder)
    note.begin()
    for in_use in seen:
        note.saw(in_use)


def test_a_first_try_and_one_that_ended_with_words_change_nothing(tmp_path, plan):
    assert sizes(tmp_path, plan) == {32: 16}
    killed(tmp_path, int(0.9 * plan.memory_limit))
    MemoryNote(tmp_path).end()
    assert sizes(tmp_path, plan) == {32: 16}


def test_one_that_was_killed_with_nearly_all_in_use_or_before_a_step_is_halved(tmp_path, plan, capsys):
    killed(tmp_path, int(0.5 * plan.memory_limit), int(0.9 * plan.memory_limit))
    smaller = MemoryNote(tmp_path).smaller(plan)
    assert smaller.micro_batch.value == {32: 8} and "ended without a word" in smaller.micro_batch.reason
    assert "half as many pairs a pass" in capsys.readouterr().out
    killed(tmp_path)
    assert sizes(tmp_path, smaller) == {32: 4}
    (tmp_path / "under_way.json").write_text("")
    assert sizes(tmp_path, smaller) == {32: 4}


def test_one_that_was_killed_with_room_keeps_its_plan(tmp_path, plan):
    killed(tmp_path, int(0.5 * plan.memory_limit))
    assert sizes(tmp_path, plan) == {32: 16}
    single = a_plan([32], micro_batch={32: 1})
    killed(tmp_path)
    assert sizes(tmp_path, single) == {32: 1}

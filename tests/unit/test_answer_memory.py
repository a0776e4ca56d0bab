"""Answers that feedback refers to: there after a restart and for other processes, judged once, gone when too old or erased."""

import time
from types import SimpleNamespace

import pytest

from serving.inference import answer_memory
from serving.inference.answer_memory import Answer, AnswerMemory
from serving.inference.errors import UnknownAnswerError
from serving.inference.metrics import Metrics
from serving.inference.monitor import Judgment, Monitor

CAT = Answer("general", "3", ["cat", "dog"])


def test_an_answer_outlives_a_restart_and_each_image_is_judged_once(tmp_path):
    first = AnswerMemory(tmp_path / "deep" / "answers.db")
    first.remember("one", CAT)
    assert first.get("one") == CAT and first.get("two") is None
    assert first.judge("one", 1) and not first.judge("one", 1)
    first.close()
    again, beside = (AnswerMemory(tmp_path / "deep" / "answers.db") for _ in range(2))
    assert again.get("one") == CAT
    assert not again.judge("one", 1) and beside.judge("one", 0) and not again.judge("one", 0)
    assert again.forget("one") and not beside.forget("one") and beside.get("one") is None


def test_what_is_too_old_or_too_much_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_memory, "BETWEEN", 1)
    memory = AnswerMemory(tmp_path / "answers.db", days=1, most=3)
    memory.remember("old", CAT)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * 86400)
    memory.remember("new", CAT)
    assert memory.get("old") is None and memory.get("new")
    for i in range(4):
        monkeypatch.setattr(time, "time", lambda i=i: now + 2 * 86400 + i + 1)
        memory.remember(f"next {i}", CAT)
    assert [name for name in ("new", *(f"next {i}" for i in range(4))) if memory.get(name)] == ["next 1", "next 2", "next 3"]


@pytest.mark.parametrize("broken", ["a file where the folder should be", "no database"])
def test_where_the_file_cannot_be_used_answers_are_remembered_in_memory(tmp_path, broken, caplog):
    path = tmp_path / "answers.db"
    if broken == "no database":
        path.write_text("not a database at all, but long enough to be looked at as one" * 20)
    else:
        (tmp_path / "there").write_text("")
        path = tmp_path / "there" / "answers.db"
    memory = AnswerMemory(path)
    memory.remember("one", CAT)
    assert memory.get("one") == CAT and "until the next restart only" in caplog.text


def test_feedback_of_next_week_finds_its_answer_in_a_new_process_and_counts_for_the_version_that_gave_it(tmp_path, monkeypatch):
    def monitor() -> Monitor:
        kept = AnswerMemory(tmp_path / "answers.db")
        return Monitor(Metrics(), every=0, size=64, least=16, seconds=1e6, rate=5, answers=kept)

    first = monitor()
    first.remember_answer(SimpleNamespace(domain="general", version="3"), "one", ["cat", "dog"])
    first.close()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7 * 86400)
    second = monitor()
    assert second.add_feedback("one", 1, "cat") == Judgment("general", "3", "dog", True)
    assert second.add_feedback("one", 1, "cat").is_new is False
    for request, index in (("one", 2), ("two", 0)):
        with pytest.raises(UnknownAnswerError):
            second.add_feedback(request, index, "cat")
    second.close()

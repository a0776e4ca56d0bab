"""Windows that outlive a restart: the same rows, the same measurement, without what somebody asked to forget."""

import sqlite3
import time
from types import SimpleNamespace

import numpy as np
import pytest
from fixtures.references import a_reference, captions, looked

from clipft_tasks.drift.window import Window
from serving.inference.answer_memory import AnswerMemory
from serving.inference.metrics import Metrics
from serving.inference.monitor import Monitor
from serving.inference.window_memory import ANSWER, WindowMemory


def filled(window: Window | None = None) -> Window:
    window = window or Window(a_reference())
    for number in range(4):
        rows = looked(20, number)
        window.add_images(rows.image, rows.appearance, rows.similarity, f"answer {number}")
    window.add_texts(captions(70, 6), "answer 0")
    window.add_pairs([0.2, 0.4], "answer 1")
    window.add_feedback(True, "answer 2")
    window.add_feedback(False)
    return window


def same(a: Window, b: Window) -> bool:
    first, second = a.measure(), b.measure()
    return (first.drift.keys(), first.images, first.texts, first.pairs, first.feedback) == (
        second.drift.keys(), second.images, second.texts, second.pairs, second.feedback
    ) and all(first.drift[name] == pytest.approx(second.drift[name], rel=1e-4, abs=1e-4) for name in first.drift)  # fmt: skip


def test_a_window_is_read_back_as_it_was_and_only_what_is_new_is_written(tmp_path):
    memory, window = WindowMemory(tmp_path / "answers.db"), filled()
    memory.save("general", "3", window)
    rows = looked(5, 9)
    window.add_images(rows.image, rows.appearance, rows.similarity, "answer 9")
    memory.save("general", "3", window)
    memory.close()
    again, back = WindowMemory(tmp_path / "answers.db"), Window(a_reference())
    again.load("general", "3", back)
    assert same(window, back) and back.forget("answer 9") == 5
    for number in range(2 * window.size):
        back.add_texts(captions(1, number))
    again.save("general", "3", back)
    last = Window(a_reference())
    again.load("general", "3", last)
    assert last.measure().texts == window.size and last.kept()[-1].mark.number == back.kept()[-1].mark.number
    other = Window(a_reference())
    again.load("general", "4", other)
    assert not other.kept()
    again.close()


def test_what_is_forgotten_or_too_old_or_of_another_shape_does_not_come_back(tmp_path, monkeypatch):
    path = tmp_path / "answers.db"
    memory, window = WindowMemory(path), filled()
    memory.save("general", "3", window)
    assert window.forget("answer 0") == 90
    memory.forget("answer 0")
    back = Window(a_reference())
    memory.load("general", "3", back)
    assert same(window, back) and b"answer 0" not in b"".join(p.read_bytes() for p in tmp_path.iterdir() if p.suffix == ".db")
    beside = WindowMemory(path)  # another process of this home
    beside.save("general", "9", filled())
    beside.close()
    with sqlite3.connect(path) as db:
        assert db.execute("select count(*) from row where version = '9'").fetchone() == (0,)
        db.execute("update row set data = x'04000000' || data where kind = 'texts'")
        db.execute("update row set data = ? where kind = 'pairs'", (np.array([2, 0, 0], np.uint32).tobytes(),))
    strange = Window(a_reference())
    memory.load("general", "3", strange)
    assert not strange.kept()  # it begins anew
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + window.seconds + 1)
    memory.load("general", "3", Window(a_reference()))
    with sqlite3.connect(path) as db:
        assert db.execute("select count(*) from row").fetchone() == (0,)
    memory.close()


def test_a_server_goes_on_with_the_windows_of_the_one_before_and_a_new_version_begins_with_none(tmp_path):
    reference = a_reference()

    def monitor() -> Monitor:
        kept = {"answers": AnswerMemory(tmp_path / "answers.db"), "windows": WindowMemory(tmp_path / "answers.db")}
        return Monitor(Metrics(), every=0, size=64, least=16, seconds=1e6, rate=5, **kept)

    def model(version: str) -> SimpleNamespace:
        return SimpleNamespace(domain="general", version=version, reference=reference)

    first, three = monitor(), model("3")
    first.watch(three)
    ANSWER.set("one")
    rows = looked(20, 1)
    first.add_images(three, rows.image, rows.appearance, rows.similarity)
    ANSWER.set("two")
    first.add_texts(three, captions(3, 1))
    first.close()

    second = monitor()
    second.watch(three_again := model("3"))
    counts = second.measure("general")
    assert (counts.images, counts.texts) == (20, 3)
    assert second.forget("one") and not second.forget("one")
    assert second.measure("general").images == 0
    second.add_texts(three_again, captions(2, 1))
    second.watch(model("4"))
    second.watch(model("3"))  # rolled back to: what it saw before was another time
    assert second.measure("general").texts == 0
    second.close()
    third = monitor()
    third.watch(model("3"))
    assert third.measure("general").texts == 0
    third.close()

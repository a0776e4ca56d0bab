"""The key of pseudonyms: made once, whole, kept by backups, watched by the doctor."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
from fixtures.errors import refuses

from clipft_tasks.core.settings import settings
from clipft_tasks.data import pseudonyms
from clipft_tasks.ops import backup, restore
from clipft_tasks.ops.doctor import machine


def test_the_key_is_made_once_whoever_asks_first(home):
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(lambda _: pseudonyms.key(), range(64)))) == 1
    assert len(pseudonyms.key_path().read_bytes()) == 32 and pseudonyms.key_path().stat().st_mode & 0o777 == 0o600


def test_processes_that_begin_at_once_agree_on_the_key(home):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert len({one.get() for one in [pool.apply_async(pseudonyms.pseudonym, ("12345",)) for _ in range(8)]}) == 1


@pytest.mark.parametrize("held", [b"", b"short", b"x" * 33])
def test_a_key_that_is_not_whole_is_never_used_and_never_replaced(home, held):
    settings().folder()
    pseudonyms.key_path().write_bytes(held)
    pseudonyms.key_path().chmod(0o600)
    with refuses("pseudonyms.damaged_key", "bytes instead of 32") as error:
        pseudonyms.pseudonym("12345")
    assert error.value.code == "pseudonyms.damaged_key" and pseudonyms.key_path().read_bytes() == held
    assert "pseudonyms.key is damaged" in machine.modes()[1]


def test_the_doctor_sees_a_key_that_others_can_read(home):
    pseudonyms.key()
    assert machine.modes()[0] == "ok"
    pseudonyms.key_path().chmod(0o644)
    assert "pseudonyms.key can be read by others" in machine.modes()[1]


def test_a_patient_is_the_same_after_backup_and_restore(home, tmp_path, monkeypatch):
    before = pseudonyms.pseudonym("12345")
    backup.backup(tmp_path / "monday")
    monkeypatch.setenv("CLIPFT_HOME", str(tmp_path / "fresh"))
    settings.cache_clear()
    restore.restore(tmp_path / "monday")
    assert pseudonyms.pseudonym("12345") == before
    assert pseudonyms.key_path().stat().st_mode & 0o777 == 0o600


def test_a_restore_does_not_replace_a_key_that_is_in_use(home, tmp_path, monkeypatch):
    pseudonyms.key()
    backup.backup(tmp_path / "monday")
    monkeypatch.setenv("CLIPFT_HOME", str(tmp_path / "fresh"))
    settings.cache_clear()
    other = pseudonyms.key()
    with refuses("restore.not_empty", "pseudonyms.key"):
        restore.restore(tmp_path / "monday")
    assert pseudonyms.key() == other

"""A file is the one before or the new one, never a part."""

import os
import stat
import threading

import pytest

from clipft_tasks.core.files import atomic_path, atomic_write


def test_text_and_bytes_are_written_and_folders_made(tmp_path):
    atomic_write(tmp_path / "a" / "b.txt", "grün")
    atomic_write(tmp_path / "a" / "b.bin", b"\x00\xff", durable=True)
    assert (tmp_path / "a" / "b.txt").read_bytes() == "grün".encode()
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00\xff"
    assert len(list((tmp_path / "a").iterdir())) == 2


def test_a_failure_leaves_the_file_before_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    atomic_write(path, "before")
    with pytest.raises(RuntimeError), atomic_path(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_asked_for_or_the_umasks(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "usual", "x")
        atomic_write(tmp_path / "secret", "x", mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "usual").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_writers_at_once_leave_one_whole_file(tmp_path):
    path, texts = tmp_path / "shared", [str(i) * 20_000 for i in range(8)]
    threads = [threading.Thread(target=atomic_write, args=(path, text)) for text in texts for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]

"""A file is the one before or the new one, never a part."""

import os
import stat
import threading

import pytest

from clipft_tasks.core.files import atomic_folder, atomic_path, atomic_write, evict


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


def test_what_a_killed_writer_left_is_removed_by_one_that_is_alone(tmp_path):
    for name in (".a[1].npy.x1.part", ".a[1].npy.x2.part", ".b.npy.x3.part"):
        (tmp_path / name).write_bytes(b"half")
    with atomic_path(tmp_path / "a[1].npy", alone=True) as part:
        part.write_bytes(b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a[1].npy", ".b.npy.x3.part"}


def test_a_folder_takes_its_place_whole_or_not_at_all(tmp_path):
    place = tmp_path / "package"
    for content in ("first", "second"):
        with atomic_folder(place) as building:
            assert not list(building.iterdir())
            (building / f"{content}.txt").write_text(content)
        assert [p.name for p in place.iterdir()] == [f"{content}.txt"]
    with pytest.raises(ValueError, match="cut short"), atomic_folder(place) as building:
        (building / "third.txt").write_text("third")
        raise ValueError("cut short")
    assert [p.name for p in place.iterdir()] == ["second.txt"] and list(tmp_path.iterdir()) == [place]
    (tmp_path / "package.building").mkdir()
    (tmp_path / "package.building" / "left.txt").write_text("by a killed process")
    with atomic_folder(place) as building:
        assert not list(building.iterdir())


def test_what_was_used_longest_ago_is_evicted_first_and_what_is_kept_stays(tmp_path):
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))

    def left(limit: int, keep: str = "") -> str:
        evict(tmp_path.iterdir(), limit, lambda file: file.name in keep)
        return "".join(sorted(p.name for p in tmp_path.iterdir()))

    assert (
        left(400) == "abcd"
        and left(399) == "abc"
        and left(150, keep="bc") == "bc"
        and left(0, keep="c") == "c"
        and left(0) == ""
    )

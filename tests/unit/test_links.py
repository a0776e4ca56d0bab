"""Paths below a source's folder lead where the system says that they lead."""

from pathlib import Path

import pytest

from clipft_tasks.data.images import BadImageError
from clipft_tasks.data.readers.base import find_inside
from clipft_tasks.data.readers.links import Root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "a" / "b").mkdir(parents=True)
    for name in ("x.png", "a/x.png", "a/b/x.png", "a\\x.png"):
        (folder / name).write_bytes(name.encode())
    (folder / "linked").symlink_to("a", target_is_directory=True)
    (folder / "link.png").symlink_to("a/b/x.png")
    (tmp_path / "outside.png").write_bytes(b"outside")
    (folder / "away.png").symlink_to(tmp_path / "outside.png")
    return folder


NAMES = ["x.png", "./x.png", "a//b/x.png", "a/./x.png", "a/../x.png", "linked/x.png", "linked/../x.png", "link.png", "a\\x.png", "a/b/x.png/"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_file_is_found_where_the_system_finds_it(root, name, absolute):
    asked = f"{root}/{name}" if absolute else name
    path, about = find_inside(Root(root), asked, 10**6)
    assert path == str((root / name).resolve()) and about == Path(path).stat() and path.startswith(f"{root.resolve()}/")


@pytest.mark.parametrize(
    "name", ["../outside.png", "away.png", "a/../../outside.png", "/etc/hostname", "a", "..", ".", "", "b.png", "x.png\0"]
)
def test_what_is_elsewhere_or_no_file_is_refused(root, name):
    with pytest.raises(BadImageError):
        find_inside(Root(root), name, 10**6)


def test_a_windows_path_is_read_as_one(root):
    (root / "a\\x.png").unlink()
    assert find_inside(Root(root), "a\\x.png", 10**6)[0] == str(root.resolve() / "a" / "x.png")

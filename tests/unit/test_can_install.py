"""What stands in the way of an installation is said before anything is installed, by any Python."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import can_install

HERE = {
    "version": (3, 12, 1), "system": "Darwin", "machine": "arm64", "macos": "15.5", "translated": False, "free_gib": 20.0, "target": "demo",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"system": "Linux", "machine": "x86_64", "macos": ""}, ""),
        ({"version": (3, 9, 6)}, "Python 3.9 is not one of 3.11 to 3.13. Install one and run: make PYTHON=python3.12 demo"),
        ({"version": (3, 14, 0)}, "Python 3.14"),
        ({"machine": "x86_64", "translated": True}, "Rosetta translates"),
        ({"machine": "x86_64"}, "Macs with an Intel processor"),
        ({"macos": "13.7.8"}, "macOS 13.7.8 is older than 14"),
        ({"macos": "26.5.2"}, ""),
        ({"free_gib": 5.0}, ""),
        ({"free_gib": 3.2}, "3.2 GiB are free here and the packages need 4"),
        ({"system": "Linux", "machine": "x86_64", "macos": "", "free_gib": 5.0}, "the packages need 9"),
    ],
)
def test_what_is_in_the_way(changed, said):
    found = can_install.problem(**HERE | changed)
    assert found.startswith(said) or said in found
    assert bool(found) == bool(said)


def test_it_runs_as_make_runs_it_and_an_old_python_can_read_it():
    path = Path(can_install.__file__)
    done = subprocess.run([sys.executable, "-I", str(path), "demo"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or done.stderr.startswith("Error: ")
    ast.parse(path.read_text(), feature_version=(3, 7))

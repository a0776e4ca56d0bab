"""Every command in the pages runs, as it stands there, in the installation that `make demo` left."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
PAGES = sorted((PROJECT / "docs").glob("*.md"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_the_commands_of_a_page_run(page, demo, installation, tmp_path):
    env = installation.environment() | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    env["PYTHONPATH"] = str(PROJECT)
    for block in blocks(page):
        script = "set -euo pipefail\n" + block
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{block}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def test_pages_link_only_to_files_that_are_there():
    for page in [PROJECT / "README.md", *PAGES]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_makefile_explains_every_target():
    told = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), flags=re.M)
    assert targets and all(f"make {t} " in told for t in targets)

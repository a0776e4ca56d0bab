"""The public API is what docs/api.md says, and the documentation site builds whole and without network."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PUBLIC = re.findall(r"^::: ([\w.]+)$", (PROJECT / "docs" / "api.md").read_text(), flags=re.M)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_is_there_and_says_what_it_is(name):
    module = importlib.import_module(name)
    assert module.__doc__ and module.__all__
    for public in module.__all__:
        found = getattr(module, public)
        if inspect.isclass(found) or inspect.isroutine(found):
            assert vars(found).get("__doc__") if inspect.isclass(found) else found.__doc__, f"{name}.{public} has no docstring"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(PROJECT), "http_proxy": "http://127.0.0.1:9"}
    env |= {"https_proxy": env["http_proxy"]}  # nothing answers there
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_page_is_in_the_navigation_and_loads_nothing_from_elsewhere(site):
    pages = {p.relative_to(PROJECT / "docs").with_suffix("") for p in (PROJECT / "docs").rglob("*.md")}
    assert pages == {p.relative_to(site).with_suffix("") for p in site.rglob("*.html")} - {Path("404")}
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(?:https?:)?//""", text), page.name
        assert not re.findall(r"""<link(?![^>]*canonical)[^>]*\shref=["']?(?:https?:)?//""", text), page.name
    assert (site / "search" / "search_index.json").stat().st_size > 10_000


def test_the_site_has_the_fields_of_a_run_the_records_and_the_public_names(site):
    records = {p.stem for p in (PROJECT / "clipft_tasks" / "contracts").glob("[a-z]*.py")}
    assert all(f'id="clipft_tasks.contracts.{name}"' in (site / "records.html").read_text() for name in records)
    assert "<code>train.epochs</code>" in (site / "spec.html").read_text()
    text = (site / "api.html").read_text()
    assert all(f'id="{name}"' in text for name in PUBLIC) and 'id="clipft_tasks.objectives.Pairs"' in text

"""What stands in several files of the project agrees, and what a user looks for is there."""

import dataclasses
import functools
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel

import clipft_tasks
from clipft_tasks.cli import main
from clipft_tasks.core.settings import Settings
from clipft_tasks.domains import Domain
from clipft_tasks.spec import RunSpec, form
from deploy.local.environment import PORTS
from serving.inference.settings import ServingSettings

PROJECT = Path(__file__).resolve().parents[2]


def test_one_version_everywhere():
    assert CliRunner().invoke(main, ["--version"]).output == f"clipft, version {clipft_tasks.__version__}\n"
    assert version("clipft") == clipft_tasks.__version__
    assert yaml.safe_load((PROJECT / "CITATION.cff").read_text())["version"] == clipft_tasks.__version__
    assert f"CLIPFT_IMAGE_TAG:-{clipft_tasks.__version__}}}" in (PROJECT / "docker-compose.yaml").read_text()


def test_the_license_is_the_one_that_the_package_names():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert project["license"] == citation["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (PROJECT / "LICENSE").read_text()
    assert set(project["license-files"]) == {"LICENSE", "NOTICE"}


def test_both_packages_tell_type_checkers_that_they_are_typed():
    files = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("clipft_tasks", "serving"):
        assert (PROJECT / package / "py.typed").is_file() and "py.typed" in files[package]


PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in ("CHANGELOG.md", "errors.md")], ids=lambda p: p.stem)
def test_what_a_page_names_is_there(page):
    """Links, paths in backquotes, and modules after `python -m`."""
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for path in re.findall(r"`((?:bench|clipft_tasks|dags|deploy|docs|examples|plugins|serving|tests)/[\w./-]*)", text):
        assert (PROJECT / path).exists(), f"{page.name} names {path}"
    for module in re.findall(r"python -m ((?:bench|clipft_tasks|deploy|examples|serving)\.[\w.]*\w)", text):
        place = PROJECT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), f"{page.name} names {module}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in ("CHANGELOG.md", "errors.md")], ids=lambda p: p.stem)
def test_fields_settings_and_commands_that_a_page_names_exist(page):
    """Fields of a run in backquotes (`train.epochs`), of a domain (`Domain.prompts`), environment variables, `clipft …`, `make …`."""
    text = page.read_text()
    sections = {name for name, field in RunSpec.model_fields.items() if isinstance(field.default, BaseModel)}
    fields = set(form())
    for section, name in re.findall(r"`(?:--)?(\w+)\.(\w+)(?=[`\s=])", text):
        if page.name == "errors.md":  # codes of errors are written alike
            continue
        assert section not in sections or f"{section}.{name}" in fields or name in ("json", "py"), (
            f"{page.name} names {section}.{name}"
        )
    for name in re.findall(r"`Domain\.(\w+)", text):
        assert name in {f.name for f in dataclasses.fields(Domain)}, f"{page.name} names Domain.{name}"
    for name in re.findall(r"CLIPFT_[A-Z_]*[A-Z]\b", text):
        assert name in known_settings(), f"{page.name} names {name}"
    for command, further in re.findall(r"`clipft ([a-z]+)(?: ([a-z]+))?", text):
        assert command in main.commands, f"{page.name} names clipft {command}"
        group = main.commands[command]
        if isinstance(group, click.Group) and further:
            assert further in group.commands, f"{page.name} names clipft {command} {further}"
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), flags=re.M)
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert target in targets, f"{page.name} names make {target}"


@functools.cache
def known_settings() -> set[str]:
    """Environment variables that the software reads or sets: fields of a settings class, or spelled out somewhere."""
    sources = [
        p for top in ("clipft_tasks", "serving", "deploy", "plugins", "dags") for p in (PROJECT / top).rglob("*") if p.is_file()
    ]
    text = "\n".join(p.read_text(errors="ignore") for p in [*sources, PROJECT / "docker-compose.yaml", PROJECT / "Makefile"])
    prefixed = {f"CLIPFT_{name.upper()}" for name in Settings.model_fields}
    serving = {f"CLIPFT_SERVING_{name.upper()}" for name in ServingSettings.model_fields}
    ports = {f"CLIPFT_{program.upper()}_PORT" for program in PORTS}
    return prefixed | serving | ports | set(re.findall(r"CLIPFT_[A-Z_]*[A-Z]\b", text))


def tree() -> set[str]:
    """The paths that the tree of docs/architecture.md names."""
    text = re.search(r"## The tree\n\n```\n(.*?)```", (PROJECT / "docs" / "architecture.md").read_text(), flags=re.S)[1]
    found, folders = set(), []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        folders = [(depth, name) for depth, name in folders if depth < indent]
        for name in re.match(r"\s*((?:[\w.\-/]+(?:, )?)+)", line)[1].split(", "):
            path = "/".join([folder for _, folder in folders] + [name.strip("/")])
            found.add(path)
        if name.endswith("/"):
            folders.append((indent, name.strip("/")))
    return found


def test_the_tree_names_what_is_there_and_every_package():
    named = tree()
    assert {path for path in named if not (PROJECT / path).exists()} == set()
    packages = {p.parent for top in ("clipft_tasks", "serving", "deploy") for p in (PROJECT / top).rglob("*/__init__.py")}
    assert {str(p.relative_to(PROJECT)) for p in packages} <= named

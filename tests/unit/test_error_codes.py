"""Each error that a person can mend has a code of its own meaning, and docs/errors.md lists them all."""

import ast
import re
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from clipft_tasks.cli.main import main
from clipft_tasks.server.client import ServerClient, ServerRefusalError
from serving.http.problems import TITLES

PROJECT = Path(__file__).resolve().parents[2]
FOLDERS = ("clipft_tasks", "serving", "deploy", "plugins", "dags", "examples", "bench")
ERRORS = ("ClipftError", "ServerRefusalError", "RefusedError")
DEFAULTS = {"server.refused", "worker.gateway_refused"}  # where an answer of another release says none
FORM = re.compile(r"[a-z]+\.[a-z_]+")


def codes_of(call: ast.Call) -> list[str] | None:
    """The codes written in a call; none where it hands on that of another error; None where it has neither."""
    given = next((k.value for k in call.keywords if k.arg == "code"), None)
    choices = [given.body, given.orelse] if isinstance(given, ast.IfExp) else [given]
    literals = [n.value for n in choices if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    handed_on = isinstance(given, ast.Attribute | ast.Call)  # `error.code`, or what an answer says
    return literals if len(literals) == len(choices) or handed_on else None


def raised() -> tuple[dict[str, str], list[str]]:
    """Where each code is raised, and the places that raise none."""
    codes: dict[str, str] = {}
    without = []
    for path in sorted(p for folder in FOLDERS for p in (PROJECT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            place = f"{path.relative_to(PROJECT)}:{node.lineno}"
            if isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                found = codes_of(node)
                if found is None:
                    without.append(place)
                codes |= dict.fromkeys(found or [], place)
    return codes, without


def listed() -> list[str]:
    return re.findall(r"^\| `([^`]+)` \| \S", (PROJECT / "docs" / "errors.md").read_text(), re.MULTILINE)


def test_the_cli_prints_the_code_at_the_end_of_the_sentence(home):
    done = CliRunner().invoke(main, ["drift", "industry"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: ") and "industry" in done.output and done.output.endswith(" [domain.not_found]\n")


def test_the_server_hands_on_the_code_that_it_refuses_with(monkeypatch):
    def refuse(method: str, url: str, **kwargs: object) -> httpx.Response:
        return httpx.Response(409, json={"detail": "it is not whole", "code": "package.invalid"})

    monkeypatch.setattr(httpx, "request", refuse)
    with pytest.raises(ServerRefusalError) as refused:
        ServerClient("http://nowhere").load("general", "1")
    assert refused.value.code == "package.invalid" and refused.value.status == 409


def test_each_raise_has_a_code_that_stands_in_the_page():
    codes, without = raised()
    assert not without, f'these lack a literal code="room.name": {without}'
    assert not [code for code in codes if not FORM.fullmatch(code)]
    missing = {code: place for code, place in codes.items() if code not in listed()}
    assert not missing, f"docs/errors.md has no row for these: {missing}"


def test_the_page_lists_each_code_once_in_order_and_none_that_is_not_raised():
    codes, _ = raised()
    page = listed()
    assert page == sorted(set(page))
    assert set(page) == set(codes) | DEFAULTS | set(TITLES)

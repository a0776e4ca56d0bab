"""Airflow's own pages as people meet them, in a browser: each form is filled by hand, and who may only look changes nothing."""

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import write_images, write_tiny
from fixtures.browser import Visit, chromium, visit
from playwright.sync_api import Page, Request, Route, expect

from clipft_tasks.spec import RunSpec
from e2e.conftest import PROJECT, cookies_of, token_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DESK = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as opened:
        yield opened


@pytest.fixture
def at(browser, airflow, installation):
    """Opens a page of Airflow as the person who is logged in already."""
    kept, cookies = [], cookies_of(installation, installation.USER)

    def go(path: str) -> Visit:
        opened = visit(browser, airflow.url + path, viewport=DESK, storage_state=cookies)
        kept.append(opened)
        return opened.__enter__()

    yield go
    for opened in kept:
        opened.__exit__(None, None, None)


# Forms ----------------------------------------------------------------------------------------------------------------


def fill(page: Page, field: str, value: object) -> None:
    """Enter a value as a person does: choose it in a menu, type it, a line an entry, or press a switch."""
    box = page.locator(f'[id="element_{field}"], [name="element_{field}"]').first
    if isinstance(value, bool):
        switch = page.locator(f'input[name="element_{field}"]')
        if switch.is_checked() != value:
            switch.press("Space")
        return
    box.scroll_into_view_if_needed()
    tag = box.evaluate("e => e.tagName")
    entry = box if tag in ("INPUT", "TEXTAREA") else box.locator("input, textarea").first
    if tag not in ("INPUT", "TEXTAREA") and entry.get_attribute("role") == "combobox":
        for one in value if isinstance(value, list) else [value]:
            entry.fill(str(one))
            page.keyboard.press("Enter")
        return
    entry.fill("\n".join(map(str, value)) if isinstance(value, list) else str(value))
    entry.blur()


def form_of(page: Page) -> Page:
    page.get_by_test_id("trigger-dag-button").first.click()
    page.get_by_test_id("trigger-dag-submit").wait_for()
    return page


def section(page: Page, name: str) -> None:
    """Open a section of the form."""
    page.get_by_role("button", name=name, exact=True).click()


def sent(page: Page, answer: bool = False) -> dict[str, object]:
    """Press Trigger; returns the conf that Airflow is asked for. Nothing starts unless it is to be answered."""
    asked: list[dict[str, object]] = []

    def take(route: Route, request: Request) -> None:
        if request.method == "PATCH":  # the form would also switch a paused DAG on
            return route.abort()
        if request.method != "POST":
            return route.continue_()
        asked.append(json.loads(request.post_data or "{}")["conf"])
        return route.continue_() if answer else route.abort()

    page.route(re.compile(r"/api/v2/dags/[^/]+(/dagRuns)?$"), take)
    page.get_by_test_id("trigger-dag-submit").click()
    until = time.monotonic() + 20
    while not asked and time.monotonic() < until:
        page.wait_for_timeout(50)
    assert asked, page.locator("[role=dialog]").inner_text()
    return asked[0]


FORMS = [
    ("clipft_finetune", [
        ("", {"domain": "medical", "dataset": "medical/v1", "model.start": "starter", "train.epochs": 6, "approval.required": True}),
        ("Gate", {"gate.rules": ["gain(score) >= 0", "forgetting <= 0.05"]}),
        ("Resolutions", {"resolution.evaluate": [96, 128]}),
    ]),
    ("clipft_readapt", [("", {"domain": "industrial", "train.epochs": 2, "signals": ["image", "prediction"]})]),
    ("clipft_compare", [("", {"models": ["industrial@champion", "models:/clipft-industrial/1"], "dataset": "newest"})]),
    ("clipft_rollback", [("", {"domain": "general", "version": "3"})]),
    ("clipft_maintenance", [("", {"folder": "/backups"})]),
    ("clipft_retrain", [("", {"domains": ["medical", "general"]})]),
    ("clipft_drift_watch", [("", {"domains": ["industrial"], "wait_minutes": 5, "approval": False})]),
]  # fmt: skip


@pytest.mark.parametrize(("dag", "filled"), FORMS, ids=[dag for dag, _ in FORMS])
def test_a_form_asks_for_what_a_person_filled_in(at, dag, filled):
    page = form_of(at(f"/dags/{dag}").page)
    for name, values in filled:
        if name:
            section(page, name)
        for field, value in values.items():
            fill(page, field, value)
    conf = sent(page)
    wanted = {field: value for _, values in filled for field, value in values.items()}
    assert {field: conf[field] for field in wanted} == {
        field: [str(each) for each in value] if isinstance(value, list) else value for field, value in wanted.items()
    }
    if dag == "clipft_finetune":  # and what nobody touched is the domain's choice
        spec = RunSpec.from_flat({k: v for k, v in conf.items() if v is not None})
        assert spec.resolution.evaluate == [96, 128] and len(spec.gate.rules) == 2 and spec.train.batch == RunSpec.from_flat(
            {"domain": "medical"}
        ).train.batch  # fmt: skip


def test_a_person_makes_a_data_set_of_their_own_images(at, airflow, tmp_path):
    source = write_images(tmp_path / "mine")
    page = form_of(at("/dags/clipft_dataset").page)
    fill(page, "domain", "general")
    fill(page, "source", str(source))
    section(page, "Start model")
    fill(page, "model.start", str(write_tiny(tmp_path / "tiny")))
    sent(page, answer=True)

    def own() -> dict[str, Any]:  # others made data sets of theirs
        runs = airflow.call("GET", "/dags/clipft_dataset/dagRuns?limit=100")["dag_runs"]
        return next((run for run in runs if (run["conf"] or {}).get("source") == str(source)), {"state": "not there"})

    until = time.monotonic() + 300
    while (run := own())["state"] not in ("success", "failed") and time.monotonic() < until:
        time.sleep(1)
    assert run["state"] == "success"
    told = airflow.call("GET", f"/dags/clipft_dataset/dagRuns/{run['dag_run_id']}")
    assert told["note"].startswith("general/v") and "images" in told["note"]


@pytest.mark.parametrize("forgotten", [{"domain": "general"}, {"source": "/images"}, {"domain": "general", "source": "  "}])
def test_a_form_without_what_it_needs_starts_nothing(at, airflow, forgotten):
    before = len(airflow.call("GET", "/dags/clipft_dataset/dagRuns?limit=100")["dag_runs"])
    page = form_of(at("/dags/clipft_dataset").page)
    for field, value in forgotten.items():
        fill(page, field, value)
    submit = page.get_by_test_id("trigger-dag-submit")
    if submit.is_enabled():
        submit.click()
        expect(page.get_by_text(re.compile("source|domain", re.I)).first).to_be_visible()
        page.wait_for_timeout(500)
    assert len(airflow.call("GET", "/dags/clipft_dataset/dagRuns?limit=100")["dag_runs"]) == before


def test_a_person_logs_in_and_finds_the_dags_by_name(browser, airflow, installation):
    with visit(browser, airflow.url, viewport=DESK) as opened:
        page = opened.page
        page.locator("input[name=username]").fill(installation.USER)
        page.locator("input[name=password]").fill(installation.keep_secrets()["password"])
        page.get_by_role("button", name=re.compile("sign in|log in", re.I)).click()
        page.wait_for_url(lambda url: "/auth/login" not in url)
        page.goto(f"{airflow.url}/dags")
        expect(page.get_by_text("2 · Fine-tuning (clipft_finetune)").first).to_be_visible()
        assert opened.elsewhere == []


# Who may do what ------------------------------------------------------------------------------------------------------

ROUTES = """
import json
from clipft_plugin import web
print("RESULT" + json.dumps([[method, f"/clipft{route.path}"] for route in web.routes for method in route.methods]))
"""


@pytest.fixture(scope="module")
def viewer(airflow, installation) -> tuple[httpx.Client, list[tuple[str, str]]]:
    """A client of who may only look, and every route that the plugin adds."""
    env = installation.environment()
    env["PYTHONPATH"] = f"{PROJECT / 'plugins'}:{env['PYTHONPATH']}"
    done = subprocess.run([sys.executable, "-c", ROUTES], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    client = httpx.Client(base_url=airflow.url, timeout=60)
    client.headers["Authorization"] = f"Bearer {token_of(installation, 'vera')}"
    return client, [(method, path) for method, path in json.loads(done.stdout.rsplit("RESULT", 1)[1])]


def junk(rng: random.Random) -> object:
    """What a body may hold that nobody meant."""
    known = [
        "clipft_finetune",
        "industrial",
        "~",
        "../x",
        "é",
        "",
        0,
        -1,
        None,
        True,
        [],
        {},
        {"conf": {}},
        {"is_paused": True},
    ]
    return {
        rng.choice(["conf", "dag_id", "state", "note", "key", "is_paused", "alerts", "x"]): rng.choice(known) for _ in range(3)
    }


def test_who_may_only_look_is_refused_whatever_they_send(viewer, airflow):
    """Every route of Airflow and of the plugin that changes something, with made-up paths and bodies."""
    client, own = viewer
    told = client.get("/openapi.json").json()["paths"]
    routes = [(method.upper(), path) for path, methods in told.items() for method in methods if method != "get"]
    rng, answered = random.Random(0), {}
    assert len(routes) > 30 and ("POST", "/clipft/alerts") in own
    for method, path in [*routes, *(route for route in own if route[0] not in ("GET", "HEAD"))]:
        for _ in range(3):
            filled = re.sub(
                r"{[^}]*}",
                lambda _: rng.choice(["clipft_finetune", "x", "~", "1", "00000000-0000-0000-0000-000000000000"]),
                path,
            )
            status = client.request(method, filled, json=junk(rng)).status_code
            answered.setdefault((method, path), set()).add(status)
    # Lists of several things are asked for by POST; favorites are a person's own; whoever logs in is nobody yet.
    free = {route for route in answered if route[1].endswith(("/list", "/favorite", "/unfavorite")) or "/auth/" in route[1]}
    assert len(free) < 15
    let_in = {route: found for route, found in answered.items() if route not in free and found != {403}}
    assert not let_in, let_in


def test_who_may_only_look_sees_the_page_models_and_starts_nothing_there(viewer, airflow):
    client, own = viewer
    for method, path in own:
        if method == "GET":
            assert client.get(path).status_code == 200, path
            assert httpx.get(airflow.url + path, timeout=60).status_code == 401, path
    body = {"logical_date": None, "conf": {"domain": "general"}}
    for dag in ("clipft_finetune", "clipft_rollback", "clipft_readapt", "clipft_compare"):
        assert client.post(f"/api/v2/dags/{dag}/dagRuns", json=body).status_code == 403

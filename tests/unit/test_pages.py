"""Pages for people by themselves: whole without internet, and their scripts do what a person at them expects."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fixtures.browser import answered, chromium, visit
from playwright.sync_api import Browser, Route

from serving.inference.app import create_app
from serving.inference.routes.pages import FOLDER, STATIC

PROJECT = Path(__file__).resolve().parents[2]
PAGES = ("playground.html", "api.html")
OWN = "http://pages.test"
PARTS = "root => { const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), found = []; while (walker.nextNode()) found.push(walker.currentNode.data); return found }"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_nobody_but_its_server_and_holds_no_script(name):
    text = (FOLDER / name).read_text()
    static = re.findall(r"static/([\w.]+)", text)
    assert static and set(static) <= STATIC.keys()
    whole = text + "".join(content.decode() for content in STATIC.values())
    assert not re.findall(r"https?://|(?:src|href)=[\"']//", whole)
    assert not re.findall(r"<style|<script(?![^>]* src=)| on\w+=|style=", text)  # the policy of the server forbids them
    assert "innerHTML" not in whole and "width=device-width" in text and "color-scheme: light dark" in whole


def test_every_address_that_the_playground_asks_is_one_of_the_servers():
    routes = create_app().openapi()["paths"]
    asked = set(re.findall(r"'(v1/\w+)/?'", STATIC["playground.js"].decode()))
    assert len(asked) >= 5 and all(any(route.startswith(f"/{path}") for route in routes) for path in asked - {"v1/search"})


def test_the_documentation_shows_every_route(browser):
    description = create_app().openapi()

    def answer(route: Route) -> None:
        path = urlsplit(route.request.url).path
        if path == "/openapi.json":
            answered(route, description)
        elif path == "/docs":
            route.fulfill(path=FOLDER / "api.html")
        else:
            route.fulfill(path=FOLDER / path[1:])

    with visit(browser, f"{OWN}/docs", answer) as at:
        at.page.wait_for_selector("#routes details")
        shown = at.page.locator("#routes").text_content()
        assert at.errors == []
    for path in description["paths"]:
        assert path in shown
    assert "iVBOR" not in shown  # bodies are values of fields, not text


def models_page(
    browser: Browser, domain: dict[str, object], trained: dict[str, object] | None = None, waiting: str = ""
) -> dict[str, str]:
    """What Airflow's page Models shows of one domain, in Airflow's dark theme."""
    shown = {
        "name": "medical",
        "title": "Medical",
        "versions": {},
        "breaker": "closed",
        "incident": [],
        "probation": "",
        "report": "",
    }
    shown |= {"history": [], "alerts": [], "sparkline": [], "drift": None, "dataset": None} | domain
    page = {"domains": [shown], "problems": [], "playground": "http://server", "datasets_known": True}
    instance = {"dag_id": "clipft_finetune", "dag_run_id": "r", "task_id": "approve", "state": "awaiting_input"}
    answers = {
        "/clipft/models.json": page,
        "hitlDetails": {"hitl_details": [{"subject": waiting, "task_instance": instance}] if waiting else []},
        "clipft_finetune/dagRuns": {"dag_runs": [trained] if trained else []},
    }

    def answer(route: Route) -> None:
        address = route.request.url
        if address == f"{OWN}/airflow":
            return route.fulfill(body='<html class="dark"><iframe src="/clipft/models">', content_type="text/html")
        if address == f"{OWN}/clipft/models":
            return route.fulfill(path=PROJECT / "plugins" / "models.html")
        found = next((content for part, content in answers.items() if part in address), None)
        return answered(route, found, 200 if found is not None else 404)

    with visit(browser, f"{OWN}/airflow", answer) as at:
        frame = at.page.frames[1]
        frame.wait_for_function("document.getElementById('domains').textContent.trim()")
        scheme = frame.evaluate("document.documentElement.style.colorScheme")
        text, said = (" ".join(frame.locator(f"#{name}").evaluate(PARTS)) for name in ("domains", "said"))
        assert at.errors == []
    return {"text": re.sub(r"\s+", " ", text), "said": said, "scheme": scheme}


CHAMPION = {
    "number": "3",
    "created": 1.7e9,
    "dataset": "medical/v1",
    "metric": "accuracy",
    "scores": {"128": 0.9},
    "dag_run": "d/r",
    "link": "x",
}
CHAMPION |= {"start_scores": {"128": 0.5}}
DATASET = {"tag": "medical/v1", "created": 1.7e9}


@pytest.mark.parametrize(
    ("domain", "trained", "waiting", "expected"),
    [
        ({}, None, "", "No data set yet. Make one of your images"),
        ({"dataset": DATASET}, None, "", "No model yet. Fine-tune"),
        ({"dataset": DATASET}, "failed", "", "No model yet; the last training failed"),
        ({"versions": None, "breaker": "unknown"}, None, "", "MLflow does not answer"),
        ({"versions": {"champion": CHAMPION}, "dataset": DATASET}, None, "", "Live. Try it in the playground"),
        ({"versions": {"champion": CHAMPION}, "dataset": DATASET | {"tag": "medical/v2"}}, None, "", "medical/v2 is newer than"),
        ({"versions": {"champion": CHAMPION}}, None, "medical: readapt?", "medical: readapt? Decide"),
    ],
)  # fmt: skip
def test_the_page_models_says_what_to_do_next(browser, domain, trained, waiting, expected):
    run = {"dag_run_id": "r", "state": trained, "conf": {"domain": "medical"}} if trained else None
    shown = models_page(browser, domain, run, waiting)
    assert expected in shown["text"] and shown["said"] == "" and shown["scheme"] == "dark"
    if domain.get("versions"):
        assert (
            "128 px 0.900 (start model 0.500)" in shown["text"] and "2023" in shown["text"] and "Compare" not in shown["text"]
        )

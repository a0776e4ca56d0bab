"""The playground at a live server, as people use it: with a mouse, with the keyboard alone, on a phone, in the dark."""

import base64
import json
import re
from collections.abc import Callable, Iterator

import pytest
from fixtures.browser import PHONE, Visit, answered, chromium, overflow, visit
from fixtures.live_server import FILES, TOKEN, Server
from playwright.sync_api import Browser, Page, Route, expect

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=\"document.title='taken'\"> ünï 猫"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def at(browser: Browser, server: Server) -> Iterator[Visit]:
    with visit(browser, server.url) as opened:
        yield opened
        assert opened.elsewhere == [] and opened.errors == []


def choose(page: Page, number: int = 0) -> None:
    page.locator("#image").set_input_files({"name": f"{number}.png", "mimeType": "image/png", "buffer": FILES[number]})


def changed(page: Page, path: str, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]  # JSON
    """From now on the page gets another answer than the server's."""

    def answer(route: Route) -> None:
        response = route.fetch()
        content = response.json()
        change(content)
        route.fulfill(response=response, body=json.dumps(content))

    page.route(path, answer)


def test_an_image_is_classified_explained_judged_and_compared_with_own_words(at):
    page = at.page
    expect(page.locator("#domain")).to_have_value("general")
    choose(page)
    first = page.locator(".pane .bars li").first
    expect(first).to_contain_text("red square")
    expect(first).to_contain_text("%")
    expect(page.locator(".pane")).to_contain_text("version 1")
    expect(page.locator(".looked canvas")).to_be_visible()  # where it looked
    page.get_by_label("Where it looked").uncheck()
    expect(page.locator(".looked")).to_have_count(0)
    expect(first).to_contain_text("red square")

    page.get_by_role("button", name="Wrong").click()  # feedback needs a key, which this tab alone keeps
    page.get_by_role("button", name="blue square").click()
    expect(page.locator("#said")).to_contain_text("token")
    page.get_by_label("API key or token").fill(TOKEN)
    page.get_by_role("button", name="Use").click()
    expect(page.locator(".judge")).to_contain_text("it counts for version 1")
    assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [[TOKEN], 0, ""]

    page.get_by_role("tab", name="Own words").click()
    page.get_by_label("Texts, one a line").fill(f"a photo of a red square.\n{HOSTILE}\n")
    page.get_by_label("Where it looked").check()
    page.get_by_role("button", name="Compare").click()
    page.locator("#similar li").filter(has_text="red square.").click()
    expect(page.locator("#similar figcaption")).to_contain_text("a photo of a red square.")
    page.locator("#similar li").filter(has_text="onerror").click()
    expect(page.locator("#similar figcaption")).to_contain_text(HOSTILE)
    assert page.title() == "clipft playground"


def test_whatever_a_model_calls_its_classes_is_shown_as_text(browser, server):
    def rename(content: dict) -> None:  # type: ignore[type-arg]
        for found in content["predictions"]:
            found["label"] = HOSTILE
            found["probabilities"] = {HOSTILE: 0.9, "x" * 300: 0.1}

    with visit(browser, server.url, viewport=PHONE) as at:
        changed(at.page, "**/v1/classify", rename)
        changed(at.page, "**/v1/models", lambda models: models["data"][0].update(classes=[HOSTILE, "x" * 300]))
        at.page.reload()
        choose(at.page)
        expect(at.page.locator(".pane .bars li").first).to_contain_text(HOSTILE)
        at.page.get_by_role("button", name="Wrong").click()
        assert at.page.title() == "clipft playground" and at.page.locator("img[src=x]").count() == 0
        assert overflow(at.page) == 0


def test_the_keyboard_is_enough(at):
    page = at.page
    expect(page.locator("#examples button").first).to_be_visible()

    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"no way to {selector} by the keyboard")

    tab_to("#examples button")
    page.keyboard.press("Enter")
    expect(page.locator(".pane .bars li").first).to_be_visible()
    tab_to("#tab-classes")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-words")).to_be_focused()
    expect(page.locator("#panel-words")).to_be_visible()
    expect(page.locator("#similar li:nth-child(2)")).to_be_visible()
    tab_to("#similar li:nth-child(2)")
    page.keyboard.press("Enter")
    expect(page.locator("#similar li:nth-child(2)")).to_have_attribute("aria-pressed", "true")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"  # what has the focus can be seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_by_day_and_by_night(browser, server, scheme):
    with visit(browser, server.url, viewport=PHONE, color_scheme=scheme) as at:
        choose(at.page, 1)
        expect(at.page.locator(".pane .bars li").first).to_contain_text("blue square")
        red = int(re.findall(r"\d+", at.page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
        assert overflow(at.page) == 0 and (red < 60) == (scheme == "dark")
        assert at.elsewhere == [] and at.errors == []


def test_two_versions_answer_side_by_side_while_one_is_tried(browser, server):
    def tried(answers: bool) -> None:
        trial = {"version": "2", "share": 1.0, "answers": answers}
        started = server.client.put("/v1/shadows/general", json=trial, headers={"Authorization": f"Bearer {TOKEN}"})
        assert started.status_code == 200, started.text

    with visit(browser, server.url) as at:
        panes, both = at.page.locator(".pane"), at.page.get_by_label("Two versions side by side")
        both.check()
        choose(at.page)
        expect(panes.nth(1)).to_contain_text("Only version 1 is loaded")
        try:
            tried(answers=False)
            choose(at.page, 1)
            expect(panes.nth(1)).to_contain_text("it answers nobody")
            tried(answers=True)
            choose(at.page)
            expect(panes).to_have_count(2)
            for number in (0, 1):
                expect(panes.nth(number)).to_contain_text(f"version {number + 1}")
                expect(panes.nth(number).locator(".bars li").first).to_contain_text("%")
                expect(panes.nth(number).locator(".looked canvas")).to_be_visible()
            left, right = (panes.nth(number).bounding_box() for number in (0, 1))
            assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"] and overflow(at.page) == 0
            panes.nth(1).get_by_role("button", name="Right").click()  # what is said of one is not said of the other
            at.page.get_by_label("API key or token").fill(TOKEN)
            at.page.get_by_role("button", name="Use").click()
            expect(panes.nth(1).locator(".judge")).to_contain_text("it counts for version 2")
            expect(panes.nth(0).locator(".judge button")).not_to_have_count(0)
            both.uncheck()
            expect(panes).to_have_count(1)
        finally:
            server.client.delete("/v1/shadows/general", headers={"Authorization": f"Bearer {TOKEN}"})
        assert at.elsewhere == [] and at.errors == []


def test_an_answer_with_a_promise_shows_it(browser, server):
    def promise(content: dict) -> None:  # type: ignore[type-arg]
        content.update(calibrated=True, coverage=0.9)
        for found in content["predictions"]:
            found.update(prediction_set=list(found["probabilities"]), none_of_these=True)

    with visit(browser, server.url) as at:
        changed(at.page, "**/v1/classify", promise)
        choose(at.page)
        pane = at.page.locator(".pane")
        expect(pane).to_contain_text("None of these")
        expect(pane).to_contain_text("Calibrated")
        expect(pane).to_contain_text("90% of the time the true class is one of those marked")


def test_where_the_server_can_search_there_is_a_tab_for_it(browser, server):
    hit = {"id": "a/1.png", "label": HOSTILE, "caption": "", "score": 0.31}
    found = {"hits": [hit], "domain": "general", "version": "1", "source": "folder:parts", "rows": 12}
    with visit(browser, server.url) as at:
        changed(at.page, "**/openapi.json", lambda api: api["paths"].update({"/v1/search": {}}))
        at.page.route("**/v1/search", lambda route: answered(route, found))
        at.page.reload()
        at.page.get_by_role("tab", name="Search").click()
        at.page.get_by_label("What to look for").fill("a red square")
        with at.page.expect_request("**/v1/search") as asked:
            at.page.keyboard.press("Enter")
        assert asked.value.post_data_json == {"domain": "general", "limit": 20, "text": "a red square"}
        expect(at.page.locator("#hits")).to_contain_text(HOSTILE)
        expect(at.page.locator("#hits")).to_contain_text("1 of 12 images of folder:parts")
        choose(at.page)
        with at.page.expect_request("**/v1/search") as asked:
            at.page.get_by_role("button", name="By the image").click()
        assert base64.b64decode(asked.value.post_data_json["image"]["base64"]) == FILES[0]


def test_what_goes_wrong_is_said_in_words(at):
    page = at.page
    page.locator("#image").set_input_files({"name": "no.png", "mimeType": "image/png", "buffer": b"no image at all"})
    expect(page.locator("#said")).to_contain_text("Image 1")
    expect(page.locator(".pane")).to_have_count(0)
    choose(page)
    expect(page.locator(".pane")).to_have_count(1)
    expect(page.locator("#said")).to_have_text("")

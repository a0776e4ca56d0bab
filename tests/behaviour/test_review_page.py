"""The review page in a browser: every key, other languages, a phone, progress that outlives the page, a file that `apply` takes."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fixtures.browser import chromium
from fixtures.datasets import a_version
from PIL import Image

from clipft_tasks.contracts.review import DecisionsFile
from clipft_tasks.data import shards
from clipft_tasks.data.versioning import Dataset
from clipft_tasks.evaluate import label_errors, review, review_page

CLASSES = sorted(["<b>cat</b>", "شعاعي", "long " * 300])
CAPTION = "</script><script>window.broken = 1</script> " + "نص طويل " * 500


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A page of twelve rows of three classes with hostile, right-to-left and very long texts."""
    folder = tmp_path_factory.mktemp("review")
    rng, rows, entries = np.random.default_rng(0), [], []
    for number in range(12):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8).repeat(2, 0)).save(path)
        entries.append(shards.Entry(f"{number:064x}", "png", path.read_bytes()))
        rows.append(
            {
                "key": f"key{number}",
                "sha256": f"{number:064x}",
                "name": f"{number}.png",
                "caption": CAPTION,
                "group": "",
                "split": "train",
            }
        )
    places = dict(shards.pack(entries, folder))
    frame = pd.DataFrame([row | vars(places[row["sha256"]]) for row in rows])
    labels = np.arange(12) % 3
    frame["label"] = [CLASSES[i] for i in labels]
    embedded = review.Embedded(
        frame, CLASSES, labels, frame["sha256"].to_numpy(dtype=str), {"image": rng.normal(size=(12, 8))}, {}
    )
    doubts = label_errors.assess(labels, embedded.groups, embedded.embeddings, {})
    found = review.Doubtful(embedded, doubts, doubts.order, 0, "starter")
    assert review_page.write(folder / "page.html", Dataset(a_version(), frame, folder), found, 12) == len(doubts.order)
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as opened:
        yield opened


@pytest.fixture
def context(browser) -> Iterator:
    made = browser.new_context(viewport={"width": 1100, "height": 800}, accept_downloads=True)
    yield made
    made.close()


def opened(context, page: Path):
    tab, complaints = context.new_page(), []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on(
        "request", lambda asked: complaints.append(asked.url) if not asked.url.startswith(("file:", "data:", "blob:")) else None
    )
    tab.goto(page.as_uri())
    return tab, complaints


def exported(tab) -> DecisionsFile:
    with tab.expect_download() as waiting:
        tab.click("#export")
    return DecisionsFile.from_json(json.loads(Path(waiting.value.path()).read_text("utf-8")))


def test_a_person_decides_by_keyboard_and_the_file_says_what(context, written):
    tab, complaints = opened(context, written)
    rows = tab.evaluate("data.rows")
    for key in ("k", "d", "r", "2", "ArrowRight", "ArrowLeft"):
        tab.keyboard.press(key)
    assert tab.inner_text("#status") == f"Row 5 of {len(rows)}, 4 decided."
    tab.keyboard.press("3")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("u")  # the fifth is open again
    tab.click("#export")
    assert "Write your name" in tab.inner_text("#note")
    tab.keyboard.type("kd1")  # a name, not decisions
    tab.keyboard.press("Tab")

    tab.reload()  # progress is kept
    assert "4 decided" in tab.inner_text("#status") and tab.input_value("#by") == "kd1"
    file = exported(tab)
    label = {row["key"]: CLASSES[row["label"]] for row in rows}
    second = CLASSES[1]
    last = ("keep", "") if label[rows[3]["key"]] == second else ("relabel", second)
    expected = [("keep", ""), ("drop", ""), ("relabel", CLASSES[rows[2]["likely"]]), last]
    assert [(d.key, d.action, d.label) for d in file.decisions] == [
        (r["key"], *e) for r, e in zip(rows, expected, strict=False)
    ]
    assert (file.by, file.version) == ("kd1", "general/v1") and all(d.at.endswith("Z") for d in file.decisions)
    assert not complaints and tab.evaluate("window.broken") is None and not tab.query_selector("strong b")
    tab.close()


def test_it_fits_a_phone_and_is_used_with_a_finger(browser, written):
    phone = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, accept_downloads=True)
    tab, complaints = opened(phone, written)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.tap("#keep")
    tab.tap("#classes button:nth-child(1)")
    tab.fill("#by", "Zoë 中文")
    assert len(exported(tab).decisions) == 2 and not complaints
    assert (
        min(box["height"] for box in (e.bounding_box() for e in tab.query_selector_all("#classes button, #keep, #drop"))) >= 40
    )
    phone.close()

"""What the data report shows of the images: of each class, near-duplicates, odd ones, those left out; and never more than a page holds."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import made_image
from fixtures.browser import overflow_on_a_phone
from PIL import Image

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.data import gallery
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import ingest, validate

HOSTILE = '<img src=x onerror="alert(1)">'
RIGHT_TO_LEFT, LONG = "نوع من الخلايا", "very long " * 40


def report_of(folder: Path, rows: list[dict], tiny: Path) -> str:
    pd.DataFrame(rows).to_csv(folder / "images.csv", index=False)
    spec = RunSpec.from_flat({"domain": "general", "source": str(folder / "images.csv"), "model.start": str(tiny)})
    staging = ingest.run(spec).staging
    try:
        validate.run(spec, staging)
    except ClipftError as error:
        assert error.code == "dataset.checks_failed"
    return Path(staging, "report.html").read_text("utf-8")


@pytest.fixture
def page(home, tmp_path, tiny) -> str:
    rows = []
    for number in range(40):
        image, name = made_image("red" if number % 2 else "blue", number), f"{number}.png"
        image.save(tmp_path / name)
        label = (HOSTILE, RIGHT_TO_LEFT, LONG)[number % 3]
        rows.append({"image": name, "caption": f"{HOSTILE} {number}", "label": label, "group": f"g{number // 8}"})
    made_image("blue", 0).resize((96, 96)).save(tmp_path / "again.png")  # the first one, larger
    Image.new("RGB", (48, 700), "white").save(tmp_path / "blank.png")
    rows += [{"image": f"{name}.png", "caption": name, "label": RIGHT_TO_LEFT, "group": ""} for name in ("again", "blank")]
    return report_of(tmp_path, rows, tiny)


def test_each_kind_of_image_is_shown_with_how_many_there_are(page):
    assert "showing 8 of 14" in page and "Showing 1 of 1 groups" in page
    alike = page[page.index("<h2>Near-duplicates") : page.index("<h2>Odd images")]
    assert "0.png" in alike and "again.png" in alike and "2 classes: is one of them wrong?" in alike
    odd = page[page.index("<h2>Odd images") :]
    assert "48x700" in odd and "96x96" in odd
    assert "Nobody states a license" in page and "license: not stated" in page
    assert re.search(r"g?roups in \d+ rows, [01] of them in test", page)


def test_hostile_texts_stay_texts_and_the_page_asks_nobody(page):
    assert "<img src=x" not in page and "&lt;img src=x" in page and RIGHT_TO_LEFT in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert overflow_on_a_phone(page) == 0


def test_thousands_of_classes_and_rows_make_a_page_of_bounded_size():
    rows = 60_000
    number = np.arange(rows)
    frame = pd.DataFrame(
        {
            "sha256": number.astype(str), "caption": "x" * 5000, "name": "n", "label": (number % 3000).astype(str), "group": "",
            "split": np.where(number % 5, "train", "test"), "alike": number // 2, "width": 64, "height": 64, "length": 1000,
            "format": "PNG", "shard": "gone", "offset": 0,
        }
    )  # fmt: skip
    far = pd.Series(np.where(number % 100, 0.2, 0.9), index=frame.index)
    found = gallery.gallery(frame, frame.head(0).assign(reason=""), gallery.Thumbnails([], 8), far)
    assert found.far.of == 600 and "0.90 from the nearest" in found.far.images[0].note
    strips = [*found.classes, *found.alike, found.odd, found.left_out, found.far]
    assert sum(len(strip.images) for strip in strips) <= 600 and (found.class_count, found.alike_count) == (3000, 30_000)
    assert max(len(image.text) for strip in strips for image in strip.images) <= 200

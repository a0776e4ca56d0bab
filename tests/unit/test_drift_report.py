"""What a person reads about a drift: the page, and the lines of the approval."""

import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from conftest import made_image
from fixtures.browser import overflow_on_a_phone
from PIL import Image

from clipft_tasks.contracts.drift import BaselineAccuracy, Capture, DriftSnapshot, WindowRows, WorstSignal
from clipft_tasks.drift import report
from clipft_tasks.drift.case import Advice, Calibration, Candidate, Comparison, Diagnosis, DriftCase, Fit
from clipft_tasks.drift.image_statistics import STATISTICS
from clipft_tasks.drift.reference import ImageRows, Reference, ReferenceFacts

# The page -----------------------------------------------------------------------------------------------------------

CLASSES = ["good cell", "bad cell"]
HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>"


def rows(count: int, classes: int = 2, seed: int = 0) -> ImageRows:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(count, 8)).astype(np.float32)
    return ImageRows(image, rng.normal(size=(count, len(STATISTICS))), rng.normal(size=(count, classes)))


def a_reference(classes: list[str] = CLASSES) -> Reference:
    sample = rows(50, len(classes))
    return Reference(sample, sample.image, ReferenceFacts.model_construct(classes=classes))


def a_window(count: int = 70, classes: int = 2) -> WindowRows:
    seen = rows(count, classes, seed=1)
    return WindowRows(appearance=seen.appearance.tolist(), similarity=seen.similarity.tolist())


EMPTY = WindowRows(appearance=[], similarity=[])


def snapshot(drift: dict[str, float] | None = None, **values: float) -> DriftSnapshot:
    return DriftSnapshot(
        domain="industrial", version="4", images=70, texts=3, feedback=12, pairs=0, rows={"image": 70, "brightness": 70},
        drift={"image": 2.5, "brightness": 0.4} if drift is None else drift, values=values,
        baseline=BaselineAccuracy(value=0.91, low=0.86, high=0.94, rows=200), worst=WorstSignal(signal="image", ratio=2.5),
    )  # fmt: skip


def capture(label: str = "good cell", **more: Any) -> Capture:
    given = {"id": "a1", "request": "r1", "domain": "industrial", "version": "4", "time": 1.0, "predicted": "bad cell",
             "confidence": 0.62, "novelty": 1.4, "why": "new", "sha256": "0" * 64, "label": label}  # fmt: skip
    return Capture.model_validate(given | more)


def png() -> bytes:
    out = io.BytesIO()
    made_image("red", 1, 300).save(out, "PNG")
    return out.getvalue()


NOTHING = Comparison()
COMPARED = Comparison(
    [Candidate("2", 0.7, -0.05, -0.1)],
    [Candidate("medical", 0.6, -0.15, -0.2)],
    [Fit("general", "7", "sharpness", 0.4, True), Fit("industrial", "4", "image", 2.5, False)],
    Calibration(0.95, 0.75, 60, 0.08),
)


def page(**given: Any) -> str:
    """The page of a case, in which anything may be given otherwise."""
    reference, window = given.pop("reference", a_reference()), given.pop("window", a_window())
    examples = given.pop(
        "examples", [report.Example(capture(), png(), b""), report.Example(capture("", id="b2"), png(), png())]
    )
    facts: dict[str, Any] = {
        "snapshot": snapshot(accuracy=0.5),
        "diagnosis": Diagnosis("new_images", ["image is 2.5 times its limit"]),
        "advice": Advice("readapt", "there are labeled images", "", 0.31),
        "comparison": COMPARED,
        "labels": {},
        "class_shares": report.class_shares(reference, window),
        "minutes": 12.0,
    }
    return report.page(DriftCase(**(facts | given)), reference, window, examples, gray_bits=16)


class Parts(HTMLParser):
    """Tags, what they refer to, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.refers: list[str] = []
        self.handlers: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.refers += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "xlink:href", "poster")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_needs_nothing_but_itself():
    text = page()
    found = Parts(text)
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert found.refers and all(r.startswith("data:image/jpeg;base64,") for r in found.refers)
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert overflow_on_a_phone(text) == 0


def test_the_page_says_what_drifted_what_to_do_and_what_it_costs():
    words = " ".join(Parts(page()).words.split())
    for said in (
        "industrial, version 4", "70 images, 3 texts and 12 answers with feedback", "Re-adapt the model", "there are labeled images",
        "up to 31 points", "about 12 minutes", "image is 2.5 times its limit", "good cell", "bad cell", "no label", "62%",
        "prompts of medical", "general version 7", "by image statistics alone", "expects 95% of its answers", "75% of 60 are", "with the nearest image of the reference",
    ):  # fmt: skip
        assert said in words, said
    assert words.index("2.50") < words.index("0.40")  # the worst signal first
    assert all(f"{name}:" in words for name in STATISTICS)


@pytest.mark.parametrize("action", report.HEADINGS)
def test_each_action_has_a_page_with_its_heading(action):
    assert report.HEADINGS[action] in page(advice=Advice(action, "so it is", "2"))


def test_labels_and_classes_are_shown_and_never_run():
    reference = a_reference([HOSTILE, "bad cell"])
    text = page(
        reference=reference,
        diagnosis=Diagnosis("prior", [HOSTILE]),
        advice=Advice("label", HOSTILE),
        comparison=Comparison(
            [Candidate(HOSTILE, 0.7, 0.1, 0.05)], [Candidate(HOSTILE, 0.7, 0.1, 0.05)], [Fit(HOSTILE, "1", HOSTILE, 2.0, True)]
        ),
        examples=[report.Example(capture(HOSTILE, predicted=HOSTILE, id=HOSTILE), png(), b"")],
        snapshot=snapshot({HOSTILE: 2.0}).model_copy(update={"version": HOSTILE, "domain": HOSTILE}),
    )
    found = Parts(text)
    assert "script" not in found.tags and found.handlers == []
    assert all(r.startswith("data:") for r in found.refers)
    assert found.words.count(HOSTILE) >= 10


def test_images_are_shown_small():
    from base64 import b64decode

    from PIL import Image

    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page())
    assert len(shown) == 3 and all(max(Image.open(io.BytesIO(b64decode(s))).size) == report.SIDE for s in shown)


WITHOUT_CLASSES: dict[str, dict[str, Any]] = {
    "an empty window": {"window": EMPTY},
    "a window without classes": {"window": a_window(70, 0)},
    "a model without classes": {"reference": a_reference([]), "window": a_window(70, 0)},
    "a model with one class": {"reference": a_reference(["cell"]), "window": a_window(70, 1)},
}
LITTLE: dict[str, dict[str, Any]] = WITHOUT_CLASSES | {
    "no captures": {"examples": []},
    "no other models": {"comparison": Comparison()},
    "no idea of the time": {"minutes": None},
    "no expected gain": {"advice": Advice("label", "labels are missing")},
    "nothing measured": {"snapshot": snapshot({}).model_copy(update={"images": 0})},
    "one image": {"window": a_window(1)},
}


@pytest.mark.parametrize("what", LITTLE)
def test_the_page_is_made_of_what_there_is(what):
    words = Parts(page(**LITTLE[what])).words
    assert "What moved" in words and all(f"{name}:" in words for name in STATISTICS)
    assert ("Predicted classes" in words) is (what not in WITHOUT_CLASSES)


@pytest.mark.parametrize("data", [b"", b"no image", png()[:200]], ids=["empty", "no image", "cut short"])
def test_a_broken_image_is_left_out_and_the_others_are_shown(data):
    found = Parts(page(examples=[report.Example(capture(), data, b""), report.Example(capture("bad cell"), png(), data)]))
    assert found.tags.count("img") == 1


def test_where_the_champion_looked_is_shown_beside_the_image():
    looked = Image.new("RGB", (40, 30), (200, 40, 40))
    found = Parts(page(examples=[report.Example(capture(), png(), png(), looked), report.Example(capture("b"), png(), b"")]))
    assert found.tags.count("img") == 4 and "Colored: what speaks for the answer." in found.words


def test_signals_that_never_change_are_drawn_too():
    same = np.zeros((50, len(STATISTICS)))
    reference = a_reference()
    flat = Reference(ImageRows(reference.rows.image, same, reference.rows.similarity), reference.text, reference.facts)
    assert Parts(page(reference=flat, window=a_window().model_copy(update={"appearance": same.tolist()}))).tags.count(
        "svg"
    ) == len(STATISTICS)


def test_shares_of_predicted_classes_before_and_now():
    reference = a_reference()
    before = float((reference.rows.similarity.argmax(axis=1) == 0).mean())
    window = WindowRows(appearance=[], similarity=[[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    assert report.class_shares(reference, window) == {
        "good cell": (pytest.approx(before), 0.75),
        "bad cell": (pytest.approx(1 - before), 0.25),
    }
    assert report.class_shares(reference, EMPTY) == {}


# What the approval shows --------------------------------------------------------------------------------------------


def told(advice: Advice, comparison: Comparison = NOTHING, minutes: float | None = None, **values: float) -> str:
    diagnosis = Diagnosis("concept", ["performance is 2.0 times its limit"])
    labels = {"good cell": 20, "bad cell": 25}
    case = DriftCase(snapshot(**values), diagnosis, advice, comparison, labels, {}, minutes, "info_nce")
    return "\n".join(report.approval_text(case))


def test_the_approval_shows_the_answer_first_and_then_what_it_rests_on():
    said = told(
        Advice("readapt", "it pays", "", 0.31), COMPARED, 12.0,
        accuracy=0.6, accuracy_low=0.5, accuracy_high=0.7,
    )  # fmt: skip
    assert said.startswith("**Re-adapt the model**: it pays.")
    for line in (
        "industrial version 4: concept", "performance is 2.0 times its limit", "0.60 right [0.50, 0.70] of 12; 0.91 at training",
        "Version 2: 0.70 right on labeled captures, -5 points", "25 bad cell, 20 good cell", "up to 31 points", "about 12 minutes",
        "with the prompts of medical: 0.60 right, -15 points", "general version 7: sharpness at 0.4 times its limit",
        "industrial version 4: image at 2.5 times its limit, by image statistics alone", "Recipe: info_nce",
    ):  # fmt: skip
        assert line in said, line


def test_an_accuracy_without_feedback_is_called_an_estimate():
    said = told(Advice("label", "labels are missing"), accuracy_estimate=0.8)
    assert "No answer has feedback" in said and "0.80" in said and "estimate" in said


def test_a_cost_is_named_only_where_something_is_trained():
    assert "minutes" not in told(Advice("camera", "look"), minutes=12.0)

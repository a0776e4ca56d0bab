"""What a drift most likely is, which answer fits it, and the page that a person reads about it."""

import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from conftest import made_picture

from clipft_tasks.drift import report
from clipft_tasks.drift.appearance import STATISTICS
from clipft_tasks.drift.comparing import Comparison, Fit, candidate, known_elsewhere
from clipft_tasks.drift.diagnosis import (
    LABELS_NEEDED,
    PER_CLASS,
    Advice,
    Calibration,
    Candidate,
    Diagnosis,
    advise,
    diagnose,
)
from clipft_tasks.drift.reference import Reference, Rows

# Which kind ---------------------------------------------------------------------------------------------------------

KINDS: list[tuple[dict[str, float], str]] = [
    ({}, "noise"),
    ({"image": 0.4, "brightness": 0.9, "text": 0.2}, "noise"),
    ({"image": 1.0, "performance": 1.0}, "noise"),  # at its limit is not over it
    ({"image": 2.5}, "new_pictures"),
    ({"image": 2.5, "sharpness": 4.0, "prediction": 1.5}, "new_pictures"),
    ({"image": 2.5, "performance": 3.0}, "new_pictures"),
    ({"brightness": 1.2}, "camera"),
    ({"side": 9.0, "image": 0.8, "prediction": 2.0}, "camera"),
    ({"contrast": 8.0, "image": 1.1}, "camera"),
    ({"aspect": 2.0, "performance": 2.0}, "camera"),
    ({"prediction": 3.0}, "prior"),
    ({"prediction": 3.0, "similarity": 1.2, "margin": 1.1}, "prior"),
    ({"similarity": 3.0}, "certainty"),
    ({"margin": 1.1}, "certainty"),
    ({"margin": 1.1, "similarity": 1.1, "text": 2.0, "prediction": 0.9}, "certainty"),
    ({"text": 2.0, "prediction": 1.5}, "prior"),
    ({"performance": 2.0, "margin": 3.0}, "concept"),
    ({"performance": 2.0}, "concept"),
    ({"performance": 2.0, "prediction": 3.0}, "concept"),
    ({"alignment": 2.0, "margin": 2.0}, "alignment"),
    ({"alignment": 2.0, "text": 3.0}, "alignment"),
    ({"alignment": 2.0, "image": 3.0}, "new_pictures"),
    ({"text": 2.0}, "texts"),
    ({"text": 2.0, "image": 0.9, "performance": 0.0}, "texts"),
]


@pytest.mark.parametrize(("drift", "kind"), KINDS)
def test_the_kind_follows_from_the_signals_over_their_limits(drift, kind):
    assert diagnose(drift).kind == kind


@pytest.mark.parametrize("name", STATISTICS)
def test_each_figure_of_what_pictures_look_like_speaks_for_the_camera(name):
    assert diagnose({name: 1.5, "image": 0.5}).kind == "camera"


def test_pictures_that_look_far_more_different_than_what_they_show_are_the_cameras():
    assert diagnose({"image": 1.5, "brightness": 4.5}).kind == "new_pictures"
    assert diagnose({"image": 1.5, "brightness": 4.6}).kind == "camera"


def test_the_reasons_name_what_is_over_its_limit_worst_first_and_nothing_else():
    said = diagnose({"sharpness": 2.0, "image": 3.5, "prediction": 1.1, "margin": 0.9, "text": 0.5}).reasons
    assert [line.split()[0] for line in said[:3]] == ["image", "sharpness", "prediction"]
    assert "3.5 times" in said[0] and not any(word in line for line in said for word in ("margin", "text is"))


def test_every_diagnosis_has_reasons():
    assert all(diagnose(drift).reasons for drift, _ in KINDS)


def test_a_mix_that_moved_says_by_how_much():
    assert "37 points" in diagnose({"prediction": 2.0}, classes_moved=0.372).reasons[-1]


@pytest.mark.parametrize("name", ["similarity", "margin"])
def test_a_mix_that_did_not_move_is_not_said_to_have_moved(name):
    said = diagnose({name: 2.0, "prediction": 0.9}, classes_moved=0.05).reasons
    assert not any("mix" in line or "points" in line for line in said) and "sure" in said[-1]


@pytest.mark.parametrize(
    "drift", [{"prediction": 2.0}, {"prediction": 2.0, "text": 2.0}, {"prediction": 2.0, "margin": 2.0, "similarity": 3.0}]
)
def test_a_mix_that_moved_is_not_said_to_be_all(drift):
    said = diagnose(drift, classes_moved=0.3)
    assert "only" not in said.reasons[-1].lower() and "mix changed" in said.reasons[-1]


# Which answer -------------------------------------------------------------------------------------------------------

ENOUGH = {"good": LABELS_NEEDED // 2, "bad": LABELS_NEEDED // 2}
BETTER = Candidate("3", 0.9, 0.12, 0.02)


def answer(kind: str, labels: dict[str, int] | None = None, **given: Any) -> Advice:
    facts: dict[str, Any] = {"others": [], "promised": 0.9, "live": None, "losing": False} | given
    return advise(Diagnosis(kind, ["because"]), ENOUGH if labels is None else labels, **facts)


@pytest.mark.parametrize("losing", [False, True])
@pytest.mark.parametrize("labels", [{}, ENOUGH])
@pytest.mark.parametrize("kind", ["noise", "camera", "new_pictures", "prior", "certainty", "concept", "alignment", "texts"])
def test_every_answer_is_one_of_those_there_are_and_says_why(kind, labels, losing):
    said = answer(kind, labels, losing=losing)
    assert said.action in report.HEADINGS and said.why
    assert said.version == ""


def test_nothing_is_done_about_noise():
    assert answer("noise").action == "nothing"


def test_a_mix_of_classes_that_moved_needs_nothing_unless_accuracy_falls():
    assert answer("prior").action == "nothing"
    assert answer("prior", losing=True).action == "readapt"
    assert answer("prior", {}, losing=True).action == "label"


def test_doubt_alone_needs_nothing_unless_accuracy_falls():
    assert answer("certainty").action == answer("certainty", {}).action == "nothing"
    assert answer("certainty", losing=True).action == "readapt"
    assert answer("certainty", {}, losing=True).action == "label"


def test_confidence_that_misses_is_read_otherwise_and_nothing_trained():
    off = Calibration(0.95, 0.75, 60, 0.08)
    said = answer("certainty", calibration=off)
    assert (said.action, said.version) == ("recalibrate", "")
    assert "95%" in said.why and "75% of 60" in said.why and "0.08" in said.why
    assert answer("certainty", losing=True, calibration=off).action == "readapt"
    assert answer("new_pictures", calibration=off).action == "readapt"


def test_other_words_that_certainly_do_better_come_before_training_and_after_a_better_version():
    words = [
        Candidate("medical", 0.9, 0.2, 0.05),
        Candidate("general", 0.8, 0.1, 0.01),
        Candidate("scientific", 0.95, 0.3, -0.01),
    ]
    said = answer("concept", templates=words, losing=True)
    assert (said.action, said.version, said.expected_gain) == ("recalibrate", "", 0.2) and "medical" in said.why
    assert answer("concept", templates=words, others=[BETTER]).action == "rollback"


def test_the_more_are_asked_the_more_it_takes_to_be_certainly_better():
    """Of many that are no better one looks it by chance; the interval allows for that."""
    rng = np.random.default_rng(0)
    right, champion = (rng.random(200) < 0.8).astype(float), (rng.random(200) < 0.7).astype(float)
    alone, of_seven = candidate("2", right, champion, 1), candidate("2", right, champion, 7)
    assert alone.gain == of_seven.gain == pytest.approx((right - champion).mean())
    spread = (right - champion).std(ddof=1) / np.sqrt(200)
    assert alone.gain_low == pytest.approx(alone.gain - 1.96 * spread, abs=1e-4) and of_seven.gain_low < alone.gain_low
    fooled = 0
    for _ in range(300):
        base = (rng.random(200) < 0.7).astype(float)
        fooled += any(candidate("x", (rng.random(200) < 0.7).astype(float), base, 7).gain_low > 0 for _ in range(7))
    assert fooled / 300 < 0.05


CHAMPION = Fit("industrial", "4", "image", 2.5, True)


@pytest.mark.parametrize(
    ("fits", "said"),
    [
        ([Fit("industrial", "2", "image", 0.8, True), CHAMPION], "version 2 was made"),
        ([Fit("medical", "9", "image", 0.8, True), CHAMPION], "medical"),
        ([Fit("industrial", "2", "image", 1.2, True), CHAMPION], ""),
        ([Fit("industrial", "2", "side", 0.8, False), CHAMPION], ""),  # looks alone are no reason to go back
        ([Fit("industrial", "2", "image", 0.8, True), Fit("industrial", "4", "image", 0.9, True)], ""),
        ([], ""),
    ],
)
def test_a_model_that_was_made_for_such_pictures_is_named_where_the_champion_was_not(fits, said):
    hint = known_elsewhere(Comparison(fits=fits), "industrial", "4")
    assert said in hint and bool(hint) is bool(said)


def test_the_camera_alone_trains_nothing_unless_accuracy_falls():
    for labels in ({}, ENOUGH, {"good": 1000, "bad": 1000}):
        assert answer("camera", labels).action == "camera"
        assert answer("camera", labels, live=0.89).action == "camera"
    assert answer("camera", losing=True, live=0.5).action == "readapt"
    assert answer("camera", {}, losing=True, live=0.5).action == "label"


@pytest.mark.parametrize("kind", ["new_pictures", "concept"])
def test_pictures_of_another_kind_or_meaning_are_learned_once_they_are_judged(kind):
    assert answer(kind, {}).action == "label"
    assert answer(kind, ENOUGH).action == "readapt"


LABELS: list[tuple[dict[str, int], bool]] = [
    ({}, False),
    ({"good": LABELS_NEEDED - PER_CLASS, "bad": PER_CLASS}, True),
    ({"good": LABELS_NEEDED - PER_CLASS - 1, "bad": PER_CLASS}, False),
    ({"good": LABELS_NEEDED, "bad": PER_CLASS - 1}, False),
    ({"good": 10 * LABELS_NEEDED}, False),
    ({f"class {n}": PER_CLASS - 1 for n in range(LABELS_NEEDED)}, False),
    ({f"class {n}": PER_CLASS for n in range(LABELS_NEEDED // PER_CLASS)}, True),
]


@pytest.mark.parametrize(("labels", "enough"), LABELS)
def test_training_wants_enough_labels_of_at_least_two_classes(labels, enough):
    assert answer("new_pictures", labels).action == ("readapt" if enough else "label")


def test_how_many_labels_are_missing_is_said():
    assert str(LABELS_NEEDED - 7) in answer("new_pictures", {"good": 5, "bad": 2}).why
    of_one_class = answer("new_pictures", {"good": 3 * LABELS_NEEDED}).why
    assert "two classes" in of_one_class and "0 judged" not in of_one_class


@pytest.mark.parametrize("kind", ["camera", "new_pictures", "prior", "certainty", "concept", "texts"])
def test_a_version_that_is_certainly_better_is_gone_back_to_before_anything_is_trained(kind):
    said = answer(kind, others=[Candidate("2", 0.8, 0.02, -0.05), BETTER], losing=True, live=0.5)
    assert (said.action, said.version, said.expected_gain) == ("rollback", "3", 0.12)
    assert "version 3" in said.why and "12 points" in said.why


def test_of_several_better_versions_the_best_is_taken():
    said = answer("concept", others=[BETTER, Candidate("5", 0.95, 0.2, 0.01), Candidate("4", 0.91, 0.13, 0.12)])
    assert said.version == "5"


@pytest.mark.parametrize("low", [0.0, -0.01, float("nan")])
def test_a_version_that_may_be_no_better_is_not_gone_back_to(low):
    said = answer("concept", others=[Candidate("2", 0.99, 0.3, low)])
    assert (said.action, said.version) == ("readapt", "")


def test_the_expected_gain_is_what_was_lost_and_unknown_without_judged_answers():
    assert answer("concept", losing=True, live=0.6).expected_gain == pytest.approx(0.3)
    assert answer("new_pictures", live=0.95).expected_gain == 0.0
    assert answer("new_pictures").expected_gain is None


# The page -----------------------------------------------------------------------------------------------------------

CLASSES = ["good cell", "bad cell"]
HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>"


def rows(count: int, classes: int = 2, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(count, 8)).astype(np.float32)
    return Rows(image, rng.normal(size=(count, len(STATISTICS))), rng.normal(size=(count, classes)))


def a_reference(classes: list[str] = CLASSES) -> Reference:
    sample = rows(50, len(classes))
    return Reference(sample, sample.image, {"classes": classes})


def a_window(count: int = 70, classes: int = 2) -> dict[str, Any]:
    """As the server's JSON has it."""
    seen = rows(count, classes, seed=1)
    return {"image": seen.image.tolist(), "appearance": seen.appearance.tolist(), "similarity": seen.similarity.tolist()}


def seen_by_the_server(**values: float) -> dict[str, Any]:
    return {
        "domain": "industrial",
        "version": "4",
        "pictures": 70,
        "texts": 3,
        "feedback": 12,
        "drift": {"image": 2.5, "brightness": 0.4},
        "values": values,
        "promised": {"value": 0.91, "rows": 200},
    }


def capture(label: str = "good cell", **more: Any) -> dict[str, Any]:
    return {"id": "a1", "label": label, "predicted": "bad cell", "confidence": 0.62, "novelty": 1.4, "why": "new"} | more


def png() -> bytes:
    out = io.BytesIO()
    made_picture("red", 1, 300).save(out, "PNG")
    return out.getvalue()


NOTHING = Comparison()
COMPARED = Comparison(
    [Candidate("2", 0.7, -0.05, -0.1)],
    [Candidate("medical", 0.6, -0.15, -0.2)],
    [Fit("general", "7", "sharpness", 0.4, True), Fit("industrial", "4", "image", 2.5, False)],
    Calibration(0.95, 0.75, 60, 0.08),
)


def page(**given: Any) -> str:
    reference, window = given.pop("reference", a_reference()), given.pop("window", a_window())
    facts: dict[str, Any] = {
        "domain": "industrial",
        "grey_bits": 16,
        "seen": seen_by_the_server(accuracy=0.5),
        "found": Diagnosis("new_pictures", ["image is 2.5 times its limit"]),
        "advice": Advice("readapt", "there are judged pictures", "", 0.31),
        "compared": COMPARED,
        "minutes": 12.0,
        "moved": report.class_shares(reference, window),
        "examples": [(capture(), png(), b""), (capture("", id="b2"), png(), png())],
    }
    return report.page(**(facts | given), reference=reference, window=window)


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


def test_the_page_says_what_drifted_what_to_do_and_what_it_costs():
    words = " ".join(Parts(page()).words.split())
    for said in (
        "industrial, version 4", "70 pictures, 3 texts and 12 judged answers", "Re-adapt the model", "there are judged pictures",
        "up to 31 points", "about 12 minutes", "image is 2.5 times its limit", "good cell", "bad cell", "not judged", "62%",
        "words of medical", "general version 7", "by looks alone", "expects 95% of its answers", "75% of 60 are", "nearest old one",
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
        domain=HOSTILE,
        reference=reference,
        found=Diagnosis("prior", [HOSTILE]),
        advice=Advice("label", HOSTILE),
        compared=Comparison(
            [Candidate(HOSTILE, 0.7, 0.1, 0.05)], [Candidate(HOSTILE, 0.7, 0.1, 0.05)], [Fit(HOSTILE, "1", HOSTILE, 2.0, True)]
        ),
        examples=[(capture(HOSTILE, predicted=HOSTILE, id=HOSTILE), png(), b"")],
        seen=seen_by_the_server() | {"version": HOSTILE, "drift": {HOSTILE: 2.0}},
    )
    found = Parts(text)
    assert "script" not in found.tags and found.handlers == []
    assert all(r.startswith("data:") for r in found.refers)
    assert found.words.count(HOSTILE) >= 10


def test_pictures_are_shown_small():
    from base64 import b64decode

    from PIL import Image

    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page())
    assert len(shown) == 3 and all(max(Image.open(io.BytesIO(b64decode(s))).size) == report.SIDE for s in shown)


WITHOUT_CLASSES: dict[str, dict[str, Any]] = {
    "an empty window": {"window": {"image": [], "appearance": [], "similarity": []}},
    "a window without classes": {"window": a_window(70, 0)},
    "a model without classes": {"reference": a_reference([]), "window": a_window(70, 0)},
    "a model with one class": {"reference": a_reference(["cell"]), "window": a_window(70, 1)},
}
LITTLE: dict[str, dict[str, Any]] = WITHOUT_CLASSES | {
    "no captures": {"examples": []},
    "no other models": {"compared": Comparison()},
    "no idea of the time": {"minutes": None},
    "no expected gain": {"advice": Advice("label", "labels are missing")},
    "nothing measured": {"seen": seen_by_the_server() | {"drift": {}, "pictures": 0}},
    "one picture": {"window": a_window(1)},
}


@pytest.mark.parametrize("what", LITTLE)
def test_the_page_is_made_of_what_there_is(what):
    words = Parts(page(**LITTLE[what])).words
    assert "What moved" in words and all(f"{name}:" in words for name in STATISTICS)
    assert ("Predicted classes" in words) is (what not in WITHOUT_CLASSES)


@pytest.mark.parametrize("data", [b"", b"no picture", png()[:200]], ids=["empty", "no picture", "cut short"])
def test_a_broken_picture_is_left_out_and_the_others_are_shown(data):
    found = Parts(page(examples=[(capture(), data, b""), (capture("bad cell"), png(), data)]))
    assert found.tags.count("img") == 1


def test_signals_that_never_change_are_drawn_too():
    same = np.zeros((50, len(STATISTICS)))
    reference = a_reference()
    flat = Reference(Rows(reference.rows.image, same, reference.rows.similarity), reference.text, reference.facts)
    assert Parts(page(reference=flat, window=a_window() | {"appearance": same.tolist()})).tags.count("svg") == len(STATISTICS)


def test_shares_of_predicted_classes_before_and_now():
    reference = a_reference()
    before = float((reference.rows.similarity.argmax(axis=1) == 0).mean())
    window = {"similarity": [[1.0, 0.0]] * 3 + [[0.0, 1.0]]}
    assert report.class_shares(reference, window) == {
        "good cell": (pytest.approx(before), 0.75),
        "bad cell": (pytest.approx(1 - before), 0.25),
    }
    assert report.class_shares(reference, {"similarity": []}) == {}


# What the approval shows --------------------------------------------------------------------------------------------


def told(advice: Advice, compared: Comparison = NOTHING, minutes: float | None = None, **values: float) -> str:
    found = Diagnosis("concept", ["performance is 2.0 times its limit"])
    labels = {"good cell": 20, "bad cell": 25}
    return "\n".join(
        report.lines("industrial", seen_by_the_server(**values), found, advice, compared, labels, minutes, "info_nce")
    )


def test_the_approval_shows_the_answer_first_and_then_what_it_rests_on():
    said = told(
        Advice("readapt", "it pays", "", 0.31), COMPARED, 12.0,
        accuracy=0.6, accuracy_low=0.5, accuracy_high=0.7,
    )  # fmt: skip
    assert said.startswith("**Re-adapt the model**: it pays.")
    for line in (
        "industrial version 4: concept", "performance is 2.0 times its limit", "0.60 right [0.50, 0.70] of 12; promised 0.91",
        "Version 2: 0.70 right on judged captures, -5 points", "25 bad cell, 20 good cell", "up to 31 points", "about 12 minutes",
        "in the words of medical: 0.60 right, -15 points", "general version 7: sharpness at 0.4 times its limit",
        "industrial version 4: image at 2.5 times its limit, by looks alone", "Recipe: info_nce",
    ):  # fmt: skip
        assert line in said, line


def test_an_accuracy_that_nobody_judged_is_called_an_estimate():
    said = told(Advice("label", "labels are missing"), accuracy_estimate=0.8)
    assert "No judged answers" in said and "0.80" in said and "estimate" in said


def test_a_cost_is_named_only_where_something_is_trained():
    assert "minutes" not in told(Advice("camera", "look"), minutes=12.0)

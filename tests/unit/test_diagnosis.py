"""What a drift most likely is, and which answer fits it."""

from typing import Any

import numpy as np
import pytest

from clipft_tasks.contracts.drift import BaselineAccuracy, DriftSnapshot, WorstSignal
from clipft_tasks.drift import report
from clipft_tasks.drift.case import Advice, Calibration, Candidate, Comparison, Diagnosis, Fit
from clipft_tasks.drift.diagnosis import LABELS_NEEDED, PER_CLASS, advise, diagnose, fitting_model
from clipft_tasks.drift.image_statistics import STATISTICS
from clipft_tasks.drift.model_search import candidate

# Which kind ---------------------------------------------------------------------------------------------------------

KINDS: list[tuple[dict[str, float], str]] = [
    ({}, "noise"),
    ({"image": 0.4, "brightness": 0.9, "text": 0.2}, "noise"),
    ({"image": 1.0, "performance": 1.0}, "noise"),  # at its limit is not over it
    ({"image": 2.5}, "new_images"),
    ({"image": 2.5, "sharpness": 4.0, "prediction": 1.5}, "new_images"),
    ({"image": 2.5, "performance": 3.0}, "new_images"),
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
    ({"alignment": 2.0, "image": 3.0}, "new_images"),
    ({"text": 2.0}, "texts"),
    ({"text": 2.0, "image": 0.9, "performance": 0.0}, "texts"),
]


@pytest.mark.parametrize(("drift", "kind"), KINDS)
def test_the_kind_follows_from_the_signals_over_their_limits(drift, kind):
    assert diagnose(drift).kind == kind


@pytest.mark.parametrize("name", STATISTICS)
def test_each_metric_of_what_images_look_like_speaks_for_the_camera(name):
    assert diagnose({name: 1.5, "image": 0.5}).kind == "camera"


def test_images_that_look_far_more_different_than_what_they_show_are_the_cameras():
    assert diagnose({"image": 1.5, "brightness": 4.5}).kind == "new_images"
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


def answer(
    kind: str, labels: dict[str, int] | None = None, live: float | None = None, dropped: bool = False, **compared: Any
) -> Advice:
    """The advice where accuracy was 0.9 at training and is `live` now; `compared`: of `Comparison`."""
    snapshot = DriftSnapshot(
        domain="industrial", version="4", images=70, texts=0, feedback=0 if live is None else 50, pairs=0, rows={},
        drift={"performance": 2.0} if dropped else {}, values={} if live is None else {"accuracy": live},
        baseline=BaselineAccuracy(value=0.9, low=0.85, high=0.94, rows=200), worst=WorstSignal(signal="", ratio=0.0),
    )  # fmt: skip
    return advise(Diagnosis(kind, ["because"]), snapshot, ENOUGH if labels is None else labels, Comparison(**compared))


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("labels", [{}, ENOUGH])
@pytest.mark.parametrize("kind", ["noise", "camera", "new_images", "prior", "certainty", "concept", "alignment", "texts"])
def test_every_answer_is_one_of_those_there_are_and_says_why(kind, labels, dropped):
    said = answer(kind, labels, dropped=dropped)
    assert said.action in report.HEADINGS and said.why
    assert said.version == ""


def test_nothing_is_done_about_noise():
    assert answer("noise").action == "nothing"


def test_a_mix_of_classes_that_moved_needs_nothing_unless_accuracy_falls():
    assert answer("prior").action == "nothing"
    assert answer("prior", dropped=True).action == "readapt"
    assert answer("prior", {}, dropped=True).action == "label"


def test_doubt_alone_needs_nothing_unless_accuracy_falls():
    assert answer("certainty").action == answer("certainty", {}).action == "nothing"
    assert answer("certainty", dropped=True).action == "readapt"
    assert answer("certainty", {}, dropped=True).action == "label"


def test_confidence_that_misses_is_recalibrated_and_nothing_trained():
    off = Calibration(0.95, 0.75, 60, 0.08)
    said = answer("certainty", calibration=off)
    assert (said.action, said.version) == ("recalibrate", "")
    assert "95%" in said.why and "75% of 60" in said.why and "0.08" in said.why
    assert answer("certainty", dropped=True, calibration=off).action == "readapt"
    assert answer("new_images", calibration=off).action == "readapt"


def test_other_prompts_that_certainly_do_better_come_before_training_and_after_a_better_version():
    words = [
        Candidate("medical", 0.9, 0.2, 0.05),
        Candidate("general", 0.8, 0.1, 0.01),
        Candidate("scientific", 0.95, 0.3, -0.01),
    ]
    said = answer("concept", prompts=words, dropped=True)
    assert (said.action, said.version, said.expected_gain) == ("recalibrate", "", 0.2) and "medical" in said.why
    assert answer("concept", prompts=words, versions=[BETTER]).action == "rollback"


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
        ([Fit("industrial", "2", "side", 0.8, False), CHAMPION], ""),  # image statistics alone are no reason to go back
        ([Fit("industrial", "2", "image", 0.8, True), Fit("industrial", "4", "image", 0.9, True)], ""),
        ([], ""),
    ],
)
def test_a_model_that_was_made_for_such_images_is_named_where_the_champion_was_not(fits, said):
    hint = fitting_model(Comparison(fits=fits), "industrial", "4")
    assert said in hint and bool(hint) is bool(said)


def test_the_camera_alone_trains_nothing_unless_accuracy_falls():
    for labels in ({}, ENOUGH, {"good": 1000, "bad": 1000}):
        assert answer("camera", labels).action == "camera"
        assert answer("camera", labels, live=0.89).action == "camera"
    assert answer("camera", dropped=True, live=0.5).action == "readapt"
    assert answer("camera", {}, dropped=True, live=0.5).action == "label"


@pytest.mark.parametrize("kind", ["new_images", "concept"])
def test_images_of_another_kind_or_meaning_are_learned_once_they_are_labeled(kind):
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
    assert answer("new_images", labels).action == ("readapt" if enough else "label")


def test_how_many_labels_are_missing_is_said():
    assert str(LABELS_NEEDED - 7) in answer("new_images", {"good": 5, "bad": 2}).why
    of_one_class = answer("new_images", {"good": 3 * LABELS_NEEDED}).why
    assert "two classes" in of_one_class and "0 labeled" not in of_one_class


@pytest.mark.parametrize("kind", ["camera", "new_images", "prior", "certainty", "concept", "texts"])
def test_a_version_that_is_certainly_better_is_gone_back_to_before_anything_is_trained(kind):
    said = answer(kind, versions=[Candidate("2", 0.8, 0.02, -0.05), BETTER], dropped=True, live=0.5)
    assert (said.action, said.version, said.expected_gain) == ("rollback", "3", 0.12)
    assert "version 3" in said.why and "12 points" in said.why


def test_of_several_better_versions_the_best_is_taken():
    said = answer("concept", versions=[BETTER, Candidate("5", 0.95, 0.2, 0.01), Candidate("4", 0.91, 0.13, 0.12)])
    assert said.version == "5"


@pytest.mark.parametrize("low", [0.0, -0.01, float("nan")])
def test_a_version_that_may_be_no_better_is_not_gone_back_to(low):
    said = answer("concept", versions=[Candidate("2", 0.99, 0.3, low)])
    assert (said.action, said.version) == ("readapt", "")


def test_the_expected_gain_is_what_was_lost_and_unknown_without_judged_answers():
    assert answer("concept", dropped=True, live=0.6).expected_gain == pytest.approx(0.3)
    assert answer("new_images", live=0.95).expected_gain == 0.0
    assert answer("new_images").expected_gain is None

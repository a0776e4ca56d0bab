"""Windows: silent while chance would speak, quick to forget, and above 1 only where something is both far and certain."""

from dataclasses import replace

import numpy as np
import pytest
from fixtures import references
from fixtures.references import MEASURED, PREDICTIONS, SEEN, a_reference, brighter, captions, looked

from clipft_tasks.contracts.drift import BaselineAccuracy
from clipft_tasks.core.proportions import wilson
from clipft_tasks.drift import window as module
from clipft_tasks.drift.reference import ImageRows, Reference
from clipft_tasks.drift.thresholds import (
    ACCURACY_DROP,
    MIN_JUDGED,
    SIGNIFICANCE,
)
from clipft_tasks.drift.thresholds import (
    WINDOW_MIN_ROWS as LEAST,
)
from clipft_tasks.drift.thresholds import (
    WINDOW_ROWS as SIZE,
)
from clipft_tasks.drift.thresholds import (
    WINDOW_SECONDS as SECONDS,
)
from clipft_tasks.drift.window import DriftMetrics, Window, pooled

NOW = 1_800_000_000.0


@pytest.fixture
def clock(monkeypatch):
    """Hours and minutes that pass when a test says so."""

    class Clock:
        now = NOW

        def time(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(module.time, "time", clock.time)
    return clock


def add(window: Window, rows: ImageRows) -> Window:
    window.add_images(rows.image, rows.appearance, rows.similarity)
    return window


def seen(rows: ImageRows, reference: Reference | None = None) -> DriftMetrics:
    return add(Window(reference or a_reference()), rows).measure()


def with_facts(**facts: object) -> Reference:
    """The reference as if it had found something else."""
    return replace(a_reference(), facts=a_reference().facts.model_copy(update=facts))


# What it says ---------------------------------------------------------------------------------------------------------


def test_images_and_texts_like_the_references_are_no_drift():
    window = add(Window(a_reference()), looked(200, 5))
    window.add_texts(captions(200, 6))
    measured = window.measure()
    assert set(measured.drift) == MEASURED | PREDICTIONS | {"text"}
    assert all(0 <= ratio <= 1 for ratio in measured.drift.values())
    assert (measured.images, measured.texts, measured.feedback) == (200, 200, 0)
    assert measured.values["image_p"] > SIGNIFICANCE and measured.values["text_p"] > SIGNIFICANCE
    assert measured.values["out_of_range"] < 0.05


def test_strange_images_drift_and_are_told_apart():
    measured = seen(looked(100, 5, strange=1.0))
    assert measured.drift["image"] > 3 and measured.worst[1] >= measured.drift["image"]
    assert measured.values["image_p"] <= SIGNIFICANCE and measured.values["image_auc"] > 0.9


def test_brighter_images_drift_in_brightness_alone_and_may_leave_the_range():
    measured = seen(brighter(looked(100, 5)))
    assert measured.worst == ("brightness", measured.drift["brightness"])
    assert {name for name, ratio in measured.drift.items() if ratio > 1} == {"brightness"}
    assert seen(brighter(looked(100, 5), 0.6)).values["out_of_range"] == 1.0


def test_another_mix_of_classes_drifts_in_predictions():
    measured = seen(looked(100, 5, share=[0.96, 0.02, 0.02]))
    assert measured.drift["prediction"] > 1


def test_strange_texts_drift_alone():
    window = add(Window(a_reference()), looked(100, 5))
    window.add_texts(captions(100, 6, strange=1.0))
    measured = window.measure()
    assert measured.drift["text"] > 1 and measured.worst[0] == "text"
    assert {name for name, ratio in measured.drift.items() if ratio > 1} == {"text"}


def test_a_model_without_classes_has_every_other_signal():
    measured = seen(looked(100, 5, classes=0), a_reference(classes=0))
    assert set(measured.drift) == MEASURED and max(measured.drift.values()) <= 1
    assert "accuracy_estimate" not in measured.values


def test_accuracy_is_estimated_from_calibrated_confidence():
    rng = np.random.default_rng(0)
    reference, rows = with_facts(temperature=0.1), looked(SIZE, 5)
    odds = np.exp(rows.similarity / 0.1)
    right = [rng.choice(3, p=o / o.sum()) == o.argmax() for o in odds]
    assert seen(rows, reference).values["accuracy_estimate"] == pytest.approx(np.mean(right), abs=0.08)


def test_the_gap_and_alignment_of_images_with_texts_are_told():
    window = add(Window(a_reference()), looked(100, 5))
    texts = captions(100, 6)
    window.add_texts(texts)
    window.add_pairs([0.2, 0.4, float("nan")])
    values = window.measure().values
    assert values["alignment"] == pytest.approx(0.3)
    assert values["modality_gap"] == pytest.approx(np.linalg.norm(window.rows().image.mean(0) - texts.mean(0)), rel=1e-4)
    of_reference = a_reference().rows.image.mean(0) - a_reference().text.mean(0)
    assert values["reference_gap"] == pytest.approx(np.linalg.norm(of_reference), rel=1e-4)
    assert values["text_auc"] == pytest.approx(0.5, abs=0.12)


def test_images_that_agree_less_with_their_own_texts_are_drift_of_the_alignment_once_there_are_enough():
    rng = np.random.default_rng(0)
    reference = references.measured(looked(SEEN, 0), paired=rng.normal(0.3, 0.05, SEEN))
    window = Window(reference)
    window.add_pairs(rng.normal(0.3, 0.05, LEAST))
    assert window.measure().drift["alignment"] <= 1
    window.add_pairs(rng.normal(0.15, 0.05, SIZE))
    measured = window.measure()
    assert measured.drift["alignment"] > 1 and measured.rows["alignment"] == SIZE
    few = Window(reference)
    few.add_pairs(rng.normal(0.15, 0.05, LEAST - 1))
    assert few.measure().drift == {} and few.measure().values["alignment"] < 0.2
    unmeasured = Window(a_reference())
    unmeasured.add_pairs(rng.normal(0.15, 0.05, SIZE))
    assert unmeasured.measure().drift == {}


def test_each_signal_says_on_how_many_rows_it_was_measured():
    window = add(Window(a_reference()), looked(SIZE, 5))
    window.add_texts(captions(100, 6))
    for n in range(MIN_JUDGED):
        window.add_feedback(n > 2)
    settled = window.measure()
    assert set(settled.rows) == set(settled.drift) and set(settled.rows.values()) == {SIZE, LEAST, 100, MIN_JUDGED}
    assert (settled.rows["text"], settled.rows["performance"]) == (100, MIN_JUDGED)
    assert set(add(Window(a_reference()), looked(LEAST, 5)).measure().rows.values()) == {LEAST}
    add(window, looked(LEAST, 7, strange=1.0))
    changed = window.measure()
    assert changed.rows["image"] == LEAST  # they alone are what is drifting so much
    add(window, looked(SIZE - LEAST, 8, strange=1.0))
    add(window, looked(LEAST, 9))
    recovering = window.measure()
    assert recovering.rows["image"] == SIZE and recovering.drift["image"] > 1


def test_prometheus_weighs_a_signal_with_the_rows_that_it_was_measured_on():
    from serving.inference.metrics import Metrics

    metrics = Metrics()
    metrics.publish("d", "1", DriftMetrics({"image": 3.0, "text": 0.5}, {}, SIZE, 100, 0, {"image": LEAST, "text": 100}))

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"domain": "d", "version": "1", **labels})

    assert value("clipft_drift_items", signal="image") == LEAST and value("clipft_drift_items", signal="text") == 100
    assert value("clipft_window_items", kind="images") == SIZE
    metrics.forget("d", "1")
    assert value("clipft_drift_items", signal="image") is None


def test_the_worst_signal_of_a_silent_window_has_no_name():
    assert Window(a_reference()).measure().worst == ("", 0.0)


def test_measuring_twice_gives_the_same_metrics():
    window = add(Window(a_reference()), looked(100, 5))
    assert window.measure() == window.measure()


# When it is silent ----------------------------------------------------------------------------------------------------


def test_below_the_least_number_of_images_nothing_is_said_of_them():
    window = add(Window(a_reference()), looked(LEAST - 1, 5, strange=1.0))
    silent = window.measure()
    assert silent.drift == {} and silent.values == {} and silent.images == LEAST - 1
    assert set(add(window, looked(1, 6)).measure().drift) == MEASURED | PREDICTIONS


def test_below_the_least_number_of_texts_nothing_is_said_of_them():
    window = Window(a_reference(), least=20)
    window.add_texts(captions(19, 5, strange=1.0))
    assert window.measure().drift == {} and window.measure().texts == 19
    window.add_texts(captions(1, 6))
    assert set(window.measure().drift) == {"text"}


def test_a_reference_with_too_few_captions_for_a_limit_says_nothing_of_texts():
    reference = references.measured(looked(100, 0), text=captions(3, 3))
    window = Window(reference)
    window.add_texts(captions(100, 6))
    assert window.measure().drift == {} and window.measure().texts == 100


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_distance_that_chance_explains_is_no_drift_however_small_its_limit(kind):
    reference = with_facts(limits=a_reference().limits | {kind: 1e-7})
    windows = [add(Window(reference), looked(LEAST, seed)) for seed in range(20, 30)]
    for seed, window in enumerate(windows):
        window.add_texts(captions(LEAST, seed + 20))
    found = [measured for measured in (w.measure() for w in windows) if measured.values[f"{kind}_mmd"] > 1e-5]
    assert len(found) >= 3 and min(f.values[f"{kind}_p"] for f in found) > SIGNIFICANCE
    assert {f.drift[kind] for f in found} == {1.0}


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_certain_distance_within_its_limit_is_no_drift(kind):
    reference = with_facts(limits=a_reference().limits | {kind: 2.0})
    window = add(Window(reference), looked(100, 5, strange=1.0))
    window.add_texts(captions(100, 6, strange=1.0))
    measured = window.measure()
    assert measured.values[f"{kind}_p"] <= SIGNIFICANCE and 0 < measured.drift[kind] < 1


# What it forgets ------------------------------------------------------------------------------------------------------


def test_newer_images_drive_out_the_oldest():
    window = Window(a_reference(), size=100)
    add(add(window, looked(100, 5, strange=1.0)), looked(70, 6))
    rows = window.rows()
    assert len(rows) == 100 and window.seen == 170
    assert np.allclose(rows.image[-70:], looked(70, 6).image, atol=1e-6)
    assert np.allclose(rows.image[:30], looked(100, 5, strange=1.0).image[-30:], atol=1e-6)
    add(window, looked(100, 7))
    assert np.array_equal(window.rows().appearance, looked(100, 7).appearance)
    assert max(window.measure().drift.values()) <= 1


def test_a_request_larger_than_the_window_leaves_its_last_images():
    window = add(Window(a_reference(), size=50, least=10), looked(80, 5))
    assert window.seen == 80 and np.array_equal(window.rows().similarity, looked(80, 5).similarity[-50:])


def test_what_is_older_than_an_hour_has_left(clock):
    window = add(Window(a_reference()), looked(100, 5, strange=1.0))
    window.add_texts(captions(100, 5))
    window.add_pairs([0.1])
    window.add_feedback(False)
    clock.now += SECONDS / 2
    add(window, looked(80, 6))
    window.add_pairs([0.3])
    window.add_feedback(True)
    before = window.measure()
    assert (before.images, before.texts, before.feedback) == (180, 100, 2) and before.drift["image"] > 1
    clock.now += SECONDS / 2 + 1
    after = window.measure()
    assert (after.images, after.texts, after.feedback) == (80, 0, 1) and after.drift["image"] <= 1
    assert after.values["alignment"] == pytest.approx(0.3) and after.values["accuracy"] == 1.0
    clock.now += SECONDS
    assert window.measure() == DriftMetrics({}, {}, 0, 0, 0)
    assert len(window.rows()) == 0 and window.rows().image.shape == (0, 48)


@pytest.mark.parametrize("where", ["image", "appearance"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_whose_numbers_are_none_are_counted_but_not_kept(where, value):
    rows = looked(100, 5)
    for row in (0, 40, 99):
        getattr(rows, where)[row, 2] = value
    window = add(Window(a_reference()), rows)
    assert window.seen == 100 and len(window.rows()) == 97
    assert np.array_equal(window.rows().similarity, np.delete(rows.similarity, [0, 40, 99], axis=0))
    assert np.isfinite(list(window.measure().drift.values())).all()


def test_texts_and_cosines_that_are_no_numbers_are_not_kept():
    window, texts = Window(a_reference()), captions(100, 5)
    texts[[3, 4], 0] = np.nan
    window.add_texts(texts)
    window.add_pairs([float("nan"), float("inf")])
    measured = window.measure()
    assert measured.texts == 98 and np.isfinite(measured.drift["text"]) and "alignment" not in measured.values


def test_a_request_without_images_changes_nothing():
    window = add(Window(a_reference()), looked(0, 5))
    window.add_texts(np.zeros((0, 48), np.float32))
    assert window.seen == 0 and window.measure() == DriftMetrics({}, {}, 0, 0, 0)


def test_a_copy_and_its_original_go_separate_ways():
    window = add(Window(a_reference(), size=100, least=10, seconds=60), looked(90, 5))
    window.add_texts(captions(20, 5))
    window.add_pairs([0.5])
    window.add_feedback(True)
    copy, before = window.copy(), window.measure()
    assert (copy.size, copy.least, copy.seconds, copy.seen) == (100, 10, 60, 90) and copy.measure() == before
    add(window, looked(100, 6, strange=1.0))
    window.add_texts(captions(20, 6))
    window.add_pairs([0.1])
    window.add_feedback(False)
    assert copy.seen == 90 and copy.measure() == before != window.measure()
    after = window.measure()
    add(copy, looked(100, 7))
    assert len(copy.rows()) == 100 and window.measure() == after


# Feedback -------------------------------------------------------------------------------------------------------------

BASELINE = BaselineAccuracy(value=0.9, low=0.85, high=0.94, rows=200)


def judged(right: int, count: int, baseline: BaselineAccuracy = BASELINE) -> DriftMetrics:
    window = Window(with_facts(baseline=baseline))
    for i in range(count):
        window.add_feedback(i < right)
    return window.measure()


def test_feedback_gives_accuracy_with_its_interval():
    measured = judged(60, 80)
    assert measured.feedback == 80 and measured.values["accuracy"] == 0.75
    assert (measured.values["accuracy_low"], measured.values["accuracy_high"]) == wilson(60, 80)


@pytest.mark.parametrize("right", [100, 95, 90, 85])
def test_performance_is_no_drift_while_its_interval_reaches_the_baseline(right):
    assert judged(right, 100).drift == {"performance": 0.0}


def test_performance_drifts_once_the_whole_interval_misses_the_baseline_by_the_tolerated_drop():
    found = [judged(right, 100).drift["performance"] for right in (82, 80, 75, 60, 40)]
    assert found == sorted(found) and 0 < found[0] < found[1] < 1 < found[2] < found[-1]
    assert found[3] == pytest.approx((0.9 - wilson(60, 100)[1]) / ACCURACY_DROP)
    assert judged(40, 100).worst[0] == "performance"


def test_the_same_share_of_wrong_answers_weighs_more_when_more_are_behind_it():
    assert judged(15, 20).drift["performance"] < judged(150, 200).drift["performance"]


@pytest.mark.parametrize("baseline", [0.9, 0.97, 1.0])
def test_the_first_wrong_answer_alone_is_no_drift(baseline):
    measured = judged(0, 1, BASELINE.model_copy(update={"value": baseline}))
    assert measured.values["accuracy"] == 0.0 and measured.drift.get("performance", 0.0) <= 1


def test_without_a_baseline_accuracy_is_told_and_nothing_is_missed():
    measured = judged(10, 50, BaselineAccuracy(value=0.0, low=0.0, high=1.0, rows=0))
    assert measured.values["accuracy"] == 0.2 and measured.drift == {}


def test_feedback_is_forgotten_by_number_too():
    window = Window(with_facts(baseline=BASELINE), size=50)
    for right in [False] * 50 + [True] * 50:
        window.add_feedback(right)
    assert window.measure().values["accuracy"] == 1.0 and window.measure().feedback == 50


def test_windows_of_replicas_count_by_the_rows_behind_them():
    one = DriftMetrics({"image": 2.0, "performance": 1.0}, {"image_p": 0.5, "out_of_range": 0.5, "accuracy": 1.0}, 30, 0, 10,
                  {"image": 30, "performance": 10})  # fmt: skip
    two = DriftMetrics(
        {"image": 0.5}, {"image_p": 0.1, "out_of_range": 0.0, "text_auc": 0.7, "accuracy": 0.5}, 10, 5, 30, {"image": 10}
    )
    assert pooled([one]) is one
    both = pooled([one, two])
    assert both.drift == {"image": pytest.approx((2 * 30 + 0.5 * 10) / 40), "performance": 1.0}
    assert both.rows == {"image": 40, "performance": 10}
    assert (both.images, both.texts, both.feedback) == (40, 5, 40)
    assert both.values["out_of_range"] == pytest.approx(0.375) and both.values["text_auc"] == 0.7
    assert both.values["accuracy"] == pytest.approx(25 / 40) and "image_p" not in both.values
    assert (both.values["accuracy_low"], both.values["accuracy_high"]) == pytest.approx(wilson(25, 40))
    assert pooled([both, DriftMetrics({}, {}, 0, 0, 0)]).drift == both.drift

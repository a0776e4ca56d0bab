"""References: limits that chance does not reach, what else they say, and how they are taken from a data set."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import COLORS, a_work, made_image
from fixtures.datasets import a_version
from fixtures.packages import a_card
from fixtures.references import (
    IMAGES,
    MEASURED,
    PREDICTIONS,
    SEEN,
    a_reference,
    brighter,
    captions,
    centers,
    compared,
    looked,
    measured,
    ratios,
    unit,
)

from clipft_tasks.contracts.drift import BaselineAccuracy
from clipft_tasks.data import shards
from clipft_tasks.data.versioning import Dataset
from clipft_tasks.domains import get_domain
from clipft_tasks.drift.measure_reference import ROWS, sample_rows
from clipft_tasks.drift.reference import FACTS, TENSORS, ImageRows, Reference
from clipft_tasks.drift.signals import Statistic, signals, two_sample_auc
from clipft_tasks.drift.statistics import calibrated_temperature
from clipft_tasks.model import recorded_answers
from clipft_tasks.model.held_out import HeldOut


def of_texts(reference: Reference, text: np.ndarray, permutations: int = 0) -> Statistic:
    return signals()["text"].measure(compared(reference, text=text, permutations=permutations))


# Limits ---------------------------------------------------------------------------------------------------------------


def test_windows_of_the_same_kind_rarely_exceed_a_limit():
    references = [a_reference(), *(measured(looked(SEEN, seed)) for seed in range(1, 4))]
    found = [ratios(references[s % 4], looked(64, 1000 + s)) for s in range(200)]
    assert set(found[0]) == MEASURED | PREDICTIONS
    over = {name: sum(f[name] > 1 for f in found) for name in found[0]}
    assert max(over.values()) <= 3, over
    assert sum(max(f.values()) > 1 for f in found) <= 6


def test_texts_of_the_same_kind_rarely_exceed_their_limit():
    found = [of_texts(a_reference(), captions(64, 1000 + s)).value / a_reference().limits["text"] for s in range(200)]
    assert sum(f > 1 for f in found) <= 2


@pytest.mark.parametrize(("count", "dims"), [(SEEN, 48), (80, 512), (40, 512)])
def test_images_of_the_same_kind_are_not_told_from_the_references_own_however_few_those_are(count, dims):
    reference = measured(looked(count, 0, dims=dims))
    windows = [looked(64, 1000 + s, dims=dims) for s in range(20)]
    assert sum(signals()["image"].measure(compared(reference, w, permutations=250)).p_value <= 0.005 for w in windows) <= 1
    assert np.mean([two_sample_auc(reference.rows.image, w.image) for w in windows]) == pytest.approx(0.5, abs=0.1)


def test_pairs_of_the_same_kind_rarely_exceed_their_limit_and_pairs_that_agree_less_do():
    rng = np.random.default_rng(0)
    reference = measured(looked(SEEN, 0), paired=rng.normal(0.3, 0.05, SEEN).astype(np.float32))

    def over(mean: float) -> bool:
        found = signals()["alignment"].measure(compared(reference, paired=rng.normal(mean, 0.05, 64)))
        return found.value > reference.limits["alignment"]

    assert sum(over(0.3) for _ in range(200)) <= 3
    assert all(over(0.2) for _ in range(20))
    assert "alignment" not in a_reference().limits  # where pairs were not measured


@pytest.mark.parametrize(("count", "dims"), [(SEEN, 48), (80, 512), (40, 512)])
def test_captions_of_the_same_kind_raise_no_alarm_however_few_there_are_in_the_reference(count, dims):
    reference = measured(looked(count, 0, dims=dims))
    found = [of_texts(reference, captions(64, 1000 + s, dims=dims), 250) for s in range(20)]
    assert sum(f.value > reference.limits["text"] and f.p_value <= 0.005 for f in found) <= 1


@pytest.mark.parametrize(
    ("signal", "window"),
    [
        ("image", lambda: looked(64, 5, strange=0.7)),
        ("prediction", lambda: looked(64, 5, share=[0.98, 0.01, 0.01])),
        ("similarity", lambda: looked(64, 5, strange=0.7)),
        ("brightness", lambda: brighter(looked(64, 5))),
        ("brightness", lambda: brighter(looked(64, 5), -0.2)),
    ],
    ids=["strange images", "one class", "strange to the classes", "brighter", "darker"],
)
def test_a_shift_exceeds_the_limit_of_its_signal(signal, window):
    found = ratios(a_reference(), window())
    assert found[signal] > 1.5
    if signal == "brightness":
        assert {name for name, ratio in found.items() if ratio > 1} == {"brightness"}


@pytest.mark.parametrize("side", [200, 299, 301, 600])
def test_another_camera_is_seen_whether_its_images_are_larger_or_smaller(side):
    window = looked(64, 5)
    window.appearance[:, 3] = np.log2(side)
    found = ratios(a_reference(), window)
    assert found["side"] > 10 and max(ratio for name, ratio in found.items() if name != "side") <= 1


def by_hospital(between: float, hospitals: int = 8) -> tuple[ImageRows, list[str]]:
    """Images of some hospitals, whose light and patients differ by `between`."""
    rows, rng = looked(SEEN, 0), np.random.default_rng(7)
    hospital = np.repeat(np.arange(hospitals), SEEN // hospitals)
    light = between * rng.normal(size=hospitals)[hospital]
    image = unit(rows.image + between * unit(rng.normal(size=(hospitals, 48)))[hospital])
    appearance = rows.appearance + np.outer(light, [0.1, 0, 0, 0, 0]).astype(np.float32)
    return ImageRows(image, appearance, image @ centers().T), [f"hospital {h}" for h in hospital]


def test_groups_that_differ_make_limits_larger_and_never_smaller():
    rows, groups = by_hospital(1.0)
    alone, grouped = (measured(rows, groups=g).limits for g in ([""] * SEEN, groups))
    assert grouped["image"] > 2 * alone["image"] and grouped["brightness"] > 1.5 * alone["brightness"]
    assert all(grouped[name] >= alone[name] for name in IMAGES | PREDICTIONS)


def test_groups_that_do_not_differ_hardly_change_limits():
    rows, groups = by_hospital(0.0)
    alone, grouped = (measured(rows, groups=g) for g in ([""] * SEEN, groups))
    assert (alone.facts.groups, grouped.facts.groups) == (SEEN, 8)
    assert all(grouped.limits[name] <= 1.2 * alone.limits[name] for name in IMAGES | PREDICTIONS)


def test_a_tolerant_domain_has_larger_limits():
    rows = looked(120, 0)
    once, twice = measured(rows), measured(rows, tolerance=2.0)
    assert twice.limits == {name: pytest.approx(2 * limit) for name, limit in once.limits.items()}


def test_every_limit_is_positive_even_where_nothing_ever_varied():
    rows = looked(120, 0)
    same = ImageRows(
        np.repeat(rows.image[:1], 120, axis=0), np.repeat(rows.appearance[:1], 120, axis=0), rows.similarity[:1].repeat(120, 0)
    )
    reference = measured(same)
    assert all(0 < limit < 10 for limit in reference.limits.values())
    assert np.isfinite(list(ratios(reference, rows).values())).all()


def test_the_same_rows_make_the_same_reference():
    assert measured(looked(100, 0)).facts == measured(looked(100, 0)).facts


@pytest.mark.parametrize("count", [12, 16, 33])
def test_a_handful_of_images_still_has_limits(count):
    reference = measured(looked(count, 0), groups=[f"{i // 3}" for i in range(count)])
    assert np.isfinite([*reference.limits.values()]).all() and min(reference.limits.values()) > 0


# What else it says ----------------------------------------------------------------------------------------------------


def test_a_model_without_classes_has_no_signals_of_predictions():
    reference = a_reference(classes=0)
    assert set(reference.limits) == IMAGES | {"text"} and reference.classes == []
    assert set(ratios(reference, looked(64, 5, classes=0))) == MEASURED
    assert reference.facts.baseline == BaselineAccuracy(value=0.0, low=0.0, high=1.0, rows=0)
    assert reference.facts.temperature == pytest.approx(1 / 20)
    assert reference.uncertainty_threshold == 0.0


def test_a_model_with_one_class_has_no_signals_of_predictions():
    assert set(measured(looked(100, 0, classes=1)).limits) == IMAGES | {"text"}


def test_best_class_margin_and_cosine_are_those_of_each_row():
    rows = ImageRows(np.eye(3), np.zeros((3, 5)), np.array([[0.1, 0.5, 0.2], [0.9, -0.3, 0.8], [0.0, 0.0, -1.0]]))
    best, margin, which = rows.ranked
    assert best == pytest.approx([0.5, 0.9, 0.0]) and margin == pytest.approx([0.3, 0.1, 0.0]) and which.tolist() == [1, 0, 0]
    taken = rows.take(np.array([2, 0]))
    assert len(taken) == 2 and taken.similarity.tolist() == [[0.0, 0.0, -1.0], [0.1, 0.5, 0.2]]


def test_the_baseline_is_an_accuracy_with_its_interval_from_held_out_rows_alone():
    truth = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    cosines = np.eye(3)[np.where(np.arange(10) < 8, truth, (truth + 1) % 3)]
    rows = HeldOut(np.ones((10, 48)), cosines, truth, groups=np.arange(10).astype(str))
    baseline = measured(looked(60, 0), held_out=rows).facts.baseline
    assert baseline.value == 0.8 and baseline.rows == 10
    assert (baseline.low, baseline.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.2])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature):
    rng = np.random.default_rng(0)
    cosines = rng.normal(0, 2 * temperature, (4000, 5))
    odds = np.exp(cosines / temperature)
    truth = np.array([rng.choice(5, p=o / o.sum()) for o in odds])
    assert calibrated_temperature(cosines, truth) == pytest.approx(temperature, rel=0.1)


def test_novelty_is_above_one_for_strange_images_and_seldom_for_others():
    reference = a_reference()
    assert reference.novelty(reference.rows.image).max() < 0.01
    assert (reference.novelty(looked(200, 5).image) > 1).mean() < 0.05
    assert (reference.novelty(looked(200, 5, strange=3.0).image) > 1).mean() > 0.95


def test_a_tenth_of_images_like_the_references_are_unsure():
    margin = looked(1000, 5).ranked[1]
    assert (margin < a_reference().uncertainty_threshold).mean() == pytest.approx(0.1, abs=0.04)


# A sample -------------------------------------------------------------------------------------------------------------


def test_a_sample_takes_from_every_group_in_turn_so_that_none_dominates():
    groups = np.random.default_rng(0).permutation(np.repeat(["large", "middle", "small"], [500, 40, 5]))
    taken = sample_rows(groups.tolist(), 35)
    names, counts = np.unique(groups[taken], return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {"large": 15, "middle": 15, "small": 5}


def test_rows_without_a_group_stand_for_themselves():
    groups = ["one patient"] * 300 + [""] * 60
    taken = sample_rows(groups, 50)
    assert sum(groups[i] == "one patient" for i in taken) == 1


def test_a_sample_is_in_order_without_doubles_and_the_same_each_time():
    groups = [f"{i % 7}" for i in range(1000)]
    taken = sample_rows(groups)
    assert len(taken) == ROWS and (np.diff(taken) > 0).all()
    assert np.array_equal(taken, sample_rows(groups)) and not np.array_equal(taken, sample_rows(groups, seed=1))
    assert sample_rows(groups[:30]).tolist() == list(range(30))
    assert len(sample_rows([])) == 0


# Taking it from a data set --------------------------------------------------------------------------------------------


def packed(folder: Path, per_class: int = 40, texts: int = 1, labeled: bool = True) -> Dataset:
    """Red and blue squares, a fifth of them for validation, each with `texts` captions; without repository."""
    rows, entries = [], []
    for number in range(per_class):
        for label in COLORS:
            out = io.BytesIO()
            made_image(label, number).save(out, "PNG")
            for caption in range(texts):
                key = f"{len(rows):064x}"
                entries.append(shards.Entry(key, "png", out.getvalue()))
                rows.append({"key": key, "name": f"{label}-{number}", "caption": f"a {label} square, {number % 5}, told {caption}",
                             "label": label if labeled else "", "group": "", "split": ("train", "val")[number % 5 == 0],
                             "sha256": f"{label}-{number}"})  # fmt: skip
    places = [vars(place) for _, place in shards.pack(entries, folder)]
    frame = pd.DataFrame([row | place for row, place in zip(rows, places, strict=True)])
    return Dataset(a_version(number=texts), frame, folder)


def taken(dataset: Dataset, clip: Any, weights: str = "w" * 64) -> Reference:
    from clipft_tasks.drift.build_reference import build_reference

    return build_reference(clip, dataset, get_domain("general"), 32, weights, HeldOut.of(clip, dataset, 32))


@pytest.fixture
def clip(home, tiny) -> Any:
    from clipft_tasks.model import build

    return build.load(str(tiny), domain="general")


def test_the_package_of_a_trained_model_holds_a_reference_for_its_very_weights(clip, small_spec, tmp_path):
    from clipft_tasks.model.package import WEIGHTS, weights_digest, write_package
    from clipft_tasks.train import loop

    dataset = packed(tmp_path / "shards")
    loop.train(a_work(small_spec, clip, dataset, tmp_path / "checkpoints"))
    package = write_package(
        tmp_path / "package",
        clip,
        a_card(),
        recorded_answers.record(clip, np.zeros((1, 3, 32, 32), np.uint8), ["a red square"]),
        lambda place, weights: taken(dataset, clip, weights).save(place),
    )
    assert (package / TENSORS).stat().st_size + (package / FACTS).stat().st_size < 5e6
    reference = Reference.load(package, weights_digest(package / WEIGHTS))
    assert reference.classes == sorted(COLORS) and reference.facts.groups == len(reference.rows) == 80
    assert reference.facts.baseline.rows == 16 and reference.facts.baseline.value > 0.8
    assert set(reference.limits) == IMAGES | PREDICTIONS | {"text", "alignment"}
    assert len(reference.paired) == 80 and reference.paired.mean() > reference.rows.similarity.mean()
    assert sorted(reference.facts.images) == sorted(dataset.frame["sha256"])
    assert np.linalg.norm(reference.rows.image, axis=1) == pytest.approx(np.ones(80), abs=1e-3)
    assert reference.rows.appearance[:, 3] == pytest.approx(np.full(80, np.log2(48)))


def test_images_without_labels_make_a_reference_without_classes(clip, tmp_path):
    reference = taken(packed(tmp_path, 10, labeled=False), clip)
    assert reference.classes == [] and reference.rows.similarity.shape == (20, 0)
    assert reference.facts.baseline.rows == 0 and set(reference.limits) == IMAGES | {"text", "alignment"}


def test_a_image_with_several_captions_is_one_image_of_the_reference(clip, tmp_path):
    one, several = (taken(packed(tmp_path / str(texts), 20, texts), clip) for texts in (1, 3))
    assert len(several.rows) == len(one.rows) == 40
    assert several.facts.novelty_scale == pytest.approx(one.facts.novelty_scale, rel=0.01)

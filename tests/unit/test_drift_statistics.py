"""Two-sample statistics: nothing is seen where nothing is, what is there is seen, and metrics are those of the definition."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from clipft_tasks.core.proportions import wilson
from clipft_tasks.drift import statistics
from clipft_tasks.drift.image_statistics import CROP, STATISTICS, appearance
from clipft_tasks.drift.reference import ImageRows, Sample
from clipft_tasks.drift.signals import SampleComparison
from clipft_tasks.drift.signals.images import PredictedClasses
from clipft_tasks.drift.statistics import (
    BINS,
    Bins,
    Projection,
    area_under_curve,
    class_bins,
    classifier_auc,
    difference,
    median_distance,
    mmd,
    psi,
    shares,
)


def cloud(count: int, seed: int, moved: float = 0.0, width: int = 6) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, width)) + moved).astype(np.float32)


# Maximum mean discrepancy ---------------------------------------------------------------------------------------------


def counted(reference: np.ndarray, window: np.ndarray, width: float) -> float:
    """The definition, pair by pair."""

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        pairs = [(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if not (same and i == j)]
        return float(np.mean([np.exp(-((x - y) ** 2).sum() / (2 * width**2)) for x, y in pairs]))

    return mean(reference, reference, True) + mean(window, window, True) - 2 * mean(reference, window, False)


@pytest.mark.parametrize(("n", "m"), [(14, 9), (2, 2), (5, 20)])
@pytest.mark.parametrize("moved", [0.0, 1.0])
@pytest.mark.parametrize("width", [0.7, 3.0])
def test_the_discrepancy_is_the_sum_over_all_pairs(n, m, moved, width):
    reference, window = cloud(n, 0).astype(float), cloud(m, 1, moved).astype(float)
    assert mmd(reference, window, width)[0] == pytest.approx(counted(reference, window, width), abs=2e-6)


def test_without_a_shift_the_discrepancy_is_zero_on_average_and_its_p_value_is_uniform():
    found = np.array([mmd(cloud(80, 2 * s), cloud(25, 2 * s + 1), 3.0, 199, seed=s) for s in range(200)])
    value, p = found.T
    assert abs(value.mean()) < 4 * value.std() / np.sqrt(200)
    assert value.min() < 0 < value.max()  # unbiased, so it falls on either side
    for level in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs((p <= level).mean() - level) < 4 * np.sqrt(level * (1 - level) / 200)


def test_a_shift_is_large_and_significant_and_grows():
    reference = cloud(200, 2)
    values = [mmd(reference, cloud(64, 3, moved), 3.0, 199) for moved in (0.0, 0.5, 1.0, 2.0)]
    assert [v for v, _ in values] == sorted(v for v, _ in values)
    assert abs(values[0][0]) < 0.02 < 0.3 < values[-1][0]
    assert values[0][1] > 0.05 and all(p == 1 / 200 for _, p in values[1:])


def test_a_change_of_spread_alone_is_seen():
    assert mmd(cloud(200, 0), 2 * cloud(64, 1), 3.0, 199)[1] == 1 / 200


@pytest.mark.parametrize("permutations", [1, 19, 500])
def test_the_smallest_p_value_is_one_in_permutations_and_one(permutations):
    assert mmd(cloud(40, 0), cloud(20, 1, 5.0), 3.0, permutations)[1] == 1 / (permutations + 1)


def test_without_permutations_nothing_is_significant():
    value, p = mmd(cloud(40, 0), cloud(20, 1, 5.0), 3.0)
    assert p == 1.0 and value == mmd(cloud(40, 0), cloud(20, 1, 5.0), 3.0, 10)[0]


def test_the_test_stops_early_only_where_chance_reached_the_value_often(monkeypatch):
    """p <= .01 needs all permutations; who looks at them all gets the same answer there, and one like it elsewhere."""
    pairs = [(cloud(60, s), cloud(20, 100 + s, moved)) for s in range(30) for moved in (0.0, 0.3, 0.6)]
    early = np.array([mmd(a, b, 3.0, 249)[1] for a, b in pairs])
    monkeypatch.setattr(statistics, "ENOUGH", 10**9)
    every = np.array([mmd(a, b, 3.0, 249)[1] for a, b in pairs])
    assert (early <= 0.01).tolist() == (every <= 0.01).tolist() and 10 < (every <= 0.01).sum() < 60
    assert early[every <= 0.01].tolist() == every[every <= 0.01].tolist()
    assert np.abs(early - every).max() < 0.35 and np.corrcoef(early, every)[0, 1] > 0.95


def test_points_that_are_all_the_same_are_no_shift():
    value, p = mmd(np.ones((40, 6)), np.ones((10, 6)), 1.0, 99)
    assert value == pytest.approx(0, abs=1e-6) and p == 1.0


def test_the_same_question_gives_the_same_answer():
    first = mmd(cloud(60, 0), cloud(20, 1, 0.2), 3.0, 99)
    assert first == mmd(cloud(60, 0), cloud(20, 1, 0.2), 3.0, 99)


def test_the_median_distance_is_that_of_all_pairs():
    points = cloud(31, 0)
    pairs = [np.linalg.norm(points[i] - points[j]) for i in range(31) for j in range(i)]
    assert median_distance(points) == pytest.approx(np.median(pairs), rel=1e-5)
    assert median_distance(points[:1]) == 1.0


# A classifier ---------------------------------------------------------------------------------------------------------


def test_a_classifier_cannot_tell_old_from_new_without_a_shift():
    areas = [classifier_auc(cloud(200, 2 * s), cloud(64, 2 * s + 1)) for s in range(40)]
    assert abs(np.mean(areas) - 0.5) < 0.02 and max(abs(a - 0.5) for a in areas) < 0.2


def test_a_classifier_tells_every_image_of_another_kind():
    assert classifier_auc(cloud(200, 0), cloud(64, 1, 5.0)) > 0.999
    assert 0.6 < classifier_auc(cloud(200, 0), cloud(64, 1, 0.3)) < 0.95


def test_a_classifier_works_beside_columns_that_never_change_and_with_a_handful_of_rows():
    still = np.column_stack([cloud(60, 0), np.ones(60)]), np.column_stack([cloud(30, 1), np.ones(30)])
    assert 0.3 < classifier_auc(*still) < 0.7
    assert 0 <= classifier_auc(cloud(6, 0), cloud(2, 1)) <= 1


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("levels", [0, 2, 7], ids=["no ties", "two scores", "seven scores"])
def test_the_area_under_the_curve_is_scikit_learns(seed, levels):
    rng = np.random.default_rng(seed)
    positive = rng.random(90) < 0.3
    scores = rng.normal(size=90) + positive if not levels else rng.integers(0, levels, 90).astype(float)
    assert area_under_curve(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_the_area_is_a_half_when_every_score_ties_or_a_side_is_empty():
    assert area_under_curve(np.zeros(6), np.array([1, 0, 1, 0, 0, 1], bool)) == 0.5
    for side in (True, False):
        assert area_under_curve(np.arange(6.0), np.full(6, side)) == 0.5
    assert area_under_curve(np.zeros(0), np.zeros(0, bool)) == 0.5


# Population stability -------------------------------------------------------------------------------------------------


def index(base: np.ndarray, window: np.ndarray) -> float:
    return Bins.of(base).shift(window)


def test_the_index_is_its_definition_less_what_chance_adds():
    expected, found, n, m = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5]), 10_000_000, 20_000_000
    wanted = sum((b - a) * np.log(b / a) for a, b in zip(expected, found, strict=True))
    assert psi(expected, found, n, m) == pytest.approx(wanted, rel=1e-5)
    small = psi(expected, found, 100, 50)
    assert small == pytest.approx(wanted - 2 * (1 / 100 + 1 / 50), abs=0.03)


@pytest.mark.parametrize(("n", "m"), [(60, 20), (200, 30), (500, 64)])
def test_without_a_shift_the_index_is_near_zero_however_few_rows_there_are(n, m):
    rng = np.random.default_rng(n)
    found = [index(rng.normal(size=n), rng.normal(size=m)) for _ in range(300)]
    by_chance = (BINS - 1) * (1 / n + 1 / m)  # what it would be without its correction
    assert min(found) == 0.0 and np.mean(found) < 0.5 * by_chance
    assert np.median(found) < 0.2 * by_chance


def test_the_index_grows_with_the_shift_either_way():
    rng = np.random.default_rng(0)
    base, window = rng.normal(size=400), rng.normal(size=100)
    for sign in (1, -1):
        found = [index(base, window + sign * moved) for moved in (0.0, 0.5, 1.0, 2.0)]
        assert found == sorted(found) and found[0] < 0.1 and found[-1] > 1


def test_empty_bins_leave_the_index_finite():
    for expected, found in (([1, 0, 0], [0, 0, 1]), ([0.5, 0.5, 0], [0, 0, 1]), ([1, 0], [1, 0])):
        assert np.isfinite(psi(np.array(expected, float), np.array(found, float), 64, 64))
    assert psi(np.array([1.0, 0, 0]), np.array([0, 0, 1.0]), 64, 64) > 3
    assert psi(np.array([1.0, 0]), np.array([1.0, 0]), 64, 64) == 0
    assert psi(np.ones(1), np.ones(1), 64, 64) == 0  # one class: nothing can move


def test_bins_hold_equal_shares_of_what_they_were_made_from():
    values = np.random.default_rng(0).normal(size=1000)
    bins = Bins.of(values)
    assert bins.expected == pytest.approx(np.full(BINS, 0.2), abs=0.002)
    assert bins.expected.tolist() == shares(values, bins.edges).tolist()
    assert shares(np.zeros(0), bins.edges).tolist() == [0.0] * BINS


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_camera_that_always_gave_the_same_size_is_told_from_larger_and_from_smaller(kind):
    always = np.full(200, np.log2(300), dtype=kind)
    assert Bins.of(always).expected.tolist() == [0, 1, 0]
    assert index(always, always[:64]) == 0
    for side in (299, 301, 150, 600):
        assert index(always, np.full(64, np.log2(side), dtype=kind)) > 1


def test_a_value_that_many_share_has_a_bin_of_its_own():
    base = np.r_[np.full(60, 8.0), np.linspace(5, 7.9, 70), np.linspace(8.1, 10, 70)].astype(np.float32)
    held = Bins.of(base).expected
    assert held.max() == pytest.approx(0.3, abs=0.01) and held.sum() == pytest.approx(1)
    assert index(base, base) == 0
    assert index(base, np.r_[np.full(60, 8.001), base[60:]].astype(np.float32)) > 0.5


# Predicted classes ----------------------------------------------------------------------------------------------------


def predicting(classes: np.ndarray, count: int) -> ImageRows:
    """Rows of which a model predicts these classes."""
    n = len(classes)
    similarity = np.zeros((n, count), np.float32)
    similarity[np.arange(n), classes] = 0.3
    return ImageRows(np.ones((n, 1), np.float32), np.zeros((n, 5), np.float32), similarity)


@pytest.mark.parametrize("count", [2, 10, 50, 200, 1_000, 10_000])
@pytest.mark.parametrize("rows", [64, 256])
def test_a_model_that_names_one_class_for_all_is_seen_with_any_number_of_classes(count, rows):
    rng = np.random.default_rng(count)
    share = 1 / np.arange(1, count + 1) ** rng.choice([0, 1])  # all alike, or few frequent ones and a long tail
    base = predicting(rng.choice(count, 512, p=share / share.sum()), count)

    def moved(classes: np.ndarray) -> float:
        none = np.zeros((0, 1), np.float32)
        samples = (Sample(part, none, none[:, 0]) for part in (base, predicting(classes, count)))
        return PredictedClasses().measure(SampleComparison(None, *samples)).value

    by_chance = max(moved(rng.choice(count, rows, p=share / share.sum())) for _ in range(30))
    for one in (0, count // 2, count - 1):  # the most frequent one, and two that may never have been predicted
        assert moved(np.full(rows, one)) > 3 * max(by_chance, 0.02)


def test_up_to_twenty_classes_are_bins_of_their_own_and_more_share_them_about_equally():
    assert class_bins(np.arange(20)).tolist() == list(range(20))
    counts = np.r_[300, 100, np.ones(400, int)]
    bins = class_bins(counts)
    assert bins[0] == 0 and bins[1] == 1 and (bins[2:] > 1).all() and bins.max() < 20
    assert np.ptp(np.bincount(bins[2:], counts[2:])[2:]) <= 1
    assert set(class_bins(np.zeros(1000, int))) == set(range(20))


# Intervals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_share_is_the_published_one(right, count, low, high):
    """Newcombe 1998, table I, method 3."""
    assert wilson(right, count) == pytest.approx((low, high), abs=6e-5)


def test_an_interval_stays_within_shares_narrows_with_rows_and_says_nothing_of_none():
    assert wilson(0, 0) == (0.0, 1.0)
    for right, count in ((0, 1), (1, 1), (20, 20), (0, 500)):
        low, high = wilson(right, count)
        assert 0 <= low <= right / count <= high + 1e-12 <= 1 + 1e-12
    widths = [np.diff(wilson(count // 2, count))[0] for count in (4, 40, 400)]
    assert widths == sorted(widths, reverse=True)


# Projection -----------------------------------------------------------------------------------------------------------


def flat(count: int, seed: int) -> np.ndarray:
    """Points of a space of 3 dimensions in one of 40."""
    plane = np.linalg.qr(np.random.default_rng(9).normal(size=(40, 3)))[0]
    return (np.random.default_rng(seed).normal(size=(count, 3)) * [3, 2, 1]) @ plane.T + 0.5


def test_the_last_column_is_the_length_of_what_the_axes_do_not_explain():
    projection = Projection.of(flat(200, 0), 3)
    inside, strange = flat(50, 1), np.random.default_rng(2).normal(size=(50, 40))
    assert projection(inside).shape == (50, 4)
    assert projection(inside)[:, -1].max() < 1e-5
    outside = projection(strange)
    assert outside[:, -1].min() > 2
    assert np.linalg.norm(outside, axis=1) == pytest.approx(np.linalg.norm(strange - projection.mean, axis=1))


def test_axes_are_perpendicular_and_in_the_order_of_what_they_explain():
    points = flat(300, 0)
    projection = Projection.of(points, 3)
    assert projection.axes @ projection.axes.T == pytest.approx(np.eye(3), abs=1e-6)
    assert projection(points)[:, :3].std(axis=0, ddof=1) == pytest.approx([3, 2, 1], rel=0.15)


def test_axes_are_those_of_all_eigenvectors_where_variances_differ():
    scale = 0.9 ** np.arange(40)
    points = np.random.default_rng(0).normal(size=(500, 40)) * scale
    projection = Projection.of(points, 5)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    assert np.abs(projection.axes @ vectors[:, ::-1][:, :5]) == pytest.approx(np.eye(5), abs=0.02)
    explained = ((points - projection.mean) @ projection.axes.T).var(axis=0, ddof=1)
    assert explained == pytest.approx(values[::-1][:5], rel=1e-3)


@pytest.mark.parametrize(("count", "width", "kept"), [(10, 32, 9), (100, 32, 32), (100, 80, 40), (2, 32, 1)])
def test_there_are_no_more_axes_than_rows_dimensions_or_wanted(count, width, kept):
    points = np.random.default_rng(0).normal(size=(count, 40))
    projection = Projection.of(points, width)
    assert projection.axes.shape == (kept, 40)
    assert np.isfinite(projection(points)).all()


# Appearance -----------------------------------------------------------------------------------------------------------


def scene(width: int = 200, height: int = 200, seed: int = 0, light: int = 70) -> Image.Image:
    """Gray noise between `light` and `light` + 80."""
    gray = np.random.default_rng(seed).integers(light, light + 80, (height, width), dtype=np.uint8)
    return Image.fromarray(gray).convert("RGB")


def looks(image: Image.Image) -> dict[str, float]:
    found = appearance(image)
    assert found.shape == (len(STATISTICS),) and found.dtype == np.float32 and np.isfinite(found).all()
    return dict(zip(STATISTICS, found.tolist(), strict=True))


def moved(image: Image.Image) -> dict[str, float]:
    """What is different from the plain scene, without what hardly is."""
    plain = looks(scene())
    return {name: value - plain[name] for name, value in looks(image).items() if abs(value - plain[name]) > 0.02}


def test_another_image_of_the_same_kind_looks_the_same():
    assert moved(scene(seed=1)) == {}


def test_a_brighter_image_moves_brightness_alone():
    assert moved(scene(light=121)) == {"brightness": pytest.approx(0.2, abs=0.01)}


def test_more_contrast_moves_contrast_and_not_sharpness():
    stretched = Image.fromarray(((np.asarray(scene(), int) - 110) * 2 + 110).clip(0, 255).astype(np.uint8))
    assert moved(stretched) == {"contrast": pytest.approx(looks(scene())["contrast"], abs=0.01)}


def test_a_blurred_image_is_less_sharp():
    blocks = scene(20, 20).resize((200, 200), Image.Resampling.NEAREST)
    found = [looks(blocks.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 2, 4)]
    sharpness = [f["sharpness"] for f in found]
    assert sharpness == sorted(sharpness, reverse=True) and sharpness[0] - sharpness[-1] > 2
    assert max(f["brightness"] for f in found) - min(f["brightness"] for f in found) < 0.01


def test_a_resized_image_moves_its_side_by_the_factor():
    found = moved(scene().resize((400, 400)))
    assert found["side"] == pytest.approx(1) and "aspect" not in found and "brightness" not in found
    assert moved(scene(100, 100))["side"] == pytest.approx(-1)


def test_wide_and_high_images_move_aspect_either_way():
    assert moved(scene(400, 200)) == {"aspect": pytest.approx(1)}
    assert moved(scene(200, 400)) == {"aspect": pytest.approx(-1)}


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 50), (50, 2), (3, 3), (383, 384), (385, 384)], ids=str)
def test_images_of_any_size_have_an_appearance(size):
    found = looks(scene(*size))
    assert found["side"] == pytest.approx(np.log2(min(size))) and found["aspect"] == pytest.approx(np.log2(size[0] / size[1]))


@pytest.mark.parametrize("value", [0, 255])
def test_a_image_of_one_color_has_no_contrast(value):
    found = looks(Image.new("RGB", (60, 60), (value,) * 3))
    assert found["brightness"] == pytest.approx(value / 255) and found["contrast"] == pytest.approx(0, abs=1e-6)


def test_of_a_huge_image_only_the_center_is_looked_at():
    huge = Image.new("RGB", (6000, 4000), (255, 0, 0))
    huge.paste(scene(CROP, CROP), ((6000 - CROP) // 2, (4000 - CROP) // 2))
    tracemalloc.start()
    found = looks(huge)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    center = looks(scene(CROP, CROP))
    assert [found[n] for n in STATISTICS[:3]] == [center[n] for n in STATISTICS[:3]]
    assert found["side"] == pytest.approx(np.log2(4000))
    assert peak < 40 * CROP * CROP  # bytes: a few arrays of the center, where the image has 24 million pixels


@pytest.mark.parametrize(
    ("shares", "interval"),
    [((56, 70, 48, 80), (0.0524, 0.3339)), ((9, 10, 3, 10), (0.1705, 0.8090)), ((10, 10, 0, 20), (0.6791, 1.0))],
)
def test_the_difference_of_two_shares_has_newcombes_published_interval(shares, interval):
    """Newcombe 1998, table II, method 10."""
    assert difference(*shares) == pytest.approx(interval, abs=1e-4)


def test_a_difference_turns_its_sign_with_the_order_and_says_nothing_without_rows():
    low, high = difference(48, 80, 56, 70)
    assert (-high, -low) == pytest.approx(difference(56, 70, 48, 80))
    assert difference(0, 0, 5, 10) == difference(5, 10, 0, 0) == (-1.0, 1.0)

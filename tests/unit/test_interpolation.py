"""Which point between start and candidate is taken, and that points between are what they should be."""

import io
import math

import pytest
import torch
from fixtures.errors import refuses
from PIL import Image

from clipft_tasks.evaluate import interpolation
from clipft_tasks.evaluate.interpolation import Point
from clipft_tasks.model.interpolation import between


def points(*pairs):
    """(score, general score) at even steps from the start model to the candidate."""
    return interpolation.curve(
        [Point(i / (len(pairs) - 1), score, general_score) for i, (score, general_score) in enumerate(pairs)]
    )


CASES = {
    # name: (points, alpha, words of the reason)
    "within both limits, the best score": (
        [(0.5, 0.8), (0.86, 0.79), (0.88, 0.75), (0.9, 0.6)],
        2 / 3,
        "95% of the gain at 25%",
    ),
    "too much forgotten further on": ([(0.5, 0.8), (0.87, 0.75), (0.9, 0.65), (0.9, 0.6)], 1 / 3, "within the budget"),
    "better than the candidate": ([(0.5, 0.8), (0.95, 0.75), (0.9, 0.6)], 0.5, "112% of the gain"),
    "nothing forgotten, the candidate": ([(0.5, 0.8), (0.8, 0.8), (0.9, 0.8)], 1.0, "nothing forgotten"),
    "remembers more than before": ([(0.5, 0.6), (0.8, 0.7), (0.9, 0.65)], 1.0, "nothing forgotten"),
    "the same score, less forgotten": ([(0.5, 0.8), (0.9, 0.79), (0.9, 0.75), (0.9, 0.6)], 1 / 3, "100% of the gain at 5%"),
    "no point meets both": (
        [(0.5, 0.8), (0.74, 0.78), (0.85, 0.66), (0.9, 0.6)],
        1 / 3,
        "the best trade-off is 60% of the gain",
    ),
    "half of the gain for all of the forgetting": ([(0.5, 0.8), (0.6, 0.6), (0.9, 0.6)], 1.0, "the best trade-off is 100%"),
    "nothing gained anywhere": ([(0.5, 0.8), (0.5, 0.7), (0.4, 0.6)], 1.0, "gained nothing"),
    "only the way is better": ([(0.5, 0.8), (0.6, 0.75), (0.4, 0.6)], 0.5, "+0.1000 compared with the start model"),
    "only the way is better, but forgets": ([(0.5, 0.8), (0.6, 0.65), (0.4, 0.6)], 1.0, "gained nothing"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_choice(name):
    given, alpha, words = CASES[name]
    decided = interpolation.choose(points(*given), min_gain=0.9, max_forgetting=0.5)
    assert decided.value == pytest.approx(alpha) and words in decided.reason, decided


def test_the_limits_are_the_specs():
    given = points((0.5, 0.8), (0.7, 0.78), (0.9, 0.6))
    assert interpolation.choose(given, min_gain=0.5, max_forgetting=0.1).value == 0.5
    assert interpolation.choose(given, min_gain=0.9, max_forgetting=1.0).value == 1.0
    assert interpolation.choose(given, min_gain=0.5, max_forgetting=0.0).value == 0.5  # the best trade-off


def test_no_choice_is_worse_than_staying():
    """On random paths: never the start model, and never a point that gained nothing or forgot more than the candidate."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        given = points(*torch.rand(6, 2, generator=generator).tolist())
        decided = interpolation.choose(given, 0.9, 0.5)
        whole, taken = given[-1], next(p for p in given if p.alpha == decided.value)
        assert taken.alpha > 0
        if taken is not whole:
            assert taken.gain > 0 and taken.forgotten <= max(whole.forgotten, 0)


def test_the_table_and_the_image_show_the_point_that_is_taken():
    rows = points((0.5, 0.8), (0.88, 0.78), (0.9, 0.6))
    lines = interpolation.table(rows, "balanced_accuracy", 0.5).splitlines()
    assert len(lines) == 5 and "taken" in lines[3] and "+0.3800" in lines[3] and "taken" not in lines[2] + lines[4]
    assert Image.open(io.BytesIO(interpolation.plot(rows, "balanced_accuracy", 0.5))).size == (896, 560)
    assert b"alpha 0.50" not in interpolation.plot(rows, "balanced_accuracy", 1.0, "svg")
    assert interpolation.plot(rows, "balanced_accuracy", 0.5, "svg").lstrip().startswith(b"<?xml")


# Weights --------------------------------------------------------------------------------------------------------------


def test_both_ends_are_exact_and_the_middle_is_the_mean():
    generator = torch.Generator().manual_seed(0)
    start, end = ({"w": torch.randn(500, generator=generator), "n": torch.tensor(n)} for n in (3, 7))
    assert torch.equal(between(start, end, 0.0)["w"], start["w"]) and torch.equal(between(start, end, 1.0)["w"], end["w"])
    middle = between(start, end, 0.5)
    assert torch.allclose(middle["w"], (start["w"] + end["w"]) / 2) and middle["n"] == 7


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.7])
def test_what_stood_still_stays_exactly(share):
    still = {"running_mean": torch.randn(100), "scale": torch.tensor(math.log(100))}
    moved = between(still, {n: w.clone() for n, w in still.items()}, share)
    assert all(torch.equal(moved[n], still[n]) for n in still)


@pytest.mark.parametrize("other", [{"w": torch.zeros(3)}, {"v": torch.zeros(2)}, {"w": torch.zeros(2), "v": torch.zeros(1)}])
def test_models_of_two_architectures_have_nothing_between(other):
    with refuses("model.other_architecture", "blend.points"):
        between({"w": torch.zeros(2)}, other, 0.5)

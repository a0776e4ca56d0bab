"""Schedules: which sizes a run passes through, and a learning rate that rises, falls and recovers."""

import math

import pytest

from clipft_tasks.contracts.plan import Phase
from clipft_tasks.data.augment import PLAIN
from clipft_tasks.domains import Augment
from clipft_tasks.spec import ResolutionSpec, TrainSpec
from clipft_tasks.train.schedule import SETTLE, TAIL_RATE, Schedule, phases, sides

KINDS = ["plain", "progressive", "multi_scale", "fixres"]
HOW = Augment()
PEAK = 1e-3


def schedule(kind: str = "plain", steps: int = 1000, train: int = 128, sizes: tuple[int, ...] = (), **spec: object) -> Schedule:
    resolution = ResolutionSpec(train=train, schedule=kind, sizes=list(sizes))
    return Schedule(TrainSpec(**{"learning_rate": PEAK, "warmup": 0.1} | spec), resolution, HOW, steps)


def rates(made: Schedule) -> list[float]:
    return [made.rate(step) for step in range(made.steps)]


# Sizes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("plain", [Phase(0, (128,))]),
        ("progressive", [Phase(0, (64,)), Phase(200, (96,)), Phase(400, (112,)), Phase(600, (128,))]),
        ("multi_scale", [Phase(0, (96, 128, 160))]),
        ("fixres", [Phase(0, (96,)), Phase(900, (128,), plain=True)]),
    ],
)
def test_each_schedule_has_its_phases(kind, expected):
    assert phases(ResolutionSpec(train=128, schedule=kind), 1000) == expected
    assert sides(ResolutionSpec(train=128, schedule=kind)) == tuple(sorted({s for phase in expected for s in phase.sides}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("train", "patch"), [(128, 16), (224, 32), (224, 14), (336, 14), (64, 8), (32, 32), (96, 16)])
def test_sides_are_multiples_of_the_patch_and_end_at_the_deployment_size(kind, train, patch):
    spec = ResolutionSpec(train=train, schedule=kind)
    assert train in sides(spec, patch) and all(side > 0 and side % patch == 0 for side in sides(spec, patch))
    made = phases(spec, 500, patch)
    assert made[0].first == 0 and [s.first for s in made] == sorted({s.first for s in made})
    assert {side for phase in made for side in phase.sides} == set(sides(spec, patch))
    assert train in made[-1].sides and (kind == "multi_scale" or made[-1].sides == (train,))


def test_sizes_that_are_asked_for_replace_the_derived_ones():
    assert [s.sides for s in phases(ResolutionSpec(train=128, schedule="progressive", sizes=[32, 80]), 90)] == [
        (32,), (80,), (128,),
    ]  # fmt: skip
    assert phases(ResolutionSpec(train=128, schedule="multi_scale", sizes=[64, 160]), 90)[0].sides == (64, 128, 160)
    assert phases(ResolutionSpec(train=128, schedule="fixres", sizes=[64, 96]), 90)[0].sides == (96,)
    assert sides(ResolutionSpec(train=128, schedule="plain", sizes=[64])) == (128,)


@pytest.mark.parametrize("kind", KINDS)
def test_a_side_is_a_pure_function_of_seed_and_step(kind):
    one, other = schedule(kind), schedule(kind)
    forward = [one.side(step) for step in range(1000)]
    assert [other.side(step) for step in reversed(range(1000))] == forward[::-1]
    assert all(side in one.phase(step).sides for step, side in enumerate(forward))
    assert set(forward) == set(sides(ResolutionSpec(train=128, schedule=kind)))


def test_multi_scale_draws_all_sides_alike_and_by_the_seed():
    drawn = [schedule("multi_scale").side(step) for step in range(1000)]
    assert all(280 < drawn.count(side) < 390 for side in (96, 128, 160))
    assert [schedule("multi_scale", seed=1).side(step) for step in range(1000)] != drawn


def test_only_the_tail_of_fixres_is_plain():
    made = schedule("fixres")
    assert [made.augment(step) for step in (0, 899)] == [HOW, HOW] and [made.augment(s) for s in (900, 999)] == [PLAIN, PLAIN]
    for kind in KINDS[:3]:
        assert all(schedule(kind).augment(step) is HOW for step in range(1000))


# Learning rate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "multi_scale"])
def test_the_rate_warms_up_evenly_and_falls_along_a_cosine_to_about_zero(kind):
    found = rates(schedule(kind))
    assert found[:100] == pytest.approx([PEAK * (step + 1) / 100 for step in range(100)])
    assert found[100:] == pytest.approx([PEAK / 2 * (1 + math.cos(math.pi * step / 900)) for step in range(900)])
    assert max(found) == PEAK and 0 < found[-1] < 1e-5 * PEAK


def test_without_warm_up_the_first_step_has_the_peak():
    found = rates(schedule(warmup=0.0))
    assert found[0] == PEAK and found == sorted(found, reverse=True)


def test_after_a_change_of_size_the_rate_dips_and_is_back_soon():
    grown, settle = rates(schedule("progressive")), round(1000 * SETTLE)
    for first in (200, 400, 600):
        dip = grown[first : first + settle]
        assert dip[0] == pytest.approx(grown[first - 1] / (settle + 1)) and dip == sorted(dip)
        assert grown[first + settle] == pytest.approx(PEAK, rel=0.01)


def learned(kind: str, side: int) -> float:
    """The share of all that a run learns, as far as the rate tells, that it learns at a side."""
    made = schedule(kind)
    found = rates(made)
    return sum(rate for step, rate in enumerate(found) if made.side(step) == side) / sum(found)


def test_growing_sizes_train_at_the_full_rate_and_the_last_one_has_the_whole_fall():
    found = rates(schedule("progressive"))
    assert all(found[step] == PEAK for step in (150, 350, 599))
    fall = found[620:]
    assert fall == sorted(fall, reverse=True) and 0 < fall[-1] < 1e-4 * PEAK
    assert learned("progressive", 128) > 0.25


def test_the_tail_of_fixres_learns_at_full_size_along_a_fall_of_its_own():
    found = rates(schedule("fixres"))
    assert found[899] < 1e-4 * PEAK  # the small size has ended its own fall
    assert max(found[900:]) == pytest.approx(TAIL_RATE * PEAK, rel=0.15)
    assert found[920:] == sorted(found[920:], reverse=True) and 0 < found[-1] < 0.01 * PEAK
    assert learned("fixres", 128) > 0.02


# Heads, and very short runs -------------------------------------------------------------------------------------------


def test_the_heads_are_alone_for_their_share_of_the_steps():
    made = schedule(head_first=0.25)
    assert [made.heads_only(step) for step in (0, 249, 250, 999)] == [True, True, False, False]
    assert not schedule().heads_only(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
def test_a_run_of_few_steps_has_sizes_and_rates_too(kind, steps, warmup):
    made = schedule(kind, steps, warmup=warmup)
    assert made.phases[0].first == 0
    assert all(made.side(step) in sides(ResolutionSpec(train=128, schedule=kind)) for step in range(steps))
    assert all(0 < rate <= PEAK for rate in rates(made))


def test_the_last_of_three_steps_has_the_deployment_size():
    assert [schedule("progressive", 3).side(step) for step in range(3)] == [96, 112, 128]
    assert [schedule("fixres", 3).side(step) for step in range(3)] == [96, 96, 128]
    assert schedule("fixres", 1).side(0) == schedule("plain", 1).side(0) == 128


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_progressive_training_always_ends_at_the_deployment_size(steps):
    assert schedule("progressive", steps).side(steps - 1) == 128
    spec = ResolutionSpec(train=128, schedule="progressive", sizes=[64, 160])
    assert phases(spec, 30)[-1].sides == (128,)

"""What may vary, when a search stops, and what wins: on made-up trials, without training anything."""

import math

import numpy as np
import pytest
from fixtures.errors import refuses
from hypothesis import given
from hypothesis import strategies as st

from clipft_tasks import objectives
from clipft_tasks.objectives import InfoNCE
from clipft_tasks.spec import RunSpec, TuneSpec
from clipft_tasks.spec.ranges import Range
from clipft_tasks.train.validation import ValidationRows, pack, unpack
from clipft_tasks.tuning import plots, search_space, stopping
from clipft_tasks.tuning.trials import State, Trial


class Margins(InfoNCE):
    space = {
        "margin": Range(0.1, 0.5),
        "hardest": Range(1, 8),
        "kind": Range.of("soft", "hard"),
        "fixed": Range(2.0, 2.0),
        "late": Range(0.1, 1.0),
    }

    def __init__(
        self, margin: float = 0.9, hardest: int = 2, kind: str = "hard", fixed: float = 2.0, late: float | None = None
    ):
        super().__init__()


class Wrong(InfoNCE):
    space = {"there_is_none": Range(0, 1)}


def spec(**flat) -> RunSpec:
    return RunSpec.from_flat({"domain": "general", "objective.name": "info_nce", "tune.trials": 3} | flat)


HERE = __name__


# space ----------------------------------------------------------------------------------------------------------------


def test_the_space_is_what_the_objective_declares_with_the_templates_own_values_in_it():
    found = search_space.search_space_of(
        spec(**{"objective.name": f"{HERE}:Margins", "objective.options": {"hardest": 3}}), 0.07
    )
    assert set(found) == {*(f"objective.options.{n}" for n in ("margin", "hardest", "kind", "late")), "objective.temperature"}
    margin, hardest, kind, late = (found[f"objective.options.{n}"] for n in ("margin", "hardest", "kind", "late"))
    assert (margin.range.low, margin.range.high, margin.template) == (0.1, 0.9, 0.9)  # widened to the template's
    assert hardest.whole and hardest.template == 3 and hardest.points == 8
    assert kind.template == "hard" and kind.points == 2
    assert late.template is None and late.points == math.inf
    temperature = found["objective.temperature"]
    assert temperature.range.log and temperature.range.low < 0.07 == temperature.template < temperature.range.high


def test_auxiliary_losses_bring_their_options_and_weights():
    also = [f"{HERE}:Margins=0.5", "multi_positive=0>1"]
    found = search_space.search_space_of(spec(**{"objective.auxiliary": also}), None)
    weight = found[f"objective.options.{HERE}:Margins.weight"]
    assert weight.range.low < 0.5 == weight.template < weight.range.high
    assert f"objective.options.{HERE}:Margins.margin" in found
    assert "objective.options.multi_positive.text_weight" in found
    assert "objective.options.multi_positive.weight" not in found  # it follows a schedule
    assert "objective.temperature" not in found  # nobody knows the start model's


# What follows from the starter where a spec leaves it open.
STARTER = {
    "resolution.train": 128,
    "resolution.evaluate": [96, 128, 160],
    "train.learning_rate": 2e-4,
    "train.beta2": 0.999,
}


@pytest.mark.parametrize(
    ("flat", "identity"),
    [
        ({"domain": "industrial", "tune.learning_rate": True, "tune.lora_rank": True}, "992ed72675cd95c6"),
        (
            {
                "domain": "general",
                "objective.name": "soft_target",
                "objective.auxiliary": ["cyclic = 0 > 2", "alignment", "distillation = 0.5"],
                "objective.options": {"distillation.weight": 2, "alignment.distance": "mmd"},
            },
            "bc7c3df08c21b785",
        ),
    ],
)
def test_studies_of_the_release_before_go_on(flat, identity):
    whole = RunSpec.from_flat(flat).settled(STARTER)
    found = search_space.search_space_of(whole, 0.07)
    assert whole.identity("tune", space=found.to_dict()) == identity


def test_every_value_that_may_be_tried_makes_a_spec():
    whole = spec(
        **STARTER, **{"objective.auxiliary": [f"{HERE}:Margins=0.5"], "tune.learning_rate": True, "tune.lora_rank": True}
    )
    found = search_space.search_space_of(whole, 0.07)
    assert {"train.learning_rate", "train.lora_rank", "objective.label_smoothing"} <= set(found)
    for field, dimension in found.items():
        for value in dimension.range.choices or (dimension.range.low, dimension.range.high):
            changed = whole.changed({field: value})
            section, _, option = field.partition(".options.")
            assert (changed.flat()[f"{section}.options"][option] if option else changed.flat()[field]) == value
    assert whole.changed({}) == whole


NUMBERS = st.integers(-100, 100) | st.floats(-100, 100)


@given(st.lists(NUMBERS, min_size=2, max_size=2).map(sorted), st.booleans(), st.none() | NUMBERS | st.booleans() | st.text())
def test_a_range_holds_what_was_declared_and_the_templates_own_value(ends, log, own):
    low, high = ends
    if log and low <= 0:
        with pytest.raises(ValueError, match="no range"):
            Range(low, high, log)
        return

    class Declares(InfoNCE):
        space = {"x": Range(low, high, log)}

        def __init__(self, x=own):
            super().__init__()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "objective_class", lambda name: Declares)
        found = search_space.search_space_of(spec(), None)
    dimension = found.get("objective.options.x")
    if dimension is None:  # a single point: nothing to choose
        assert low == high
        return
    assert dimension.range.low <= low and high <= dimension.range.high
    if dimension.template is not None:
        assert dimension.template == own and dimension.range.low <= own <= dimension.range.high
    else:
        assert own is None or isinstance(own, bool | str) or (log and own <= 0)


def test_nothing_to_tune_is_a_space_of_one_point():
    assert search_space.search_space_of(spec(**{"tune.objective": False}), 0.07).points == 1
    assert search_space.search_space_of(spec(**{"tune.objective": False, "tune.lora_rank": True}), 0.07).points == 6


def test_a_range_for_an_option_that_is_not_there_is_refused():
    with refuses("tune.unknown_option", "there_is_none"):
        search_space.search_space_of(spec(**{"objective.name": f"{HERE}:Wrong"}), 0.07)


def test_only_objectives_of_ones_own_are_known_by_their_source():
    assert objectives.source_digests(spec().objective) == {}
    assert set(objectives.source_digests(spec(**{"objective.auxiliary": [f"{HERE}:Margins=1"]}).objective)) == {
        f"{HERE}:Margins"
    }


def test_importance_is_told_once_scores_differ(home):
    from clipft_tasks.tuning.study import Study, open_study

    found = search_space.search_space_of(spec(**STARTER, **{"tune.learning_rate": True}), 0.07)
    open_study("s", "subject", found, {}, 6)
    study = Study("s")
    for number in range(6):
        assert study.importance() == {} or number > 2
        values = study.begin(number)
        assert study.begin(number) == values  # a second start changes nothing
        study.end(number, State.COMPLETE, score=0.1 * number)
        study.end(number, State.FAILED, reason="too late")
    assert [t.score for t in study.trials()] == pytest.approx([0.1 * n for n in range(6)])
    assert study.trials()[0].values == {field: d.template for field, d in found.items()}
    shares = study.importance()
    assert set(shares) == set(found) and sum(shares.values()) == pytest.approx(1)


# stopping -------------------------------------------------------------------------------------------------------------


def complete(number: int, score: float, seconds: float = 60, **values) -> Trial:
    return Trial(number, State.COMPLETE, values or {"x": number}, score, seconds)


def tune(**fields) -> TuneSpec:
    return TuneSpec(**{"trials": 20, "minutes": 100, "patience": 3, "min_gain": 0.01} | fields)


def test_a_search_goes_on_while_it_gains():
    assert stopping.reason_to_stop([], tune(), math.inf) == ""
    assert stopping.reason_to_stop([complete(0, 0.5)], tune(), math.inf) == ""
    rising = [complete(n, 0.5 + n / 100) for n in range(9)]
    assert stopping.reason_to_stop(rising, tune(), math.inf) == ""


def test_it_stops_when_no_trial_beats_the_template():
    tried = [complete(0, 0.5), complete(1, 0.505), complete(2, 0.4), Trial(3, State.PRUNED, {"x": 3})]
    assert "nothing is gained" in stopping.reason_to_stop(tried, tune(), math.inf)
    assert stopping.reason_to_stop(tried[:3], tune(), math.inf) == ""
    assert stopping.reason_to_stop(tried, tune(patience=0), math.inf) == ""


def test_it_stops_when_nothing_more_is_gained():
    tried = [complete(0, 0.5), complete(1, 0.7), *(complete(n, 0.69) for n in (2, 3, 4))]
    assert "nothing more is gained" in stopping.reason_to_stop(tried, tune(), math.inf)


def test_it_stops_when_nothing_can_be_gained():
    assert "the template scores 0.9950: nothing could gain" in stopping.reason_to_stop([complete(0, 0.995)], tune(), math.inf)
    assert "trial 1 scores 1.0000: nothing could gain" in stopping.reason_to_stop(
        [complete(0, 0.5), complete(1, 1.0)], tune(), math.inf
    )


def test_it_stops_with_its_budget_and_before_a_trial_that_would_break_it():
    assert "is spent" in stopping.reason_to_stop([complete(0, 0.5, 3600), complete(1, 0.6, 3600)], tune(), math.inf)
    assert "a trial takes 40.0" in stopping.reason_to_stop(
        [complete(0, 0.5, 2400), complete(1, 0.6, 2400)], tune(minutes=99), math.inf
    )
    assert stopping.reason_to_stop([complete(0, 0.5, 2400), complete(1, 0.6, 2400)], tune(minutes=101), math.inf) == ""


def test_it_stops_when_every_point_was_tried():
    tried = [complete(0, 0.5, x=1), complete(1, 0.4, x=2), complete(2, 0.4, x=2)]
    assert stopping.reason_to_stop(tried, tune(), 3) == ""
    assert "all 2 sets" in stopping.reason_to_stop(tried, tune(), 2)


# deciding -------------------------------------------------------------------------------------------------------------

ROWS = 60
GROUPED = ValidationRows(
    "balanced_accuracy", np.arange(ROWS), np.arange(ROWS) % 2, np.repeat(np.arange(12), 5), ["a", "b"], True
)


def trial(number: int, right: np.ndarray, **values) -> Trial:
    return Trial(number, State.COMPLETE, values, GROUPED.score(right), 1.0, right=pack(right))


def first(n: int) -> np.ndarray:
    return np.arange(ROWS) < n


def test_better_values_win_with_their_reason():
    decision = stopping.decide([trial(0, first(20), x=1), trial(1, first(50), x=2), trial(2, first(40), x=3)], GROUPED, 0.01)
    assert decision.value == {"x": 2}
    assert decision.measured["gain"] == pytest.approx(0.5) and decision.measured["gain_low"] > 0.1
    assert "trial 1" in decision.reason


def test_a_gain_below_the_least_leaves_the_template():
    decision = stopping.decide([trial(0, first(20), x=1), trial(1, first(50), x=2)], GROUPED, 0.6)
    assert decision.value == {} and "min_gain" in decision.reason


def test_a_gain_within_the_noise_leaves_the_template():
    shifted = np.roll(first(20), 20)
    shifted[:2] = True  # other groups, two rows more
    decision = stopping.decide([trial(0, first(20), x=1), trial(1, shifted, x=2)], GROUPED, 0.01)
    assert decision.measured["gain"] > 0.01 > 0 > decision.measured["gain_low"]
    assert decision.value == {} and "noise" in decision.reason


def test_the_template_may_be_the_best():
    decision = stopping.decide([trial(0, first(50), x=1), trial(1, first(20), x=2)], GROUPED, 0.0)
    assert decision.value == {} and "none of 1" in decision.reason


def test_without_the_templates_score_nothing_is_compared():
    waiting = Trial(0, State.RUNNING, {"x": 1})
    assert "did not end" in stopping.decide([waiting, trial(1, first(50), x=2)], GROUPED, 0.0).reason
    assert "budget" in stopping.decide([waiting], GROUPED, 0.0).reason
    failed = Trial(0, State.FAILED, {"x": 1}, reason="loss is nan")
    assert stopping.decide([failed, trial(1, first(50), x=2)], GROUPED, 0.0).value == {"x": 2}


def test_when_all_failed_there_is_nothing_to_decide():
    with refuses("tune.all_failed", "2 trials", "loss is nan"):
        stopping.decide([Trial(n, State.FAILED, reason="loss is nan") for n in range(2)], GROUPED, 0.0)


# judging --------------------------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_validation_split_and_classes_not_those_of_the_test_split():
    import pandas as pd

    frame = pd.DataFrame(
        {
            "split": ["train", "val", "val", "val", "test"],
            "label": ["b", "a", "", "b", "c"],
            "group": ["", "g", "", "g", ""],
            "key": list("12345"),
            "sha256": list("12345"),
            "caption": ["b", "a", "x", "b", "c"],
        }
    )
    rows = ValidationRows.of(frame)
    assert (rows.metric, rows.classes) == ("balanced_accuracy", ["a", "b"])
    assert rows.truth.tolist() == [0, -1, 1] and rows.groups.tolist() == ["g", "3", "g"]
    assert rows.score(np.array([True, False, False])) == 0.5
    assert math.isnan(rows.score(np.array([True, True, True]), np.array([1])))
    plain = ValidationRows.of(frame.assign(label=""))
    assert plain.metric == "image_to_text_r1" and plain.score(np.array([True, False, False])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 100])
def test_what_was_right_is_packed_without_loss(rows):
    right = np.random.default_rng(rows).random(rows) < 0.5
    assert (unpack(pack(right), rows) == right).all()


def test_the_plots_are_images_whatever_was_tried():
    odd = [Trial(0, State.FAILED), Trial(1, State.PRUNED, epochs={1: 0.4}), complete(2, 0.5), Trial(3, State.WAITING)]
    for tried in ([], odd):
        assert plots.history(tried, "accuracy", 2).startswith(b"\x89PNG")
    assert plots.importance({"a": 0.9, "b": 0.1}).startswith(b"\x89PNG")

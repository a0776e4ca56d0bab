"""What a comparison says of models, from what they said of rows."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from clipft_tasks.contracts.comparison import ModelComparison
from clipft_tasks.contracts.evaluation import EvaluationResult, ModelScores, PairedGain
from clipft_tasks.core.settings import settings
from clipft_tasks.evaluate import compare, compare_page, cost
from clipft_tasks.evaluate.compare import Model, Origin, Question, RunFacts
from clipft_tasks.evaluate.predictions import Predictions

CLASSES = ["bolt", "nut", "washer"]


def said(right: float, rows: int = 120, classes: int = 3, seed: int = 0) -> Predictions:
    """A model that names this share of the rows right; truth is the same for every seed."""
    truth = np.arange(rows) % classes
    rng = np.random.default_rng(seed)
    predicted = np.where(rng.permutation(rows) < right * rows, truth, (truth + 1) % classes)
    scores = np.full((rows, classes), 0.1)
    scores[np.arange(rows), predicted] = 0.3 + 0.1 * rng.random(rows)
    keys = np.array([f"{i:04}" for i in range(rows)])
    ranks = np.zeros(rows)
    return Predictions(
        keys, keys, truth, predicted, scores.max(1) - 0.1, scores, ranks, ranks, np.ones(rows), scores, 10.0, 0.01, {}
    )


def model(name: str, right: float, domain: str = "industrial", rows: str = "r", classes: int = 3, **facts: object) -> Model:
    origin = Origin(domain, f"{domain}/v1", "", "starter", "", "", name, 128, (96, 128))
    names = CLASSES if classes == 3 else [f"class {i:02}" for i in range(classes)]
    seed = sum(map(ord, name))
    predictions = {size: said(right, classes=classes, seed=seed) for size in (96, 128)}
    return Model(name, origin, Path(), f"{domain}/v1", rows, names, predictions, RunFacts(**facts))


def compared(*models: Model, problems: Sequence[str] = ()) -> ModelComparison:
    questions = {m.domain: Question("balanced_accuracy", ["balanced_accuracy", "accuracy"]) for m in models}
    return compare.compare(models, questions, resamples=300, problems=problems)


def recorded(value: float) -> dict[int, EvaluationResult]:
    scores = ModelScores(intervals={}, metrics={"general_score": 0.25})
    gain = PairedGain(value=value, low=value - 0.1, high=value + 0.1, p=0.01)
    models = {"start": scores, "candidate": scores}
    fields = {
        "size": 128,
        "rows": 120,
        "metric": "balanced_accuracy",
        "opponent": "",
        "models": models,
        "gains": {"start": gain},
    }
    return {128: EvaluationResult(**fields)}


def test_models_of_two_domains_stand_side_by_side_untested():
    industrial = [model("a 1", 0.5, evaluations=recorded(0.2)), model("a 2", 0.9)]
    medical = [model("b 1", 0.8, "medical"), model("b 2", 0.8, "medical")]
    found = compared(*industrial, *medical, problems=["b 1: its run was deleted"])
    pairs = [(p.old, p.new) for group in found.groups for p in group.pairs]
    assert pairs == [("a 1", "a 2"), ("b 1", "b 2")] and found.tests == 2
    sure, unsure = (group.pairs[0].gain for group in found.groups)
    assert sure.p_holm == pytest.approx(min(1, 2 * sure.p)) and unsure.p_holm >= unsure.p  # over both domains
    assert found.summary[0].startswith("a 2 is better than a 1: +40.0 points of balanced accuracy at 128 px")
    assert found.summary[1].startswith("No difference beyond chance between b 2 and b 1")
    assert [g.gain and g.gain.value for g in found.gains] == [0.2, None, None, None]
    page = compare_page.page(found, {})
    assert all(text in page for text in ("its run was deleted", "its run has no evaluation", "medical", "+0.200"))
    assert found.groups[0].recorded["a 1"] == {"general_score": 0.25} and "as its run recorded it" in page
    assert ModelComparison.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


def test_a_worse_model_is_called_worse():
    found = compared(model("new", 0.9), model("other", 0.4))
    assert found.summary[0].startswith("new is better than other: -50.0 points")
    assert '<td class="worse">worse</td>' in compare_page.page(found, {})


def test_changed_rows_are_what_the_two_said_the_surest_first():
    old, new = model("old", 0.5), model("new", 0.7)
    change = compare.changes(old, new, 128)
    a, b = old.predictions[128], new.predictions[128]
    assert set(change.fixed) == set(np.flatnonzero((b.predicted == b.truth) & (a.predicted != a.truth)))
    assert set(change.broken) == set(np.flatnonzero((b.predicted != b.truth) & (a.predicted == a.truth)))
    assert (np.diff(b.margin[change.fixed]) <= 0).all()
    i = change.broken[0]
    assert dict(change.rows[i]) == {
        n: CLASSES[x[i]] for n, x in (("truth", a.truth), ("old", a.predicted), ("new", b.predicted))
    }


def test_many_classes_are_shown_as_their_largest_confusions():
    many = model("m", 0.5, classes=20)
    found = compare.confusion(many.predictions[128], many.classes)
    assert found.counts is None and len(found.largest) == compare.SHOWN_CLASSES
    counts = [c.rows for c in found.largest]
    assert counts == sorted(counts, reverse=True) and all(c.truth != c.answer for c in found.largest)
    assert "the largest confusions of 20 classes" in compare_page.page(compared(many), {})


def test_parameters_that_are_equal_or_probed_are_left_out():
    one = {"train.epochs": "3", "train.seed": "0", "plan.flops": "1", "plan.device": "cpu"}
    two = {"train.epochs": "3", "train.seed": "1", "plan.flops": "2", "plan.device": "mps", "train.ema": "0.9"}
    found = compare.differing({"a": one, "b": two, "gone": {}})
    assert found == {
        "plan.device": ["cpu", "mps", None], "train.ema": [None, "0.9", None], "train.seed": ["0", "1", None]
    }  # fmt: skip


HOUR = {"pairs": 7200.0, "pairs_per_second": 2.0}


@pytest.mark.parametrize(
    ("params", "given", "energy", "assumed"),
    [
        ({"plan.device": "cpu"}, {}, 65.0, "65 W assumed for cpu"),
        ({"plan.device": "cuda", "plan.processes": "2"}, {}, 800.0, "400 W assumed for cuda, 2 devices"),
        ({"plan.device": "cuda"}, {"measured": 510.0}, 510.0, "mean of the GPU's own meter, 510 W"),
        ({"plan.device": "cuda"}, {"measured": 510.0, "watts": 100.0}, 100.0, "100 W as given"),
    ],
)
def test_energy_is_power_times_time_and_says_whose_power(params, given, energy, assumed):
    found = cost.estimate("a", params, HOUR, **given)
    assert (found.seconds, found.energy_wh, found.assumed) == (3600, pytest.approx(energy), assumed)
    assert found.sentence == f"about {energy:.0f} Wh ({assumed}; an estimate)"


def test_energy_has_a_price_where_one_is_set(home, monkeypatch, caplog):
    def price(asked: str) -> str:
        monkeypatch.setenv("CLIPFT_ENERGY_PRICE", asked)
        settings.cache_clear()
        return cost.estimate("a", {"plan.device": "cuda"}, HOUR).price

    assert price("0.30 EUR") == "0.12 EUR" and price("3 $") == "1.2 $" and price("") == ""
    assert price("much") == "" and "'much' is no price of a kilowatt-hour" in caplog.text


def test_a_run_that_is_gone_has_no_cost():
    found = cost.estimate("a", {}, {})
    assert found.seconds is None and found.energy_wh is None and found.assumed == found.sentence == ""


def test_the_curve_holds_every_point_and_interval_within_its_axes():
    found = compared(model("a", 0.5), model("b", 0.9))
    drawn = compare_page.curve(found.groups[0])
    assert [label for _, label in drawn.x_ticks] == [96, 128] and len(drawn.lines) == 2
    for points in drawn.lines.values():
        assert len(points) == 2
        for p in points:
            assert 0 <= p.high <= p.y <= p.low <= drawn.bottom + 1e-6

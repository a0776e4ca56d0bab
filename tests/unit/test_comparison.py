"""What a comparison says of models, from what they said of rows."""

from pathlib import Path

import numpy as np
import pytest

from clipft_tasks.evaluate import compare
from clipft_tasks.evaluate.zero_shot import Scored

CLASSES = ["bolt", "nut", "washer"]


def said(right: float, rows: int = 120, classes: int = 3, seed: int = 0) -> Scored:
    """A model that names this share of the rows right; truth is the same for every seed."""
    truth = np.arange(rows) % classes
    rng = np.random.default_rng(seed)
    predicted = np.where(rng.permutation(rows) < right * rows, truth, (truth + 1) % classes)
    scores = np.full((rows, classes), 0.1)
    scores[np.arange(rows), predicted] = 0.3 + 0.1 * rng.random(rows)
    keys = np.array([f"{i:04}" for i in range(rows)])
    ranks = np.zeros(rows)
    return Scored(
        keys, keys, truth, predicted, scores.max(1) - 0.1, scores, ranks, ranks, np.ones(rows), scores, 10.0, 0.01, {}
    )


def model(
    name: str, right: float, domain: str = "industrial", rows: str = "r", classes: int = 3, **facts: object
) -> compare.Model:
    card = {"domain": domain, "dataset": f"{domain}/v1", "start": "starter", "run_id": name, "resolutions": {"serve": 128}}
    names = CLASSES if classes == 3 else [f"class {i:02}" for i in range(classes)]
    seed = sum(map(ord, name))
    scored = {side: said(right, classes=classes, seed=seed) for side in (96, 128)}
    return compare.Model(name, card, Path(), f"{domain}/v1", rows, names, scored, facts)


def compared(*models: compare.Model) -> dict:
    metrics = {m.domain: "balanced_accuracy" for m in models}
    return compare.content(models, metrics, {d: ["balanced_accuracy", "accuracy"] for d in metrics}, 300)


def recorded(gain: float) -> dict:
    found = {
        "metric": "balanced_accuracy",
        "after": {},
        "gain_over_before": {"value": gain, "low": gain - 0.1, "high": gain + 0.1},
    }
    return {"128": found}


def test_models_of_two_domains_stand_side_by_side_untested():
    gains = {"recorded": recorded(0.2)}
    found = compared(model("a 1", 0.5, **gains), model("a 2", 0.9), model("b 1", 0.8, "medical"), model("b 2", 0.8, "medical"))
    pairs = [(p["from"], p["to"]) for group in found["groups"] for p in group["pairs"]]
    assert pairs == [("a 1", "a 2"), ("b 1", "b 2")] and found["tests"] == 2
    sure, unsure = (group["pairs"][0] for group in found["groups"])
    assert sure["p_holm"] == pytest.approx(min(1, 2 * sure["p"])) and unsure["p_holm"] >= unsure["p"]  # over both domains
    assert found["said"][0].startswith("a 2 is better than a 1: +40.0 points of balanced accuracy at 128 px")
    assert found["said"][1].startswith("No difference beyond chance between b 2 and b 1")
    assert [g.get("value") for g in found["gains"]] == [0.2, None, None, None]
    page = compare.page(found, {}, ["b 1: its run was deleted"])
    assert all(text in page for text in ("its run was deleted", "its run has no evaluation", "medical", "+0.200"))


def test_a_worse_model_is_called_worse():
    found = compared(model("new", 0.9), model("other", 0.4))
    assert found["said"][0].startswith("new is better than other: -50.0 points")
    assert '<td class="worse">worse</td>' in compare.page(found, {}, [])


def test_changed_rows_are_what_the_two_said_the_surest_first():
    old, new = model("old", 0.5), model("new", 0.7)
    change = compare.changes(old, new, 128)
    a, b = old.scored[128], new.scored[128]
    assert set(change["mended"]) == set(np.flatnonzero((b.predicted == b.truth) & (a.predicted != a.truth)))
    assert set(change["broken"]) == set(np.flatnonzero((b.predicted != b.truth) & (a.predicted == a.truth)))
    assert (np.diff(b.margin[change["mended"]]) <= 0).all()
    i = change["broken"][0]
    assert change["rows"][str(i)] == {
        n: CLASSES[x[i]] for n, x in (("truth", a.truth), ("old", a.predicted), ("new", b.predicted))
    }


def test_many_classes_are_shown_as_their_largest_confusions():
    many = model("m", 0.5, classes=20)
    found = compare.confusion(many.scored[128], many.classes)
    assert "counts" not in found and len(found["largest"]) == compare.SHOWN_CLASSES
    counts = [n for _, _, n in found["largest"]]
    assert counts == sorted(counts, reverse=True) and all(t != p for t, p, _ in found["largest"])
    assert "the largest confusions of 20 classes" in compare.page(compared(many), {}, [])


def test_parameters_that_are_equal_or_probed_are_left_out():
    one = {"train.epochs": "3", "train.seed": "0", "plan.flops": "1", "plan.device": "cpu"}
    two = {"train.epochs": "3", "train.seed": "1", "plan.flops": "2", "plan.device": "mps", "train.ema": "0.9"}
    found = compare.differing({"a": one, "b": two, "gone": {}})
    assert found == {
        "plan.device": ["cpu", "mps", None], "train.ema": [None, "0.9", None], "train.seed": ["0", "1", None]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "watts", "energy", "assumed"),
    [
        ({"params": {"plan.device": "cpu"}}, None, 65.0, "65 W assumed for cpu"),
        ({"params": {"plan.device": "cuda", "plan.processes": "2"}}, None, 800.0, "400 W assumed for cuda, 2 devices"),
        ({"params": {"plan.device": "cuda"}, "watts": 510.0}, None, 510.0, "mean of the GPU's own meter, 510 W"),
        ({"params": {"plan.device": "cuda"}, "watts": 510.0}, 100.0, 100.0, "100 W as given"),
    ],
)
def test_energy_is_power_times_time_and_says_whose_power(facts, watts, energy, assumed):
    hour = {"metrics": {"pairs": 7200.0, "pairs_per_second": 2.0}}
    found = compare.cost(facts | hour, watts)
    assert (found["seconds"], found["energy_wh"], found["assumed"]) == (3600, pytest.approx(energy), assumed)


def test_a_run_that_is_gone_has_no_cost():
    found = compare.cost({})
    assert found["seconds"] is None and found["energy_wh"] is None and found["assumed"] == ""


def test_the_curve_holds_every_point_and_interval_within_its_axes():
    found = compared(model("a", 0.5), model("b", 0.9))
    drawn = compare.curve(found["groups"][0])
    assert [label for _, label in drawn["x_ticks"]] == [96, 128]
    for line in drawn["lines"]:
        assert len(line["points"]) == 2
        for p in line["points"]:
            assert 0 <= p["high"] <= p["y"] <= p["low"] <= drawn["bottom"] + 1e-6

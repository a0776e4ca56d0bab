"""One catalog of metrics: what an evaluation computes is what it declares, and everything that names metrics follows it."""

from pathlib import Path

import numpy as np
import pytest
from fixtures.errors import refuses

from clipft_tasks.evaluate import metrics, predictions
from clipft_tasks.evaluate.predictions import Predictions
from clipft_tasks.spec import GateSpec, form
from clipft_tasks.spec.metric_catalog import HEADLINES, INTERVALS, METRICS, markdown

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
ELSEWHERE = {"general_score", "forgetting", "robustness"}  # from other images than the test rows
FITTED = {"temperature", "fitted_temperature", "fitted_calibration_error"}
PROBED = {name for name in METRICS if name.startswith(("linear_probe", "nearest_neighbors"))}


def said(labeled: bool = True, rows: int = 60, classes: int = 6) -> Predictions:
    """A model that says things at random."""
    rng = np.random.default_rng(0)
    scores, image, text = rng.random((rows, classes)), rng.normal(size=(rows, 8)), rng.normal(size=(rows, 8))
    truth = np.arange(rows) % classes if labeled else np.full(rows, -1)
    keys = np.array([f"{i:03}" for i in range(rows)])
    ranks = rng.integers(0, 12, (2, rows)).astype(float)
    where = metrics.geometry(image, text)
    answers = metrics.answers(scores)
    return Predictions(
        keys, keys, truth, answers, metrics.margins(scores), scores, ranks[0], ranks[1], np.ones(rows), image, 10.0, 0.01, where
    )


def test_every_metric_of_the_rows_is_declared_and_lies_in_its_range():
    values, absent = predictions.all_metrics(said())
    values |= predictions.calibration(said(), said())
    assert absent == {} and values.keys() == METRICS.keys() - ELSEWHERE - PROBED
    for name, value in values.items():
        info = METRICS[name]
        assert (info.low is None or value >= info.low) and (info.high is None or value <= info.high), (name, value)


def test_those_that_need_labels_are_the_ones_that_rows_without_any_do_not_give():
    values, absent = predictions.all_metrics(said(labeled=False))
    assert absent == {"classification": "no row of the split has a label"}
    missing = METRICS.keys() - ELSEWHERE - PROBED - FITTED - values.keys()
    assert missing == {name for name, info in METRICS.items() if info.needs_labels} - PROBED - FITTED


@pytest.mark.parametrize("name", METRICS)
def test_those_with_an_interval_are_the_ones_that_can_be_resampled(name):
    if METRICS[name].interval:
        found = predictions.intervals(said(), [name], 100)[name]
        assert found.low <= found.value <= found.high
    else:
        with refuses("metric.no_interval", name, "balanced_accuracy"):
            predictions.intervals(said(), [name], 100)


def test_a_headline_can_be_tested_in_pairs():
    assert set(HEADLINES) <= set(INTERVALS)


def test_the_form_offers_the_headlines():
    offered = form(("gate",))["gate.metric"]["enum"]
    assert [name for name in offered if name] == list(HEADLINES)
    assert GateSpec(metric="text_to_image_r1").metric == "text_to_image_r1"
    with pytest.raises(ValueError, match="'macro_f1' cannot decide; choose one of balanced_accuracy"):
        GateSpec(metric="macro_f1")


def test_the_page_has_the_catalog_as_it_is():
    assert markdown() in PAGE.read_text(), "paste what `python -m clipft_tasks.spec.metric_catalog` prints"

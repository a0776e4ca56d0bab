"""What an answer claims, by what its package knows: all of it, some of it with reasons, or nothing."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fixtures.references import CLASSES, SEEN, held_out, looked, measured

from clipft_tasks.contracts.calibration import Calibration
from clipft_tasks.contracts.serving import Predictions
from serving.inference.certainty import answer
from serving.inference.loaded_model import LoadedModel, Ranking


def answered(groups: int = 30, images: int = 3, classes: list[str] = CLASSES, **knows: Any) -> Predictions:
    """Answers of a model that was calibrated on ten rows of each of so many groups."""
    rows = looked(SEEN, 0)
    named = [f"module {i % groups}" for i in range(SEEN)]
    reference = measured(rows, groups=named, held_out=held_out(rows, np.zeros(SEEN, int), named))
    calibration = Calibration(
        classes=CLASSES, prompts=["{}"], temperature=0.05, fitted=groups > 3, coverage=0.9,
        scores=np.linspace(0, 0.8, 10 * groups).tolist(), groups=[i % groups for i in range(10 * groups)],
    )  # fmt: skip
    given = {"reference": reference, "calibration": calibration} | knows
    model = LoadedModel("general", "1", SimpleNamespace(), 32, CLASSES, [], {}, **given)  # type: ignore[arg-type]
    model.__dict__["temperature_scale"] = 14.0
    window = looked(images, 9)
    scores = window.similarity if classes == CLASSES else window.similarity[:, : len(classes)]
    return answer(Ranking(model, classes, window.image, None, scores), None)


def test_groups_enough_vouch_for_everything():
    found = answered()
    assert (found.calibrated, found.coverage, found.false_alarms, found.reasons) == (True, 0.9, 0.05, [])
    for said in found.predictions:
        assert said.prediction_set and said.prediction_set[0] == said.label and said.none_of_these is False
        assert said.probability == max(said.probabilities.values())


def test_few_groups_vouch_for_little_and_each_reason_is_said():
    found = answered(groups=3)
    assert (found.calibrated, found.coverage, found.false_alarms) == (False, None, None)
    assert all(said.prediction_set is None and said.none_of_these is not None for said in found.predictions)
    assert [word for reason in found.reasons for word in ("calibrate", "75% coverage", "none of these") if word in reason] == [
        "calibrate", "75% coverage", "none of these",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("knows", "reason"),
    [
        ({"calibration": None, "uncalibrated": "An earlier release made it."}, "earlier release"),
        ({"classes": ["a", "b"]}, "own"),
    ],
)
def test_a_package_of_before_and_classes_of_the_callers_own_claim_nothing_of_probabilities(knows, reason):
    found = answered(**knows)
    assert not found.calibrated and found.coverage is None and reason in found.reasons[0] and len(found.reasons) == 1
    assert all(said.prediction_set is None for said in found.predictions)


def test_without_a_reference_nothing_is_said_of_other_kinds():
    found = answered(reference=None)
    assert found.calibrated and found.coverage == 0.9 and len(found.reasons) == 1
    assert all(said.none_of_these is said.novelty is None for said in found.predictions)

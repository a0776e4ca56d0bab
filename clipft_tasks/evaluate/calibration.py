"""The calibration that is packed with a model, made of what it says of held-out rows; and what is read from it."""

import numpy as np

from ..contracts.calibration import Calibration
from ..model.held_out import HeldOut
from . import conformal
from . import metrics as m


def calibrate(held_out: HeldOut, classes: list[str], prompts: list[str], own_scale: float) -> Calibration | None:
    """Fit the temperature, and keep what prediction sets are made from; None where nothing can be fitted: no labels, one class.

    Args:
        own_scale: the model's learned inverse temperature.
    """
    rows = held_out.labeled
    scale = m.calibrated_scale(rows.truth, rows.similarity, rows.groups, own_scale)
    if not np.isfinite(scale):
        return None
    probabilities = np.exp(m.log_softmax(scale * rows.similarity))
    scores = conformal.nonconformity(probabilities)[np.arange(len(rows)), rows.truth]
    groups = np.unique(rows.groups, return_inverse=True)[1]
    return Calibration(
        classes=classes,
        prompts=prompts,
        temperature=1 / scale,
        fitted=m.can_calibrate(rows.groups),
        scores=[round(float(score), 6) for score in scores],
        groups=groups.tolist(),
        coverage=conformal.default_coverage(groups),
    )

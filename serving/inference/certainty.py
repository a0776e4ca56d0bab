"""What an answer of the classifier may claim of itself: calibrated probabilities, and sets that hold the true class at a stated rate.

Every claim was measured on held-out images with the model's own classes and prompts. Of anything else the answer says that it claims
nothing, and why.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from clipft_tasks.contracts.serving import Heatmap, Prediction, Predictions
from clipft_tasks.drift.reference import NoveltyLimit
from clipft_tasks.evaluate import conformal
from clipft_tasks.model.group_quantile import effective_groups, most_coverage

from .loaded_model import Ranking

OWN_CLASSES = "Classes of the caller's own: what is known of the model's certainty was measured with its own classes."


@dataclass(frozen=True)
class Sets:
    """Prediction sets of a ranking: which classes belong to each image's (n, c); None, with a reason, where none can be claimed."""

    inside: np.ndarray | None = None
    coverage: float | None = None
    reasons: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, ranking: Ranking, asked: float | None) -> "Sets":
        """Args: asked: the coverage that the caller wants; None leaves it to the package."""
        model, calibration = ranking.model, ranking.model.calibration
        if calibration is None or not ranking.has_own_classes:
            return cls(reasons=[model.uncalibrated if ranking.has_own_classes else OWN_CLASSES])
        wanted = asked if asked is not None else calibration.coverage
        percent = math.ceil(100 * (wanted or conformal.DEFAULT) - 1e-9)  # whole ones, so that few limits are ever worked out
        limit = model.set_limit(percent)
        if limit is None:
            groups, most = effective_groups(calibration.groups), most_coverage(calibration.groups)
            return cls(
                reasons=[
                    f"The held-out images are as good as {groups:.1f} groups, which vouch for sets of at most {most:.0%} coverage, "
                    f"not of {percent}%."
                ]
            )
        return cls(conformal.sets(ranking.probabilities, limit), percent / 100)


def answer(ranking: Ranking, coverage: float | None, heatmaps: Sequence[Heatmap] | None = None) -> Predictions:
    """The answer of `/v1/classify`.

    Args:
        coverage: that the caller asks of the sets; None leaves it to the package.
        heatmaps: one an image, where the caller asked for them.
    """
    sets, reference = Sets.of(ranking, coverage), ranking.model.reference
    limit = reference.facts.novelty_limit if reference and ranking.has_own_classes else None
    novelty = reference.novelty(ranking.image) if reference and limit else None
    reasons = [*_of_probabilities(ranking), *sets.reasons, *_of_novelty(ranking, limit)]
    predictions = []
    for row, label in enumerate(ranking.labels):
        probabilities, scores = ranking.probabilities[row], ranking.scores[row]
        likeliest = np.argsort(-probabilities, kind="stable")
        predictions.append(
            Prediction(
                label=label,
                probability=float(probabilities.max()),
                scores=dict(zip(ranking.classes, scores.tolist(), strict=True)),
                probabilities=dict(zip(ranking.classes, probabilities.tolist(), strict=True)),
                prediction_set=None if sets.inside is None else [ranking.classes[i] for i in likeliest if sets.inside[row, i]],
                none_of_these=None if novelty is None else bool(novelty[row] > 1),
                novelty=None if novelty is None else float(novelty[row]),
                heatmap=heatmaps[row] if heatmaps else None,
            )
        )
    return Predictions(
        predictions=predictions,
        calibrated=ranking.is_calibrated,
        coverage=sets.coverage,
        false_alarms=limit.false_alarms if limit else None,
        reasons=reasons,
    )


def _of_probabilities(ranking: Ranking) -> list[str]:
    """Why probabilities are not calibrated, where nothing else says so."""
    calibration = ranking.model.calibration
    if calibration is None or not ranking.has_own_classes or calibration.fitted:
        return []
    return [
        f"The held-out images are as good as {effective_groups(calibration.groups):.1f} groups, too few to calibrate probabilities."
    ]


def _of_novelty(ranking: Ranking, limit: NoveltyLimit | None) -> list[str]:
    """Why nothing, or less than usual, is said of images of another kind."""
    if not ranking.has_own_classes:
        return []  # said of the classes already
    if limit is None:
        return [
            "The model package does not say how far off its own images lie: it has no validation rows, or an earlier release made it."
        ]
    if limit.false_alarms is None:
        return [
            f"The held-out images are as good as {limit.groups:.1f} groups, too few to vouch for how often an image of the model's own kind "
            "is taken for none of these."
        ]
    return []

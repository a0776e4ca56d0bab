"""What fills a page rather than a line: classes, confusions, reliability, worst mistakes; and what was said of each row."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..contracts.evaluation import Confusion, ErrorAnalysis, Mistake, ModelErrors, Role
from ..data.images import open_image, thumbnail
from ..data.versioning import Dataset
from ..domains import get_domain
from . import metrics as m
from .predictions import Predictions

MISTAKES = 12
SHOWN = 144  # pixels
CONFUSIONS = 200  # pairs of classes, the most frequent first


def analyze(dataset: Dataset, found: Mapping[Role, Predictions], *, images: bool) -> ErrorAnalysis:
    """What each model gets wrong, and the candidate's worst mistakes where `images` asks for them."""
    trained = dataset.split("train")["label"].value_counts()
    return ErrorAnalysis(
        dataset=dataset.version.tag,
        license=dataset.version.card.license,
        classes=list(dataset.classes),
        train_rows={name: int(trained.get(name, 0)) for name in dataset.classes},
        models={role: _errors(each, dataset.classes) for role, each in found.items()},
        mistakes=_mistakes(dataset, found["candidate"]) if images else [],
    )


def rows(found: Mapping[Role, Predictions]) -> pd.DataFrame:
    """One row a test row: key, group, truth, and by model (`candidate.predicted`) its answer, margin and ranks."""
    first = found["candidate"]
    table = {"key": first.keys, "group": first.groups, "truth": first.truth}
    for role, each in found.items():
        for name in ("predicted", "margin", "image_rank", "text_rank"):
            table[f"{role}.{name}"] = getattr(each, name)
    return pd.DataFrame(table)


def _errors(predictions: Predictions, classes: Sequence[str]) -> ModelErrors:
    known = predictions.truth >= 0
    if predictions.scores.shape[1] < 2 or not known.any():
        return ModelErrors()
    truth, predicted = predictions.truth[known], predictions.predicted[known]
    counts = m.confusion(truth, predicted, len(classes)).tocoo()
    most = np.argsort(-counts.data, kind="stable")[:CONFUSIONS]
    confusion = [
        Confusion(truth=classes[i], answer=classes[j] if j < len(classes) else "", rows=rows)
        for i, j, rows in zip(*(x[most].tolist() for x in (counts.row, counts.col, counts.data)), strict=True)
    ]
    return ModelErrors(
        classes=m.by_class(truth, predicted, classes),
        confusion=confusion,
        reliability=m.reliability(truth, predicted, m.log_softmax(predictions.scale * predictions.scores[known])),
    )


def _mistakes(dataset: Dataset, predictions: Predictions) -> list[Mistake]:
    """Rows that the model is surest about and wrong; without classes, those whose own caption ranks last."""
    test, classes = dataset.split("test"), dataset.classes
    wrong = (predictions.truth >= 0) & (predictions.truth != predictions.predicted)
    if predictions.scores.shape[1] > 1 and (predictions.truth >= 0).any():
        own = predictions.scores[np.arange(len(test)), np.maximum(predictions.truth, 0)]
        badness = np.where(wrong, np.nan_to_num(predictions.scores.max(axis=1) - own, nan=np.inf), -1)
    else:
        badness = np.where(predictions.image_rank > 0, predictions.image_rank, -1)

    def answer(i: int) -> str:
        if not wrong[i]:
            return f"own caption at rank {predictions.image_rank[i] + 1:.0f}"
        return f"taken for {classes[predictions.predicted[i]]}" if predictions.predicted[i] >= 0 else "no answer"

    out = []
    for i in (int(i) for i in np.argsort(-badness, kind="stable")[:MISTAKES] if badness[i] >= 0):
        row = test.iloc[i]
        truth = row["label"] or row["caption"]
        image = small_image(dataset, row)
        out.append(Mistake(key=row["key"], name=row["name"], truth=truth, answer=answer(i), image=image))
    return out


def small_image(dataset: Dataset, row: pd.Series) -> str:
    """A row's image as a page holds it: a small JPEG in a data URL."""
    gray_bits = get_domain(dataset.version.domain).gray_bits
    return thumbnail(open_image(dataset.image_bytes(row), gray_bits=gray_bits).rgb, SHOWN)

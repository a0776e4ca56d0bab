"""What fills a page rather than a line: classes, confusions, reliability, worst mistakes; and what was said of each row."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from PIL import Image

from ..contracts.evaluation import Confusion, ErrorAnalysis, Mistake, ModelErrors, Role
from ..data.images import open_image, thumbnail
from ..data.versioning import Dataset
from ..domains import get_domain
from ..model import heatmap
from ..model.clip import Clip
from . import metrics as m
from .predictions import Predictions

MISTAKES = 12
LOOKED = 6  # of them with a heatmap
SHOWN = 144  # pixels
CONFUSIONS = 200  # pairs of classes, the most frequent first


Looked = Callable[[Image.Image, int], Image.Image | None]  # an image and a class: a small copy with what speaks for the class


def analyze(
    dataset: Dataset, found: Mapping[Role, Predictions], *, images: bool, looked: Looked | None = None
) -> ErrorAnalysis:
    """What each model gets wrong, and the candidate's worst mistakes where `images` asks for them.

    Args:
        looked: shows where the candidate looked for its answer.
    """
    trained = dataset.split("train")["label"].value_counts()
    return ErrorAnalysis(
        dataset=dataset.version.tag,
        license=dataset.version.card.license,
        classes=list(dataset.classes),
        train_rows={name: int(trained.get(name, 0)) for name in dataset.classes},
        models={role: _errors(each, dataset.classes) for role, each in found.items()},
        mistakes=_mistakes(dataset, found["candidate"], looked) if images else [],
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


def looked_by(clip: Clip, classes: Sequence[str], side: int) -> Looked | None:
    """Where a model looks for a class in images of a side; None without two classes."""
    if len(classes) < 2:
        return None
    with torch.inference_mode():
        texts = clip.class_embeddings(classes).float()
    return lambda image, answer: heatmap.looked(clip, image, texts, answer, side=side, shown=SHOWN)


def _mistakes(dataset: Dataset, predictions: Predictions, looked: Looked | None) -> list[Mistake]:
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

    out: list[Mistake] = []
    for i in (int(i) for i in np.argsort(-badness, kind="stable")[:MISTAKES] if badness[i] >= 0):
        row = test.iloc[i]
        truth = row["label"] or row["caption"]
        image = _opened(dataset, row)
        answered = int(predictions.predicted[i]) if wrong[i] else -1
        shown = looked(image, answered) if looked and answered >= 0 and len(out) < LOOKED else None
        mistake = Mistake(key=row["key"], name=row["name"], truth=truth, answer=answer(i), image=thumbnail(image, SHOWN))
        out.append(mistake.model_copy(update={"looked": thumbnail(shown, SHOWN)}) if shown else mistake)
    return out


def small_image(dataset: Dataset, row: pd.Series) -> str:
    """A row's image as a page holds it: a small JPEG in a data URL."""
    return thumbnail(_opened(dataset, row), SHOWN)


def _opened(dataset: Dataset, row: pd.Series) -> Image.Image:
    return open_image(dataset.image_bytes(row), gray_bits=get_domain(dataset.version.domain).gray_bits).rgb

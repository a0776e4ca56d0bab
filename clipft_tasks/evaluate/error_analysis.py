"""What fills a page rather than a line: classes, confusions, reliability, worst mistakes; and what was said of each row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..data.images import open_image, thumbnail
from ..data.versioning import Dataset
from ..domains import get_domain
from . import metrics as m
from .zero_shot import Scored

MISTAKES = 12
SHOWN = 144  # pixels
CONFUSIONS = 200  # pairs of classes, the most frequent first


def of(dataset: Dataset, scored: Mapping[str, Scored], *, images: bool) -> dict[str, Any]:
    """By model `classes`, `confusion`, `reliability`; the names of all classes; the candidate's worst mistakes.

    Args:
        images: with small copies of the mistaken images, as data URIs.
    """
    trained = dataset.split("train")["label"].value_counts()
    out: dict[str, Any] = {
        "dataset": dataset.version.tag,
        "license": dataset.version.card.get("license", ""),
        "names": dataset.classes,
        "train_rows": {name: int(trained.get(name, 0)) for name in dataset.classes},
        "models": {who: _model(s, dataset.classes) for who, s in scored.items()},
        "mistakes": _mistakes(dataset, scored["after"]) if images else [],
    }
    return out


def rows(scored: Mapping[str, Scored]) -> pd.DataFrame:
    """One row a test row: key, group, truth, and by model (`after.predicted`) its answer, margin and ranks."""
    first = scored["after"]
    table = {"key": first.keys, "group": first.groups, "truth": first.truth}
    for who, s in scored.items():
        for name in ("predicted", "margin", "image_rank", "text_rank"):
            table[f"{who}.{name}"] = getattr(s, name)
    return pd.DataFrame(table)


def _model(scored: Scored, classes: Sequence[str]) -> dict[str, Any]:
    known = scored.truth >= 0
    if scored.scores.shape[1] < 2 or not known.any():
        return {"classes": [], "confusion": [], "reliability": []}
    truth, predicted = scored.truth[known], scored.predicted[known]
    counts = m.confusion(truth, predicted, len(classes))
    taken = [
        {"truth": classes[i], "answer": classes[j] if j < len(classes) else "", "rows": int(counts[i, j])}
        for i, j in zip(*np.nonzero(counts), strict=True)
    ]
    return {
        "classes": m.by_class(truth, predicted, list(classes)),
        "confusion": sorted(taken, key=lambda c: -c["rows"])[:CONFUSIONS],
        "reliability": m.reliability(truth, predicted, m.log_softmax(scored.scale * scored.scores[known])),
    }


def _mistakes(dataset: Dataset, scored: Scored) -> list[dict[str, Any]]:
    """Rows that the model is surest about and wrong; without classes, those whose own caption ranks last."""
    test = dataset.split("test")
    wrong = (scored.truth >= 0) & (scored.truth != scored.predicted)
    if scored.scores.shape[1] > 1 and (scored.truth >= 0).any():
        own = scored.scores[np.arange(len(test)), np.maximum(scored.truth, 0)]
        badness = np.where(wrong, np.nan_to_num(scored.scores.max(axis=1) - own, nan=np.inf), -1)
    else:
        badness = np.where(scored.image_rank > 0, scored.image_rank, -1)
    worst = [int(i) for i in np.argsort(-badness, kind="stable")[:MISTAKES] if badness[i] >= 0]
    out = []
    for i in worst:
        row = test.iloc[i]
        answer = dataset.classes[scored.predicted[i]] if wrong[i] and scored.predicted[i] >= 0 else ""
        said = (
            f"taken for {answer}"
            if answer
            else "no answer"
            if wrong[i]
            else f"own caption at rank {scored.image_rank[i] + 1:.0f}"
        )
        out.append(
            {
                "key": row["key"],
                "name": row["name"],
                "truth": row["label"] or row["caption"],
                "said": said,
                "src": small_image(dataset, row),
            }
        )
    return out


def small_image(dataset: Dataset, row: Any) -> str:
    """A row's image as a page holds it: a small JPEG in a data URL."""
    gray_bits = get_domain(dataset.version.domain).gray_bits
    return thumbnail(open_image(dataset.image_bytes(row), gray_bits=gray_bits).rgb, SHOWN)

"""What the image embeddings hold, whatever the texts say: a linear probe and nearest neighbors on frozen features."""

import warnings

import numpy as np

from . import metrics as m
from .predictions import Predictions

NEIGHBORS = 20


def fit(train: Predictions, test: Predictions) -> tuple[dict[str, float], str]:
    """Fit classifiers on the training rows' embeddings and score them on the test rows'.

    Logistic regression on standardized features (L2, C = 1) and the vote of the 20 nearest training rows by cosine.

    Returns: accuracy and balanced accuracy of both; or nothing, and the reason.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known, asked = train.truth >= 0, test.truth >= 0
    if len(np.unique(train.truth[known])) < 2 or not asked.any():
        return {}, "a probe needs two classes among the training rows and a label among the test rows"
    if not (np.isfinite(train.image).all() and np.isfinite(test.image).all()):
        return {}, "the model's embeddings are not all numbers"
    truth, here = test.truth[asked], m.unit(test.image[asked])
    found: dict[str, float] = {}
    for name, classifier in (
        ("linear_probe", make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))),
        ("nearest_neighbors", KNeighborsClassifier(min(NEIGHBORS, int(known.sum())), metric="cosine")),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lbfgs says when it stops early; the metric says it better
            classifier.fit(m.unit(train.image[known]), train.truth[known])
        predicted = classifier.predict(here)
        found |= {
            f"{name}_accuracy": float(np.mean(predicted == truth)),
            f"{name}_balanced_accuracy": m.balanced_accuracy(truth, predicted),
        }
    return found, ""

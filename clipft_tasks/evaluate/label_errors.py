"""Which labels look wrong: each row's label against what rows of other groups say of its embeddings.

Every kind of evidence gives each row a share of each class, by classifiers that saw no row of its group (nor of its fold): ridge and
logistic regressions, on an embedding as it is and on its likeness to some hundred others (Nyström's features of a Gaussian kernel).
They are added with weights that fit the labels best (stacked regressions, Breiman 1996), so evidence that says nothing of these
labels, such as prompts that the model does not understand, weighs nothing. A label is the more doubtful the smaller its own share is.
`python -m bench.label_errors` puts that beside cleanlab.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..core.errors import ClipftError

FOLDS = 5
LANDMARKS = 600  # embeddings that others are compared with
STRENGTHS = np.logspace(-2.5, 2.5, 11)  # of ridge regressions; features have a length of about one
INVERSE_STRENGTH = 4.0  # of logistic regressions
MOST = 5_000_000  # rows x classes up to which there are logistic ones, which take minutes there
Folds = list[tuple[np.ndarray, np.ndarray]]  # rows that are learned from, rows that are judged


@dataclass(frozen=True)
class LabelDoubts:
    """How doubtful each row's label is.

    Attributes:
        shares: (rows, classes) of each class, about 0..1; held out.
        own: (rows,) the share of the row's label; NaN where no other group has that class, so that nothing can be said.
        likely: (rows,) the class with the largest share but for the label.
        order: rows that can be judged, the most doubtful first.
        wrong: how many labels look wrong (confident learning, Northcutt et al. 2021): another class's share is as large as it is among
            the rows of that class, and larger than the label's.
        weights: of the evidence, by name.
    """

    shares: np.ndarray
    own: np.ndarray
    likely: np.ndarray
    order: np.ndarray
    wrong: int
    weights: dict[str, float]


def assess(
    labels: np.ndarray, groups: np.ndarray, embeddings: Mapping[str, np.ndarray], said: Mapping[str, np.ndarray]
) -> LabelDoubts:
    """Judge labels.

    Args:
        labels: (rows,) class ids, 0 to classes - 1, each at least once.
        groups: (rows,) rows of one group never speak for each other.
        embeddings: (rows, d) by name.
        said: (rows, classes) shares that come from elsewhere, such as zero-shot answers, by name.
    Raises: ClipftError where there are fewer than two classes or two groups.
    """
    require_two(labels, groups)
    folds, evidence = folds_of(labels, groups), dict(said)
    learned = (ridge, logistic) if len(labels) * (labels.max() + 1) <= MOST else (ridge,)
    for name, values in embeddings.items():
        for features in (linear, likeness):
            seen = features(values)
            evidence |= {f"{name}, {features.__name__}, {fit.__name__}": fit(seen, labels, folds) for fit in learned}
    weights = _weights(list(evidence.values()), labels)
    shares = np.zeros((len(labels), int(labels.max()) + 1), np.float32)
    for weight, value in zip(weights, evidence.values(), strict=True):
        shares += np.float32(weight) * value.astype(np.float32)

    rows = np.arange(len(labels))
    own = shares[rows, labels].astype(float)
    for _, held in folds:
        alone = ~np.isin(labels[held], np.delete(labels, held))
        own[held[alone]] = np.nan
    others = shares.copy()
    others[rows, labels] = -np.inf
    judged = np.flatnonzero(~np.isnan(own))
    order = judged[np.argsort(own[judged], kind="stable")]
    return LabelDoubts(
        shares=shares,
        own=own,
        likely=others.argmax(axis=1),
        order=order,
        wrong=int(np.count_nonzero(contradicted(shares, labels)[judged] >= 0)),
        weights=dict(zip(evidence, weights.tolist(), strict=True)),
    )


def require_two(labels: np.ndarray, groups: np.ndarray) -> None:
    """Raises ClipftError where there is nothing to compare: fewer than two classes or two groups."""
    classes, there = len(np.unique(labels)), len(np.unique(groups))
    if classes < 2 or there < 2:
        why = f"its labeled rows have {classes} classes and {there} groups"
        raise ClipftError("a review of labels", why, "It takes two of each.", code="review.nothing_to_compare")


def linear(values: np.ndarray) -> np.ndarray:
    """Features (rows, d) of about length one: the embedding, each number of it to the same scale."""
    width = np.sqrt(values.shape[1])
    scaled: np.ndarray = (values - values.mean(axis=0)) / (width * np.maximum(values.std(axis=0), 1e-8))
    return scaled


def likeness(values: np.ndarray) -> np.ndarray:
    """Features (rows, landmarks): a Gaussian kernel's, by Nyström's method."""
    from sklearn.kernel_approximation import Nystroem

    count = min(LANDMARKS, len(values))
    features: np.ndarray = Nystroem(gamma=1.0, n_components=count, random_state=0).fit_transform(linear(values))
    return features


def ridge(features: np.ndarray, labels: np.ndarray, folds: Folds) -> np.ndarray:
    """Shares of the classes (rows, classes) of a ridge regression that saw no row of the fold.

    Its strength is the one of `STRENGTHS` whose squared error on the held-out rows is the least.
    """
    classes = int(labels.max()) + 1
    found = np.zeros((len(STRENGTHS), len(labels), classes), np.float32)
    truth = np.eye(classes, dtype=np.float32)[labels]
    for train, held in folds:
        center, base = features[train].mean(axis=0), truth[train].mean(axis=0)
        inputs = features[train] - center
        values, vectors = np.linalg.eigh(inputs.T @ inputs)
        target, asked = vectors.T @ (inputs.T @ (truth[train] - base)), (features[held] - center) @ vectors
        for i, strength in enumerate(STRENGTHS):
            found[i, held] = asked @ (target / (np.maximum(values, 0) + strength)[:, None]) + base
    best = int(np.argmin([np.mean((each - truth) ** 2) for each in found]))
    chosen: np.ndarray = found[best]
    return chosen


def logistic(features: np.ndarray, labels: np.ndarray, folds: Folds) -> np.ndarray:
    """The same of a logistic regression: it tells classes better apart where there are many."""
    from sklearn.linear_model import LogisticRegression

    found = np.zeros((len(labels), int(labels.max()) + 1), np.float32)
    for train, held in folds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lbfgs says when it stops early
            if len(there := np.unique(labels[train])) < 2:
                found[held, there[0]] = 1
                continue
            model = LogisticRegression(C=INVERSE_STRENGTH, max_iter=200).fit(features[train], labels[train])
        found[np.ix_(held, model.classes_)] = model.predict_proba(features[held])
    return found


def folds_of(labels: np.ndarray, groups: np.ndarray) -> Folds:
    """At most five parts of the rows, with their shares of the classes, and no group in two."""
    from sklearn.model_selection import StratifiedGroupKFold

    number = min(FOLDS, len(np.unique(groups)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer rows than folds
        most = int(np.bincount(labels).max())
        cut = StratifiedGroupKFold(max(2, min(number, most)), shuffle=True, random_state=0)
        folds = list(cut.split(labels, labels, groups))
    return [(train, held) for train, held in folds if len(train) and len(held)]


def _weights(evidence: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """How much each evidence counts (none less than zero), so that the sum is nearest to the labels."""
    from scipy.optimize import nnls

    rows = np.arange(len(labels))
    products = np.array([[np.sum(a * b, dtype=float) for b in evidence] for a in evidence])
    wanted = np.array([np.sum(each[rows, labels], dtype=float) for each in evidence])
    root = np.linalg.cholesky(products + 1e-9 * np.trace(products) * np.eye(len(evidence)))
    weights: np.ndarray = nnls(root.T, np.linalg.solve(root, wanted))[0]
    return weights


def contradicted(shares: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """By row the class that speaks against its label, -1 where none does (confident learning, Northcutt et al. 2021).

    Its share is as large as it is among the rows of that class on average, and larger than the label's.

    Args:
        shares: (rows, classes), by who did not learn from these rows.
        labels: (rows,) class ids.
    """
    rows, usual = np.arange(len(labels)), np.full(shares.shape[1], np.inf)
    for label in np.unique(labels):
        usual[label] = shares[labels == label, label].mean()
    among = np.where(shares >= usual, shares, -np.inf)
    among[rows, labels] = -np.inf
    found: np.ndarray = np.where(among.max(axis=1) > shares[rows, labels], among.argmax(axis=1), -1)
    return found

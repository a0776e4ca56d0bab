"""Which way of fitting classes to a few images is taken: chosen on the images themselves, a part of the groups held out in turn."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from ..contracts.few_shot import FewShot, Tried
from ..evaluate.metrics import balanced_accuracy, log_softmax
from .class_heads import Head, Shots, linear, means, text, whitened

FOLDS = 5
# Each way, simplest first, and how far it may move: weakest first.
HEADS: Mapping[str, tuple[Head, Sequence[float]]] = {
    "text": (text, (0.0,)),
    "means": (means, (4.0, 8.0, 16.0, 32.0)),
    "linear": (linear, (0.5, 1.0, 2.0, 4.0, 8.0)),
    "whitened": (whitened, (1.0, 2.0, 4.0, 8.0)),
}
FACTORS = np.geomspace(1e-3, 4, 50)  # of the logits: temperatures that are tried
UNTESTED = ("linear", 4.0)  # where nothing can be held out, and the prompts know no more than chance
BY_CHANCE = 0.1  # probability of as many hits, from which on they are taken to be chance
LEAST = 8  # images that can show that
CERTAIN = 1.0  # standard errors of the likelihood that a way must be behind the best not to be taken


@dataclass(frozen=True)
class HeldOutFolds:
    """Parts of the shots that are held out in turn, groups whole.

    Args:
        fold: of each image (n,).
        judged: (n,) whether its class still has an image elsewhere when it is held out; the others say nothing.
    """

    fold: np.ndarray
    judged: np.ndarray

    @property
    def count(self) -> int:
        return len(np.unique(self.fold)) if self.judged.any() else 0

    @classmethod
    def of(cls, labels: np.ndarray, groups: np.ndarray, seed: int = 0, most: int = FOLDS) -> "HeldOutFolds":
        """At most so many parts, each class spread over as many of them as it can be."""
        rng = np.random.default_rng(seed)
        names, group = np.unique(groups, return_inverse=True)
        classes, label = np.unique(labels, return_inverse=True)
        table = np.zeros((len(names), len(classes)), int)
        np.add.at(table, (group, label), 1)
        spread = np.bincount(label[np.unique(np.stack([group, label]), axis=1, return_index=True)[1]], minlength=len(classes))
        parts = int(min(most, max(spread.max(), 1)))
        held = np.zeros((parts, len(classes)), int)
        fold = np.zeros(len(names), int)
        order = rng.permutation(len(names))
        for name in order[np.argsort(-table[order].sum(1), kind="stable")]:  # large groups first
            own = table[name] > 0
            crowded = (held[:, own] / table[:, own].sum(0)).sum(1)
            fold[name] = rng.permutation(np.flatnonzero(crowded == crowded.min()))[0]
            held[fold[name]] += table[name]
        here, total = held[fold[group], label], table.sum(0)[label]
        return cls(fold[group], total > here)


def out_of_fold(shots: Shots, folds: HeldOutFolds, head: Head, strength: float) -> np.ndarray:
    """Logits (n, c) of each image by a head that never saw its fold."""
    out = np.zeros((len(shots.labels), len(shots.texts)))
    for fold in np.unique(folds.fold):
        there = torch.from_numpy(folds.fold == fold)
        embeddings = head(shots.take(~there), strength)
        out[there.numpy()] = (shots.scale * shots.features[there] @ embeddings.T).numpy()
    return out


@dataclass(frozen=True)
class Judged:
    """What held-out images say of logits (n, c).

    Args:
        gain: of each judged image, the logarithm of its class's share at the temperature that suits these logits best: being
            right is what counts, not being as sure as the start model's temperature says.
    """

    score: float
    gain: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, folds: HeldOutFolds) -> "Judged":
        truth, rows = labels[folds.judged], np.flatnonzero(folds.judged)
        share = (1 / np.bincount(truth)[truth]) / len(np.unique(truth))
        every = [log_softmax(factor * logits[rows])[np.arange(len(rows)), truth] for factor in FACTORS]
        return cls(balanced_accuracy(truth, logits[rows].argmax(1)), max(every, key=lambda gain: float((share * gain).sum())))


def mean_and_error(values: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """The mean over classes of values (n,), and its standard error, groups being what is independent."""
    share = 1 / np.bincount(labels)[labels] / len(np.unique(labels))
    mean = float((share * values).sum())
    each = np.bincount(np.unique(groups, return_inverse=True)[1], share * (values - mean))
    count = len(each)
    return mean, float(np.sqrt((each**2).sum() * count / max(1, count - 1)))


@dataclass(frozen=True)
class Candidate:
    """One way at one strength, and what held-out images say of it."""

    tried: Tried
    gain: np.ndarray


Trained = Callable[[HeldOutFolds], np.ndarray]  # logits (n, c) of each image by a model that never saw its fold


def candidates(shots: Shots, folds: HeldOutFolds, groups: np.ndarray, trained: Mapping[str, Trained]) -> list[Candidate]:
    """All ways, judged on the same images; the texts first.

    Args:
        trained: further ways, whose towers train.
    """
    labels = shots.labels.numpy()
    found = []

    def judge(name: str, strength: float, logits: np.ndarray, began: float) -> None:
        judged = Judged.of(logits, labels, folds)
        likelihood, _ = mean_and_error(judged.gain, labels[folds.judged], groups[folds.judged])
        seconds = round(time.monotonic() - began, 2)
        found.append(
            Candidate(
                Tried(method=name, strength=strength, score=judged.score, likelihood=likelihood, seconds=seconds), judged.gain
            )
        )

    for name, (head, strengths) in HEADS.items():
        for strength in strengths:
            began = time.monotonic()
            judge(name, strength, out_of_fold(shots, folds, head, strength), began)
    for name, logits in trained.items():
        began = time.monotonic()
        judge(name, 0.0, logits(folds), began)
    return found


def choose(shots: Shots, groups: np.ndarray, seed: int = 0, trained: Mapping[str, Trained] | None = None) -> FewShot:
    """The simplest way that does not tell held-out images worse than the best one, as far as so few can say: the rule of one
    standard error (Breiman et al. 1984). Texts that know more than chance are the simplest.

    Args:
        groups: of each image (n,): what is held out whole.
    """
    labels = shots.labels.numpy()
    counts = np.bincount(labels, minlength=len(shots.texts))
    few, many = int(counts[counts > 0].min()), int(counts.max())
    folds = HeldOutFolds.of(labels, groups, seed)
    if not folds.count:
        (method, strength), why = _untested(shots)
        return FewShot(method=method, strength=strength, reason=why, shots=(few, many), folds=0)
    found = candidates(shots, folds, groups, trained or {})
    kept = [max((c for c in found if c.tried.method == name), key=lambda c: c.tried.likelihood)
            for name in dict.fromkeys(c.tried.method for c in found)]  # fmt: skip
    hits = _Hits.of(shots)
    # Prompts that do not show that they know the classes have no precedence; that enough images show they do not, no claim at all.
    field = kept if hits.known else [*kept[1:], *([] if hits.show_nothing else kept[:1])]
    best = max(field, key=lambda candidate: candidate.tried.likelihood)

    def ahead(of: Candidate) -> tuple[float, float]:
        """By how much the best way is likelier, and the standard error of that."""
        return mean_and_error(best.gain - of.gain, labels[folds.judged], groups[folds.judged])

    taken = next(c for c in field if ahead(c)[0] <= CERTAIN * ahead(c)[1])
    gain, error = mean_and_error(taken.gain - kept[0].gain, labels[folds.judged], groups[folds.judged])
    reason = (
        f"of {len(kept)} ways the simplest that is not behind the best ({best.tried.method}) with certainty; log-likelihood of "
        f"{int(folds.judged.sum())} held-out images {gain:+.3f} over the prompts' (standard error {error:.3f}); {hits}"
    )
    return FewShot(
        method=taken.tried.method,
        strength=taken.tried.strength,
        reason=reason,
        shots=(few, many),
        folds=folds.count,
        tried=[candidate.tried for candidate in kept],
    )


@dataclass(frozen=True)
class _Hits:
    """How many of the images the prompts, which saw none of them, name rightly; and how likely chance would name as many."""

    right: int
    count: int
    by_chance: float

    @property
    def known(self) -> bool:
        return self.by_chance <= BY_CHANCE

    @property
    def show_nothing(self) -> bool:
        """Whether images enough show that the prompts know no more than chance."""
        return self.count >= LEAST and not self.known

    @classmethod
    def of(cls, shots: Shots) -> "_Hits":
        count = len(shots.labels)
        right = int(((shots.features @ shots.texts.T).argmax(1) == shots.labels).sum())
        return cls(right, count, float(stats.binom.sf(right - 1, count, 1 / len(shots.seen))))

    def __str__(self) -> str:
        more = f"{'more than' if self.known else 'no more than'} chance does (probability {self.by_chance:.2f})"
        return f"the prompts name {self.right} of {self.count} images rightly, {more}"


def _untested(shots: Shots) -> tuple[tuple[str, float], str]:
    """What is taken where no image can be held out: the prompts, unless enough images show that they know nothing."""
    hits, why = _Hits.of(shots), "no class has images of two groups, so nothing can be held out"
    if hits.show_nothing:
        return UNTESTED, f"{why}; {hits}, so the images are followed"
    return ("text", 0.0), f"{why}; {hits}, and nothing shows that the images would do better"

"""Class embeddings from a few images a class, on fixed features: all start at the text embeddings and move as far as the images say.

A head is linear, so it travels as one embedding a class (d numbers), and whatever compares an image with a class takes it: server,
evaluation, calibration, drift. What a head adds is written in units of logits, D = scale · (head − text), and a common part of all
classes changes no answer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

ITERATIONS = 60  # of L-BFGS; problems this small converge in fewer
SHRINKAGE = 0.5  # of the features' covariance towards a round one: fewer rows than numbers


@dataclass(frozen=True)
class Shots:
    """Labeled images as a model sees them.

    Args:
        features: unit embeddings (n, d). labels: class numbers (n,).
        texts: the classes' text embeddings (c, d).
        scale: that similarities are multiplied with before a softmax.
    """

    features: Tensor
    labels: Tensor
    texts: Tensor
    scale: float

    def take(self, rows: Tensor) -> "Shots":
        """Some of the images, by a mask or by their numbers."""
        return Shots(self.features[rows], self.labels[rows], self.texts, self.scale)

    @property
    def seen(self) -> Tensor:
        """Numbers of the classes that have an image."""
        found: Tensor = self.labels.unique()
        return found


Head = Callable[[Shots, float], Tensor]  # of a strength -> class embeddings (c, d)


def text(shots: Shots, strength: float) -> Tensor:
    """The text embeddings, whatever the images say."""
    return shots.texts


def means(shots: Shots, strength: float) -> Tensor:
    """Text embeddings plus the classes' mean images: Tip-Adapter's cache with a linear kernel, which folds (Zhang et al. 2022,
    https://arxiv.org/abs/2207.09519). Nothing is trained.

    Args:
        strength: logits that a distance of one from the mean of all classes adds.
    """
    seen = shots.seen
    mean = torch.stack([shots.features[shots.labels == c].mean(0) for c in seen])
    center = mean.mean(0)
    moved = torch.zeros_like(shots.texts)
    # The nearest mean: half the sum of both is where two classes are equally likely.
    offset = -((mean - center) * (mean + center)).sum(1) / 2
    moved[seen] = mean - center + offset[:, None] * _constant(center)
    return shots.texts + strength / shots.scale * moved


def linear(shots: Shots, strength: float) -> Tensor:
    """Logistic regression whose prior is the text classifier, as in CLAP (Silva-Rodriguez et al. 2024,
    https://arxiv.org/abs/2312.12730) and LP++ (Huang et al. 2024, https://arxiv.org/abs/2404.02285), as the most likely D under a
    normal prior.

    Args:
        strength: deviation of the prior, logits.
    """
    return _fitted(shots, strength, torch.eye(shots.features.shape[1], dtype=shots.features.dtype), shots.features.mean(0))


def whitened(shots: Shots, strength: float) -> Tensor:
    """The same on features whose common spread within classes is taken out, as Gaussian discriminant analysis does (Wang et al.
    2024, https://arxiv.org/abs/2402.04087)."""
    mean = torch.stack([shots.features[shots.labels == c].mean(0) for c in shots.seen])
    within = shots.features - mean[torch.searchsorted(shots.seen, shots.labels)]
    freedom = max(1, len(within) - len(mean))
    covariance = within.T @ within / freedom
    round_ = covariance.trace() / len(covariance)
    if not float(round_):  # one image a class: nothing is known of the spread within
        return linear(shots, strength)
    rows = freedom / (freedom + len(covariance))
    covariance = rows * covariance + (1 - rows) * round_ * torch.eye(len(covariance), dtype=covariance.dtype)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ torch.diag((round_ / values).sqrt()) @ vectors.T
    return _fitted(shots, strength, root, mean.mean(0))


def _constant(center: Tensor) -> Tensor:
    """What an image's embedding has a product of about one with, whichever image: where a bias goes."""
    return center / center.square().sum()


def _fitted(shots: Shots, strength: float, root: Tensor, center: Tensor) -> Tensor:
    """The most likely head. root: (d, d) that features are multiplied with first."""
    seen = shots.seen
    labels = torch.searchsorted(seen, shots.labels)
    inputs = (shots.features - center) @ root
    basis = torch.linalg.qr(inputs.T).Q  # the best D lies in what the images span
    inputs = torch.cat([inputs @ basis, torch.ones(len(inputs), 1, dtype=inputs.dtype)], 1)
    start = shots.scale * shots.features @ shots.texts[seen].T
    moved = torch.zeros(len(seen), inputs.shape[1], dtype=inputs.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([moved], max_iter=ITERATIONS, line_search_fn="strong_wolfe")
    counts = torch.bincount(labels, minlength=len(seen)).to(inputs.dtype)
    weight = counts.mean() / counts  # a class with many images speaks no louder

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = start + inputs @ moved.T
        found = (cross_entropy(logits, labels, reduction="none") * weight[labels]).sum() + moved.square().sum() / (
            2 * strength**2
        )
        found.backward()
        return found

    optimizer.step(loss)
    moved = moved.detach()
    direction = moved[:, :-1] @ basis.T @ root.T
    offset = moved[:, -1] - direction @ center
    out = torch.zeros_like(shots.texts)
    out[seen] = direction + offset[:, None] * _constant(center)
    return shots.texts + out / shots.scale

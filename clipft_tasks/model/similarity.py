"""Similarities: how an image embedding and a text embedding are compared.

Which there are, and what each is for, is in `clipft_tasks.spec.objective_catalog` and docs/objectives.md.

One of your own is a subclass of `Similarity`, named in the spec as `module:Class`, or by an entry point of the group
`clipft.similarities`. The model carries its similarity, and its package says which, so that the server and the evaluation
compare as training did.
"""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..core.plugins import classes
from ..spec.objective_catalog import SIMILARITIES

__all__ = ["Bilinear", "Cosine", "Dot", "Euclidean", "Hyperbolic", "Similarity", "make"]


class Similarity(nn.Module, ABC):
    """Base of all similarities: features become embeddings, and embeddings are compared. Everything is fp32.

    Args:
        width: of the features, d.
    """

    name: str = ""
    fitted: bool = False  # whether `begin` was called, or what it set was loaded

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def begin(self, image: Tensor, text: Tensor) -> None:
        """Set what depends on the towers from the first batch's features (n, d), when a model changes its similarity."""

    @abstractmethod
    def embed_image(self, features: Tensor) -> Tensor:
        """What an image tower gave (n, d) -> embeddings (n, d)."""

    @abstractmethod
    def embed_text(self, features: Tensor) -> Tensor:
        """What a text tower gave (n, d) -> embeddings (n, d)."""

    @abstractmethod
    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Image embeddings (k, d) and text embeddings (m, d) -> similarities (k, m); more is more similar."""

    def __call__(self, image: Tensor, text: Tensor) -> Tensor:  # nn.Module's has no types
        found: Tensor = nn.Module.__call__(self, image, text)
        return found

    def mean(self, embeddings: Tensor, dim: int) -> Tensor:
        """The embedding that stands for several, for example for one class in several wordings."""
        return embeddings.mean(dim=dim)

    def prefix(self, embeddings: Tensor, width: int) -> Tensor:
        """The first `width` numbers of each embedding, as an embedding of its own (Matryoshka)."""
        return embeddings[..., :width]

    def compare(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        """`forward` for arrays; the module must be on the CPU."""
        with torch.inference_mode():
            given = (torch.as_tensor(x, dtype=torch.float32) for x in (image, text))
            return self(*given).numpy()


class Cosine(Similarity):
    """The cosine of the angle between the two.

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020
    """

    name = "cosine"

    def embed_image(self, features: Tensor) -> Tensor:
        return normalize(features, dim=-1)

    embed_text = embed_image

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return image @ text.T

    def mean(self, embeddings: Tensor, dim: int) -> Tensor:
        return normalize(embeddings.mean(dim=dim), dim=-1)

    def prefix(self, embeddings: Tensor, width: int) -> Tensor:
        return normalize(embeddings[..., :width], dim=-1)


def moderated(features: Tensor, gain: Tensor) -> Tensor:
    """Features (n, d) times a gain, their lengths held between 1/e and e.

    Where lengths count, training could otherwise begin by shrinking everything to a point, and would stay there: at distance
    zero nothing has a gradient.
    """
    length: Tensor = features.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return features / length * torch.tanh((length * gain).log()).exp()


class Dot(Similarity):
    """The inner product of features whose mean length was one when training began.

    Lengths of a tower that was trained for cosines mean nothing and may be large; without the factor, the first step would
    start from saturated softmaxes.

    Source: DPR, Karpukhin et al. 2020, https://arxiv.org/abs/2004.04906
    """

    name = "dot"

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.gains: Tensor
        self.register_buffer("gains", torch.ones(2))  # of images and of texts

    def begin(self, image: Tensor, text: Tensor) -> None:
        lengths = torch.stack([image.norm(dim=-1).mean(), text.norm(dim=-1).mean()])
        self.gains.copy_(1 / lengths.clamp_min(1e-6))

    def embed_image(self, features: Tensor) -> Tensor:
        return moderated(features, self.gains[0])

    def embed_text(self, features: Tensor) -> Tensor:
        return moderated(features, self.gains[1])

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return image @ text.T


class Euclidean(Dot):
    """Half the negative squared distance of features whose mean length was one when training began.

    On unit vectors it is the cosine less one, so temperatures mean the same.

    Source: Prototypical networks, Snell et al. 2017, https://arxiv.org/abs/1703.05175
    """

    name = "euclidean"

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        squares = image.square().sum(-1)[:, None] + text.square().sum(-1)[None]
        return (image @ text.T - squares / 2).clamp_max(0)


class Hyperbolic(Similarity):
    """The negative distance on a hyperboloid of learned curvature. Embeddings are its space components.

    Source: MERU, Desai et al. 2023, https://arxiv.org/abs/2304.09172
    """

    name = "hyperbolic"
    REACH = math.asinh(2.0**15)  # a tangent vector of more would overflow what fp32 can tell apart

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.log_curvature = nn.Parameter(torch.zeros(()))
        self.log_gains = nn.Parameter(torch.zeros(2))

    @property
    def curvature(self) -> Tensor:
        return self.log_curvature.exp().clamp(0.1, 10.0)

    @torch.no_grad()
    def begin(self, image: Tensor, text: Tensor) -> None:
        lengths = torch.stack([image.norm(dim=-1).mean(), text.norm(dim=-1).mean()])
        self.log_gains.copy_(-lengths.clamp_min(1e-6).log())

    def _lift(self, tangent: Tensor) -> Tensor:
        """The exponential map at the origin."""
        root = self.curvature.sqrt()
        length: Tensor = (root * tangent.norm(dim=-1, keepdim=True)).clamp(1e-8, self.REACH)
        return tangent * (torch.sinh(length) / length)

    def embed_image(self, features: Tensor) -> Tensor:
        return self._lift(moderated(features, self.log_gains[0].exp()))

    def embed_text(self, features: Tensor) -> Tensor:
        return self._lift(moderated(features, self.log_gains[1].exp()))

    def _time(self, space: Tensor) -> Tensor:
        return (1 / self.curvature + space.square().sum(-1)).sqrt()

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        inner = self._time(image)[:, None] * self._time(text)[None] - image @ text.T  # minus the Lorentz product
        return -torch.acosh((self.curvature * inner).clamp_min(1 + 1e-6)) / self.curvature.sqrt()

    def mean(self, embeddings: Tensor, dim: int) -> Tensor:
        """The Lorentz centroid (Law et al. 2019, https://proceedings.mlr.press/v97/law19a.html)."""
        space, time = embeddings.mean(dim=dim), self._time(embeddings).mean(dim=dim)
        length = (self.curvature * (time.square() - space.square().sum(-1))).clamp_min(1e-12).sqrt()
        return space / length[..., None]


class Bilinear(Cosine):
    """Cosine-like, through a learned matrix between the two; begins as the cosine.

    Source: Socher et al. 2013, https://papers.nips.cc/paper/5028, without its tensor
    """

    name = "bilinear"

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.between = nn.Parameter(torch.eye(width))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        width = image.shape[-1]  # less than the whole for prefixes
        return image @ self.between[:width, :width] @ text.T


REGISTRY = classes("similarity", Similarity, {name: entry.path for name, entry in SIMILARITIES.items()})  # type: ignore[type-abstract]  # only subclasses are made


def make(name: str, width: int) -> Similarity:
    """The similarity called `name`, for features of a width. Raises ClipftError with the names there are."""
    made = REGISTRY.load(name)(width)
    made.name = name  # as the spec and the card write it, for one of another package too
    return made

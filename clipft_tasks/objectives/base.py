"""What an objective is: a function of features, never of pictures or models.

Because it sees features only, every objective works with the gradient cache, across processes and on any device.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..model.similarity import Similarity
from .space import Range

Anchor = Literal["image", "text"]
ALL = slice(None)


@dataclass(frozen=True)
class Pairs:
    """One effective batch. Everything is fp32, whatever precision the towers ran in.

    Attributes:
        image: image embeddings (n, d), as the similarity makes them; unit vectors for cosine.
        text: text embeddings (n, d); row i belongs to picture i.
        similarity: compares the two.
        scale: inverse temperature, a positive scalar.
        captions: integer id of each row's caption (n,); equal ids mean equal captions.
        labels: integer id of each row's class (n,); -1 where unknown.
        bias: learned logit bias, for models that have one.
        new: rows that came with this dataset version (n,), bool; all False for a version without parents.
        start_image, start_text: unit embeddings of the frozen start model (n, e), for objectives with `needs_start`.
        progress: share of the run that is done, 0 to 1.
    """

    image: Tensor
    text: Tensor
    similarity: Similarity
    scale: Tensor
    captions: Tensor
    labels: Tensor
    bias: Tensor | None = None
    new: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    start_image: Tensor | None = None
    start_text: Tensor | None = None
    progress: float = 0.0

    def __len__(self) -> int:
        return len(self.image)

    def logits(self, anchor: Anchor = "image", rows: slice = ALL) -> Tensor:
        """Some anchors against everything of the other kind: (k, n)."""
        if anchor == "image":
            compared = self.similarity(self.image[rows], self.text)
        else:
            compared = self.similarity(self.image, self.text[rows]).T
        scaled = self.scale * compared
        return scaled if self.bias is None else scaled + self.bias

    def start_cosines(self, anchor: Anchor = "image", rows: slice = ALL) -> Tensor:
        """What the frozen start model says of the same pairs: (k, n)."""
        assert self.start_image is not None and self.start_text is not None
        one, other = (self.start_image, self.start_text) if anchor == "image" else (self.start_text, self.start_image)
        return one[rows] @ other.T

    def same(self, kind: str, rows: slice = ALL) -> Tensor:
        """Which rows say the same thing as each of some rows: bool (k, n).

        Args:
            kind: "pair" (only the row itself), "caption", or "label" (equal caption or equal known class).
        """
        if kind == "pair":
            every = torch.arange(len(self), device=self.image.device)
            return every[rows, None] == every
        found = self.captions[rows, None] == self.captions[None]
        if kind == "label":
            found = found | ((self.labels[rows, None] == self.labels[None]) & (self.labels[rows] >= 0)[:, None])
        return found

    def prefix(self, width: int) -> "Pairs":
        """The same pairs, seen through the first `width` numbers of each embedding."""
        cut = self.similarity.prefix
        return replace(self, image=cut(self.image, width), text=cut(self.text, width))


class Objective(nn.Module, ABC):
    """Base of all objectives. A subclass implements `forward`; its keyword arguments are what `objective.options` sets.

    Attributes:
        needs_start: whether `forward` looks at the start model's features, which cost a forward pass of it.
        space: what tuning may vary, by keyword argument.
    """

    needs_start: ClassVar[bool] = False
    space: ClassVar[Mapping[str, Range]] = {}

    @abstractmethod
    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        """The loss terms of one effective batch, scalars by name, each name ending in `_loss`. Their sum is minimised."""

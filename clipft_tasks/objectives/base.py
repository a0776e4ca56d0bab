"""What an objective is: a function of features, never of images or models.

Because it sees features only, every objective works with the gradient cache, across processes and on any device.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NoReturn

import torch
from torch import Tensor, nn

from ..core.errors import ClipftError
from ..model.similarity import Similarity
from ..spec.ranges import Range

Anchor = Literal["image", "text"]
ALL = slice(None)


@dataclass(frozen=True)
class Pairs:
    """One effective batch. Everything is fp32, whatever precision the towers ran in.

    Attributes:
        image: image embeddings (n, d), as the similarity makes them; unit vectors for cosine.
        text: text embeddings (n, d); row i belongs to image i.
        similarity: compares the two.
        scale: inverse temperature, a positive scalar.
        captions: integer id of each row's caption (n,); equal ids mean equal captions.
        labels: integer id of each row's class (n,); -1 where unknown.
        new: rows that came with this dataset version (n,), bool; all False for a version without parents.
        bias: learned logit bias, for models that have one.
        start: the same batch as the frozen start model sees it, for objectives with `needs_start`.
        progress: share of the run that is done, 0 to 1.
    """

    image: Tensor
    text: Tensor
    similarity: Similarity
    scale: Tensor
    captions: Tensor
    labels: Tensor
    new: Tensor
    bias: Tensor | None = None
    start: "Pairs | None" = None
    progress: float = 0.0

    def __len__(self) -> int:
        return len(self.image)

    def __getattr__(self, name: str) -> NoReturn:
        if name == "alike":
            raise ClipftError("Pairs.alike", "it is called `similarities` now", "Rename it.", code="objective.renamed_member")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def similarities(self, anchor: Anchor = "image", rows: slice = ALL) -> Tensor:
        """Similarities of some anchors to everything of the other kind, in the similarity's own units: (k, n)."""
        if anchor == "image":
            return self.similarity(self.image[rows], self.text)
        return self.similarity(self.image, self.text[rows]).T

    def logits(self, anchor: Anchor = "image", rows: slice = ALL) -> Tensor:
        """The same over the temperature, and with the model's bias if it has one: (k, n)."""
        scaled = self.scale * self.similarities(anchor, rows)
        return scaled if self.bias is None else scaled + self.bias

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
        needs_start: whether `forward` looks at `pairs.start`, which costs a forward pass of the start model.
        auxiliary_only: whether it makes sense only in addition to another objective (`objective.auxiliary`), since alone it
            teaches nothing.
        space: what tuning may vary, by keyword argument.
    """

    needs_start: bool = False
    auxiliary_only: ClassVar[bool] = False
    space: ClassVar[Mapping[str, Range]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "beside" in cls.__dict__:
            raise ClipftError(
                f"objective {cls.__module__}:{cls.__qualname__}",
                "`beside` is called `auxiliary_only` now",
                "Rename it.",
                code="objective.renamed_member",
            )

    def prepare(self, classes: Sequence[str]) -> None:
        """Told once, before training, which class each label id stands for; empty for data without labels."""

    @abstractmethod
    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        """The loss terms of one effective batch, scalars by name, each name ending in `_loss`. Their sum is minimized."""

    def __call__(self, pairs: Pairs) -> dict[str, Tensor]:
        """`forward`, and a look at the form of what came out. Raises ClipftError that names what is wrong with it."""
        terms = nn.Module.__call__(self, pairs)
        if problem := _defect(terms, pairs):
            kind = type(self)
            raise ClipftError(f"objective {kind.__module__}:{kind.__qualname__}", *problem, code="objective.invalid_loss")
        return terms  # type: ignore[no-any-return]


def _defect(terms: object, pairs: Pairs) -> tuple[str, str] | None:
    """What is wrong with an objective's answer, and the way out. Looks at form only, so the device never waits."""
    if not isinstance(terms, dict) or not terms:
        return f"forward returned {type(terms).__name__}, not a dict with a term", 'Return {"my_loss": value}.'
    for name, value in terms.items():
        if not (isinstance(name, str) and name.endswith("_loss")):
            return f"its term {name!r} does not end in _loss", f'Call it "{name}_loss"; only loss terms are returned.'
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            return f"its term {name!r} is {what}, not a tensor of real numbers", "Return the tensor itself, without .item()."
        if value.ndim:
            return f"its term {name!r} has shape {tuple(value.shape)}, not that of a scalar", "Take its mean over the batch."
    learning = torch.is_grad_enabled() and pairs.image.requires_grad and pairs.text.requires_grad
    if learning and not any(value.requires_grad for value in terms.values()):
        fix = "Compute it from pairs by torch's operations, without .detach(), .item(), numpy or no_grad."
        return "no term has a gradient towards the embeddings", fix
    return None

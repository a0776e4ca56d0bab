"""Sums of objectives, and objectives on prefixes of the embeddings."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..spec.auxiliary import AuxiliaryLoss
from .base import Objective, Pairs


class Weighted(Objective):
    """A main objective and auxiliary ones, each with a weight.

    Args:
        main: weighs 1.
        others: each stands by its name before the names of its terms.
        dimensions: prefixes of the embedding on which the main objective is asked too, its mean over all of them counting
            (Matryoshka, Kusupati et al. 2022, https://arxiv.org/abs/2205.13147).
    """

    def __init__(
        self, main: Objective, others: Sequence[tuple[AuxiliaryLoss, Objective]] = (), dimensions: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.main = main
        self.losses = {loss.name.replace(":", "_").replace(".", "_"): loss for loss, _ in others}
        self.others = nn.ModuleDict(dict(zip(self.losses, (objective for _, objective in others), strict=True)))
        self.dimensions = tuple(dimensions)

    @property
    def needs_start(self) -> bool:  # type: ignore[override]
        return any(o.needs_start for o in (self.main, *self.others.values()))

    def prepare(self, classes: Sequence[str]) -> None:
        self.main.prepare(classes)
        for objective in self.others.values():
            objective.prepare(classes)  # type: ignore[operator]  # a ModuleDict knows modules only

    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        seen = [pairs.prefix(width) for width in self.dimensions if width < pairs.image.shape[1]] + [pairs]
        terms: dict[str, Tensor] = {}
        for part in seen:
            for name, value in self.main(part).items():
                terms[name] = terms.get(name, 0) + value / len(seen)
        for name, loss in self.losses.items():
            if now := loss.weight_at(pairs.progress):
                terms |= {f"{name}_{term}": now * value for term, value in self.others[name](pairs).items()}
        return terms

"""Sums of objectives, and objectives on prefixes of the embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .base import Objective, Pairs


@dataclass(frozen=True)
class Weight:
    """A weight that moves in a straight line over the run."""

    first: float
    last: float

    def at(self, progress: float) -> float:
        return self.first + (self.last - self.first) * progress


class Weighted(Objective):
    """A main objective and others beside it, each with a weight.

    Args:
        main: weighs 1.
        others: (name, objective, weight); the name stands before the names of its terms.
        dimensions: prefixes of the embedding on which the main objective is asked too, its mean over all of them counting
            (Matryoshka, Kusupati et al. 2022, https://arxiv.org/abs/2205.13147).
    """

    def __init__(
        self, main: Objective, others: Sequence[tuple[str, Objective, Weight]] = (), dimensions: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.main = main
        self.others = nn.ModuleDict({name: objective for name, objective, _ in others})
        self.weights = {name: weight for name, _, weight in others}
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
        for name, weight in self.weights.items():
            if now := weight.at(pairs.progress):
                terms |= {f"{name}_{term}": now * value for term, value in self.others[name](pairs).items()}
        return terms

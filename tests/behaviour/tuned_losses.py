"""An objective whose right values are known: without strength it learns nothing, and a negative one is no number."""

from clipft_tasks.objectives import InfoNCE
from clipft_tasks.objectives.space import Range


class Strength(InfoNCE):
    """InfoNCE times `strength`; by default it teaches nothing."""

    space = {"strength": Range.of(0.0, 1.0)}

    def __init__(self, strength: float = 0.0, smoothing: float = 0.0) -> None:
        super().__init__(smoothing)
        self.strength = strength

    def forward(self, pairs):
        strength = self.strength if self.strength >= 0 else float("nan")
        return {name: strength * value for name, value in super().forward(pairs).items()}


class Broken(Strength):
    """Every value but the template's is no number."""

    space = {"strength": Range.of(0.0, -1.0)}


class Nothing(Strength):
    """No value is a number."""

    space = {"strength": Range.of(-1.0, -2.0)}

    def __init__(self, strength: float = -1.0, smoothing: float = 0.0) -> None:
        super().__init__(strength, smoothing)

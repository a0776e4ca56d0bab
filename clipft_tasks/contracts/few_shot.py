"""How a model was fitted to a few images a class, as its card keeps it."""

from .base import Record


class Tried(Record):
    """One way of fitting, at the strength that suits it best.

    Args:
        score: balanced accuracy on held-out images, 0..1. likelihood: mean logarithm of the true class's share, per class alike.
        seconds: that holding out took.
    """

    method: str
    strength: float
    score: float
    likelihood: float
    seconds: float = 0.0


class FewShot(Record):
    """The way that was taken, and why.

    Args:
        method: `text` leaves the classes as their prompts say.
        shots: images of the class that has fewest, and of the one that has most.
        folds: parts that were held out in turn; 0 where none could be.
        tried: everything that was tried.
    """

    method: str
    strength: float
    reason: str
    shots: tuple[int, int]
    folds: int
    tried: list[Tried] = []

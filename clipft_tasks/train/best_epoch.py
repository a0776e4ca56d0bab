"""Which epoch's weights a run ends with, and when it stops early."""

from typing import TypedDict

import torch

from .validation import ValidationResult


class BestEpochState(TypedDict):
    """See `BestEpoch`."""

    start: float | None
    epoch: int
    since: int
    rank: tuple[bool, float] | None
    weights: dict[str, torch.Tensor]


class BestEpoch:
    """The best epoch so far: what is kept in the end, and what early stopping looks at.

    An epoch that forgot more than it may is worse than any that did not; of two such, the one that forgot less is better. Of
    equals the later is kept, since it has trained longer and at a lower rate; for early stopping it is no better.

    Args:
        keep: whether its weights are kept.
        patience: epochs without a better one until `stopped`; 0 for never.
        max_forgetting: largest fall of the general score from the start model's.
    """

    def __init__(self, keep: bool, patience: int, max_forgetting: float) -> None:
        self.keep, self.patience, self.max_forgetting = keep, patience, max_forgetting
        self.start: float | None = None  # general score of the start model
        self.epoch = self.since = 0
        self.rank: tuple[bool, float] | None = None
        self.weights: dict[str, torch.Tensor] = {}

    @property
    def stopped(self) -> bool:
        return 0 < self.patience <= self.since

    def note(self, epoch: int, result: ValidationResult, known: float | None, weights: dict[str, torch.Tensor]) -> str:
        """Look at an epoch's weights.

        Args:
            known: their general score, where forgetting is limited.
        Returns: what became of them, in words.
        """
        if not result.rows.is_informative:
            return ""
        forgotten = 0.0 if known is None or self.start is None else self.start - known
        within = forgotten <= self.max_forgetting
        rank = (within, result.score if within else -forgotten)
        better, equal = self.rank is None or rank > self.rank, rank == self.rank
        self.since = 0 if better else self.since + 1
        if better or equal:
            self.rank, self.epoch = rank, epoch
            if self.keep:
                self.weights = {name: w.detach().cpu().clone() for name, w in weights.items()}
        said = "" if known is None else f", {forgotten:+.4f} forgotten" + ("" if within else f" (over {self.max_forgetting:g})")
        return said + (
            "; the best so far." if better else "; as good as the best." if equal else f"; epoch {self.epoch} is better."
        )

    def state(self) -> BestEpochState:
        return {
            "start": self.start,
            "epoch": self.epoch,
            "since": self.since,
            "rank": self.rank,
            "weights": self.weights,
        }

    def load(self, state: BestEpochState) -> None:
        self.start, self.epoch, self.since = state["start"], state["epoch"], state["since"]
        self.rank, self.weights = state["rank"], state["weights"]

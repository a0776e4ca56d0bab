"""The hinge loss of VSE++: the pair must win by a margin."""

from torch import Tensor

from ..spec.ranges import Range
from .base import Anchor, Objective, Pairs
from .blocks import MASKED, own, symmetric


class Margin(Objective):
    """A pair must be more similar than its negatives by a margin; what already is teaches nothing more.

    Use it for retrieval, when the order counts and probabilities do not: the temperature stays as it was.

    Args:
        margin: in the similarity's own units (for cosines 0 to 2).
        negatives: which of a row's count: the "hardest"; the hardest among those less similar than the pair, "semi_hard", for
            labels with errors; or "all", added up.
        positives: rows that are no negatives: "pair" (only the row itself), "caption" or "label".
        text_weight: share of the direction in which texts look for images, 0 to 1.
    Source: VSE++, Faghri et al. 2018, https://arxiv.org/abs/1707.05612; semi-hard: FaceNet, Schroff et al. 2015,
        https://arxiv.org/abs/1503.03832
    Example:
        >>> loss = Margin(0.2, negatives="semi_hard")(pairs)["margin_loss"]
    """

    space = {
        "margin": Range(0.05, 0.5, log=True),
        "negatives": Range.of("hardest", "semi_hard", "all"),
        "text_weight": Range(0.25, 0.75),
    }

    def __init__(
        self, margin: float = 0.2, negatives: str = "hardest", positives: str = "caption", text_weight: float = 0.5
    ) -> None:
        super().__init__()
        if negatives not in ("hardest", "semi_hard", "all"):
            raise ValueError(f"negatives must be hardest, semi_hard or all, not {negatives!r}")
        self.margin = margin
        self.negatives = negatives
        self.positives = positives
        self.text_weight = text_weight

    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        def rows_loss(anchor: Anchor, rows: slice) -> Tensor:
            similarities = pairs.similarities(anchor, rows)
            pair, left_out = own(similarities, rows), pairs.same(self.positives, rows)
            if self.negatives == "semi_hard":
                left_out = left_out | (similarities >= pair)
            lacking = (self.margin + similarities.masked_fill(left_out, MASKED) - pair).clamp_min(0)
            return lacking.sum() if self.negatives == "all" else lacking.amax(dim=1).sum()

        return {"margin_loss": symmetric(pairs, rows_loss, self.text_weight)}

"""InfoNCE whose negatives weigh more the harder they are."""

from torch import Tensor
from torch.nn.functional import softplus

from ..spec.ranges import Range
from .base import Anchor, Objective, Pairs
from .blocks import MASKED, own, symmetric


class HardNegative(Objective):
    """InfoNCE in which a negative's weight grows with its similarity to the anchor, the sum of all weights staying as it was.

    Use it when classes are fine-grained: most negatives are easy, and the few that are not should decide.

    Args:
        hardness: beta of the paper, in units of the logits; a negative weighs in proportion to exp(hardness · logit).
            At 0 all weigh the same, which is InfoNCE.
        positives: rows that are no negatives: "pair" (only the row itself), "caption" or "label".
        text_weight: share of the direction in which texts look for images, 0 to 1.
    Source: Robinson et al. 2021, https://arxiv.org/abs/2010.04592; between images and texts: DiHT, Radenovic et al. 2023,
        https://arxiv.org/abs/2301.02280
    Example:
        >>> loss = HardNegative(hardness=0.25)(pairs)["contrastive_loss"]
    """

    space = {"hardness": Range(0.0, 1.0), "text_weight": Range(0.25, 0.75)}

    def __init__(self, hardness: float = 0.25, positives: str = "caption", text_weight: float = 0.5) -> None:
        super().__init__()
        self.hardness = hardness
        self.positives = positives
        self.text_weight = text_weight

    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        def rows_loss(anchor: Anchor, rows: slice) -> Tensor:
            logits = pairs.logits(anchor, rows)
            positive = pairs.same(self.positives, rows)
            count = (~positive).sum(dim=1)
            # log of: count · Σ exp(logit) · exp(hardness · logit) / Σ exp(hardness · logit), over the negatives
            weighed = ((1 + self.hardness) * logits).masked_fill(positive, MASKED).logsumexp(dim=1)
            weights = (self.hardness * logits).masked_fill(positive, MASKED).logsumexp(dim=1)
            negatives = weighed - weights + count.clamp_min(1).log()
            return (softplus(negatives - own(logits, rows)[:, 0]) * (count > 0)).sum()

        return {"contrastive_loss": symmetric(pairs, rows_loss, self.text_weight)}

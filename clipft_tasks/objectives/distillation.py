"""Distillation from the frozen start model: learn the new, answer the old as before."""

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from ..spec.ranges import Range
from .base import Anchor, Objective, Pairs
from .blocks import symmetric


class Distillation(Objective):
    """What the start model says of the batch should still hold: its choice of text for each image, and of image for text.

    Add it to a contrastive objective when the model must not forget what it could before. It costs a forward pass of the
    start model. It is zero at the first step; `train.l2_start` holds the weights themselves, at no cost per image.

    Args:
        temperature: of both distributions, in addition to the models' own; more shows more of what the start model finds unlikely.
        features: weight of the squared distance between each embedding and the start model's.
        text_weight: share of the direction in which texts look for images, 0 to 1.
    Source: LwF, Li and Hoiem 2017, https://arxiv.org/abs/1606.09282; the temperature: Hinton et al. 2015,
        https://arxiv.org/abs/1503.02531; of CLIP's features: CLIP-KD, Yang et al. 2024, https://arxiv.org/abs/2307.12732
    Example:
        >>> losses = Distillation(features=1.0)(pairs)  # kl_loss, feature_loss
    """

    needs_start = True
    auxiliary_only = True
    space = {"temperature": Range(0.5, 4.0, log=True), "features": Range(0.0, 30.0)}

    def __init__(self, temperature: float = 2.0, features: float = 0.0, text_weight: float = 0.5) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        self.temperature = temperature
        self.features = features
        self.text_weight = text_weight

    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        assert pairs.start is not None
        start = pairs.start

        def rows_loss(anchor: Anchor, rows: slice) -> Tensor:
            before, now = (log_softmax(p.logits(anchor, rows) / self.temperature, dim=1) for p in (start, pairs))
            return kl_div(now, before, reduction="sum", log_target=True)

        terms = {"kl_loss": self.temperature**2 * symmetric(pairs, rows_loss, self.text_weight)}
        if self.features:
            moved = (pairs.image - start.image).square().sum() + (pairs.text - start.text).square().sum()
            terms["feature_loss"] = self.features * moved / len(pairs)
        return terms

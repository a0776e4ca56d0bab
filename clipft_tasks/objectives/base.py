"""What an objective is: a function of features, never of pictures or models.

Because it sees features only, every objective works with the gradient cache, across processes and on any device.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Objective(nn.Module, ABC):
    """Base of all objectives. A subclass implements `forward` and returns its terms by name, each ending in `_loss`.

    Terms are summed by the caller. Everything arrives in fp32, whatever precision the towers ran in.
    """

    @abstractmethod
    def forward(
        self,
        *,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        captions: Tensor,
        labels: Tensor,
        bias: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss terms of one effective batch.

        Args:
            image: unit image embeddings (n, d).
            text: unit text embeddings (n, d); row i belongs to picture i.
            scale: inverse temperature, a positive scalar.
            captions: integer id of each row's caption (n,); equal ids mean equal captions.
            labels: integer id of each row's class (n,); -1 where unknown.
            bias: learned logit bias, for models that have one.
        """

"""CaRot's constraint on the image projection (Oh et al. 2024, https://arxiv.org/abs/2311.01723)."""

from torch import Tensor, eye, nn

from clipft_tasks.objectives import Objective, Pairs

projection: list[nn.Parameter] = []  # of the model that trains: an objective sees features, and this looks at a weight


def of(model: nn.Module) -> nn.Parameter:
    """A model's image projection, whose one side is as long as an embedding."""
    named = dict(model.named_parameters())
    return next(named[name] for name in ("visual.proj", "visual.head.proj.weight") if name in named)


class Orthogonal(Objective):
    """Squared distance of W Wᵀ from the identity, W being the image projection, over its outputs."""

    auxiliary_only = True

    def forward(self, pairs: Pairs) -> dict[str, Tensor]:
        weight = projection[0] if projection[0].shape[0] <= projection[0].shape[1] else projection[0].T
        product = weight @ weight.T
        # Where the start's is not orthogonal, its mean length stands for one.
        ideal = eye(len(product), device=product.device) * product.diagonal().mean().detach()
        return {"orthogonal_loss": ((product - ideal) / product.diagonal().mean().detach()).square().sum() / len(product)}

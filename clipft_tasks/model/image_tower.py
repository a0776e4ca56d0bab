"""Which kind of image tower a model has: what sides it takes, and how it is given images of another one. A class a kind.

There are two ways to another side. *As it comes*: the stored positions pass through a fixed linear map to the new grid in each
forward pass, so one set of weights and one optimizer state serve every side. *For good*: other positions are stored, once,
before an optimizer is made. A tower that open_clip builds with a grid of its own (timm's transformers) keeps it, or its weights
could not be loaded again; trained at another side, it is opened at that side by `open_clip.create_model(…,
force_image_size=side)`, which does the same map.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers import resample_patch_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from ..core.errors import ClipftError
from .positions import Grid, resampled

OpenClipModule: TypeAlias = Any  # open_clip's models and towers share their methods by convention only, and no class


@dataclass(frozen=True)
class Pooling:
    """Where a tower still tells places apart for the last time, just before it makes one embedding of them.

    Attributes:
        module, method: whose call it is.
        attends: the places are the values that attention mixes within the call; otherwise they are what the call returns.
    """

    module: nn.Module
    method: str = "forward"
    attends: bool = False


class ImageTower(ABC):
    """The image tower of one model.

    Attributes:
        kind: in words.
        keeps_grid: the stored positions stay those of the side that the tower was built for, whatever it is trained at.
    """

    kind: ClassVar[str]
    keeps_grid: ClassVar[bool] = False

    def __init__(self, visual: OpenClipModule) -> None:
        self.visual = visual

    @classmethod
    @abstractmethod
    def fits(cls, visual: nn.Module) -> bool:
        """Whether this kind describes a tower."""

    @property
    def multiple(self) -> int:
        """What every side must be a multiple of."""
        return 16

    @abstractmethod
    def at(self, side: int) -> Mapping[str, Tensor]:
        """What stands in for weights and buffers of the tower, by name, when it sees images of a side; {} where nothing does.

        Raises: ClipftError for a side that it cannot take.
        """

    def tokens(self, side: int) -> int:
        """The longest sequence that its attention sees; 0 where it has none that would be long."""
        return 0

    def resize(self, side: int) -> None:
        """Let it be a tower for images of a side, for good where that is possible. Raises as `at`."""
        self.at(side)
        self.visual.image_size = (side, side)

    def pooling(self) -> Pooling:
        """Where it pools. Raises ClipftError where that is not known."""
        raise ClipftError(
            "a heatmap",
            f"the image tower is {self.kind}, and where it pools its places is not known",
            "Ask without `explain`, or start from a vision transformer, a ResNet or a convolutional tower.",
            code="model.no_heatmap",
        )

    def places(self, side: int) -> Grid | None:
        """Rows and columns of its tokens for images of a side; None where its feature map says itself how large it is."""
        return None

    def set_patch(self, patch: int, side: int) -> None:
        """Cut images of a side into patches of another size. Raises ClipftError where it has none that could be changed."""
        raise ClipftError(
            f"a patch of {patch}", f"the image tower is {self.kind}", "Leave model.patch empty.", code="model.no_patches"
        )

    def _grid(self, side: int) -> Grid:
        """Rows and columns of positions for a side. Raises ClipftError where it is no multiple of the patch."""
        if side % self.multiple:
            fix = f"Use {max(1, side // self.multiple) * self.multiple}."
            why = f"it is no multiple of the patch of {self.multiple}"
            raise ClipftError(f"images of {side} pixels", why, fix, code="model.impossible_side")
        return side // self.multiple, side // self.multiple


class OpenClipTransformer(ImageTower):
    """open_clip's own vision transformer, also that of CoCa: one learned position for each patch and one for the class token."""

    kind = "a vision transformer"

    @classmethod
    def fits(cls, visual: nn.Module) -> bool:
        return isinstance(visual, VisionTransformer)

    @property
    def multiple(self) -> int:
        return int(self.visual.patch_size[0])

    def at(self, side: int) -> Mapping[str, Tensor]:
        old, new = tuple(self.visual.grid_size), self._grid(side)
        return {} if old == new else {"positional_embedding": resampled(self.visual.positional_embedding, 1, old, new)}

    def tokens(self, side: int) -> int:
        return math.prod(self._grid(side)) + 1

    def pooling(self) -> Pooling:
        visual = self.visual
        if visual.attn_pool is not None:
            contrastive = visual.attn_pool_contrastive if visual.attn_pool_type == "parallel" else None
            return Pooling(contrastive or visual.attn_pool, attends=True)
        if visual.pool_type == "tok":
            return Pooling(visual.transformer.resblocks[-1], attends=True)
        return Pooling(visual.transformer if visual.final_ln_after_pool else visual.ln_post)

    def places(self, side: int) -> Grid:
        return self._grid(side)

    @torch.no_grad()
    def resize(self, side: int) -> None:
        _store(self.visual, "positional_embedding", self.at(side))
        self.visual.grid_size = self._grid(side)
        self.visual.image_size = (side, side)

    def set_patch(self, patch: int, side: int) -> None:
        """The patch weights are resampled so that they give what they gave on the resampled patch (the pseudo-inverse of
        FlexiViT, Beyer et al. 2023, https://arxiv.org/abs/2212.08013), the positions to the new grid."""
        conv = self.visual.conv1
        conv.weight = nn.Parameter(
            resample_patch_embed(conv.weight.detach(), [patch, patch]).contiguous(), requires_grad=conv.weight.requires_grad
        )
        conv.kernel_size = conv.stride = (patch, patch)
        self.visual.patch_size = (patch, patch)
        self.resize(side)


class OpenClipResNet(ImageTower):
    """open_clip's own ResNet: convolutions take any side, the attention that pools them has learned positions."""

    kind = "a ResNet with an attention pool"

    @classmethod
    def fits(cls, visual: nn.Module) -> bool:
        return isinstance(visual, ModifiedResNet)

    @property
    def multiple(self) -> int:
        return 32

    def at(self, side: int) -> Mapping[str, Tensor]:
        positions, new = self.visual.attnpool.positional_embedding, self._grid(side)
        rows = math.isqrt(len(positions) - 1)
        if (rows, rows) == new:
            return {}
        return {"attnpool.positional_embedding": resampled(positions, 1, (rows, rows), new)}

    def pooling(self) -> Pooling:
        return Pooling(self.visual.attnpool, attends=True)

    def places(self, side: int) -> Grid:
        return self._grid(side)

    @torch.no_grad()
    def resize(self, side: int) -> None:
        _store(self.visual.attnpool, "positional_embedding", self.at(side))
        self.visual.image_size = (side, side)


class TimmTransformer(ImageTower):
    """A vision transformer of timm behind patches or a convolutional stem, with learned or rotary positions, both or none."""

    kind = "a vision transformer of timm, which is built with a patch and a grid of its own"
    keeps_grid = True

    def __init__(self, visual: OpenClipModule) -> None:
        super().__init__(visual)
        self._patches = visual.trunk.patch_embed
        self._patches.strict_img_size = False  # timm checks then that a side is a multiple, as is done here
        self._rotary: dict[tuple[Grid, torch.device], dict[str, Tensor]] = {}

    @classmethod
    def fits(cls, visual: nn.Module) -> bool:
        trunk = getattr(visual, "trunk", None)
        return isinstance(trunk, TimmVisionTransformer | Eva) and hasattr(trunk.patch_embed, "feat_ratio")

    @property
    def multiple(self) -> int:
        return int(self._patches.feat_ratio())

    @property
    def stored(self) -> Grid:
        """The grid that stored positions are for."""
        rows, columns = self._patches.grid_size
        return int(rows), int(columns)

    def at(self, side: int) -> Mapping[str, Tensor]:
        trunk, new = self.visual.trunk, self._grid(side)
        if new == self.stored or trunk.dynamic_img_size:  # the latter is timm's own way to other sides
            return {}
        found = {}
        if trunk.pos_embed is not None:
            prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
            found["trunk.pos_embed"] = resampled(trunk.pos_embed, prefix, self.stored, new)
        if (rope := getattr(trunk, "rope", None)) is not None:
            found |= {f"trunk.rope.{name}": buffer for name, buffer in self._rotations(rope, new).items()}
        return found

    def tokens(self, side: int) -> int:
        return math.prod(self._grid(side)) + int(self.visual.trunk.num_prefix_tokens)

    def pooling(self) -> Pooling:
        trunk = self.visual.trunk
        if trunk.attn_pool is not None:
            return Pooling(trunk.attn_pool, attends=True)
        return Pooling(trunk.blocks[-1], attends=True) if trunk.global_pool == "token" else Pooling(trunk, "forward_features")

    def places(self, side: int) -> Grid:
        return self._grid(side)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _rotations(self, rope: nn.Module, grid: Grid) -> dict[str, Tensor]:
        """The buffers that a rotary embedding would have for a grid: they follow from it alone, so they are made once."""
        key = (grid, next(rope.buffers()).device)
        if key not in self._rotary:
            with torch.inference_mode(False), torch.no_grad():
                other: OpenClipModule = copy.deepcopy(rope)
                other.update_feat_shape(grid)
                self._rotary[key] = {name: buffer.clone() for name, buffer in other.named_buffers()}
        return self._rotary[key]


class Convolutional(ImageTower):
    """Convolutions of timm, pooled: any side."""

    kind = "convolutional"

    @classmethod
    def fits(cls, visual: nn.Module) -> bool:
        return isinstance(visual, TimmModel) and not _is_of_a_grid(visual.trunk)

    def at(self, side: int) -> Mapping[str, Tensor]:
        return {}

    def pooling(self) -> Pooling:
        attending = getattr(self.visual.head, "pool", None)
        return Pooling(self.visual.trunk, "forward_features") if attending is None else Pooling(attending, attends=True)


class OfOneSide(ImageTower):
    """Any other tower: what it does at other sides is not known."""

    kind = "of a kind that takes images of one side"

    def __init__(self, visual: OpenClipModule) -> None:
        super().__init__(visual)
        size = getattr(visual, "image_size", 224)
        self._side = int(size[0] if isinstance(size, list | tuple) else size)

    @classmethod
    def fits(cls, visual: nn.Module) -> bool:
        return True

    def at(self, side: int) -> Mapping[str, Tensor]:
        if side != self._side:
            network = type(getattr(self.visual, "trunk", self.visual)).__name__
            why = f"{network} has positions of {self._side} pixels that cannot be resized"
            raise ClipftError(f"images of {side} pixels", why, f"Use {self._side}.", code="model.impossible_side")
        return {}


KINDS: tuple[type[ImageTower], ...] = (OpenClipTransformer, OpenClipResNet, TimmTransformer, Convolutional, OfOneSide)


def image_tower(model: OpenClipModule) -> ImageTower:
    """The image tower of an open_clip model."""
    return next(kind for kind in KINDS if kind.fits(model.visual))(model.visual)


def _is_of_a_grid(trunk: nn.Module) -> bool:
    """Whether a network of timm holds something for each place of one grid."""
    names = [name for name, _ in (*trunk.named_parameters(), *trunk.named_buffers())]
    return any(part in name for name in names for part in ("pos_embed", "relative_position", "rel_pos", "rope."))


@torch.no_grad()
def _store(module: nn.Module, name: str, standing_in: Mapping[str, Tensor]) -> None:
    """Make the only tensor that stands in for a parameter that parameter."""
    for value in standing_in.values():
        before = getattr(module, name)
        setattr(module, name, nn.Parameter(value.detach().contiguous(), requires_grad=before.requires_grad))

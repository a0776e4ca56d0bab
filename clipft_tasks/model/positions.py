"""Images of any side, as they come: the stored position embeddings pass through a fixed linear map to the new grid.

Training and evaluating at several sizes therefore keeps one set of weights and one optimizer state; nothing is ever
resampled back and forth.
"""

from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from ..core.errors import ClipftError

_matrices: dict[tuple[object, ...], Tensor] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # a compiler keeps the matrix instead of making it each time
def resampling(old: tuple[int, int], new: tuple[int, int], device: torch.device) -> Tensor:
    """The matrix (new positions, old positions) of bicubic resampling with antialiasing between two grids, fp32.

    Resampling is linear, so its matrix is what it does to each unit grid. Made once a size, on the CPU; the gradient of a
    matrix product exists everywhere, that of the resampling does not (MPS).
    """
    key = (old, new, device)
    if key not in _matrices:
        with torch.inference_mode(False):  # kept, so it must serve training too, whoever asks first
            unit = torch.eye(old[0] * old[1]).view(-1, 1, *old)
            spread = functional.interpolate(unit, size=new, mode="bicubic", antialias=True, align_corners=False)
            _matrices[key] = spread.flatten(1).T.contiguous().to(device)
    return _matrices[key]


def _resampled(positions: Tensor, prefix: int, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embeddings (..., prefix + old positions, width) -> (..., prefix + new positions, width)."""
    matrix = resampling(old, new, positions.device)
    with torch.autocast(positions.device.type, enabled=False):
        return torch.cat([positions[..., :prefix, :], matrix @ positions[..., prefix:, :].float()], dim=-2)


def encode_image(model: Any, base: int, images: Tensor) -> Tensor:
    """Normalized images (n, 3, s, s) of any side that the tower can take -> image embeddings (n, embed_dim).

    Args:
        base: the side that the stored weights are for.
    Raises:
        ClipftError: the side is no multiple of the patch, or the tower's positions cannot be resized.
    """
    visual, side = model.visual, images.shape[-1]
    if side == base:
        return _encoded(model, images)
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        positions = getattr(trunk, "pos_embed", None)
        patches: Any = getattr(trunk, "patch_embed", None)
        if positions is None and patches is None:
            return _encoded(model, images)  # convolutional: any side
        if not (isinstance(positions, Tensor) and positions.ndim == 3 and hasattr(patches, "strict_img_size")):
            raise _impossible(side, base, "its positions cannot be resized")
        patch = patches.patch_size[0]
        prefix = 0 if getattr(trunk, "no_embed_class", False) else getattr(trunk, "num_prefix_tokens", 0)
        old, name = tuple(patches.grid_size), "trunk.pos_embed"
        patches.strict_img_size = False
    elif isinstance(getattr(visual, "positional_embedding", None), Tensor) and hasattr(visual, "patch_size"):
        patch, prefix, old, name = visual.patch_size[0], 1, tuple(visual.grid_size), "positional_embedding"
        positions = visual.positional_embedding
    elif hasattr(visual, "attnpool"):
        raise _impossible(side, base, "its attention pool has positions of one size")
    else:
        return _encoded(model, images)
    if side % patch:
        raise _impossible(side, base, f"it is no multiple of the patch of {patch}", (side // patch or 1) * patch)
    if not isinstance(model, open_clip.CLIP | open_clip.CustomTextCLIP):
        raise _impossible(side, base, f"{type(model).__name__} takes images of one size")
    new = (side // patch, side // patch)
    resized: Tensor = functional_call(visual, {name: _resampled(positions, prefix, old, new)}, (images,))
    return resized


def _encoded(model: Any, images: Tensor) -> Tensor:
    features: Tensor = model.encode_image(images)
    return features


def _impossible(side: int, base: int, why: str, instead: int | None = None) -> ClipftError:
    return ClipftError(
        f"images of {side} pixels for a model of {base}", why, f"Use {instead or base}.", code="model.impossible_side"
    )

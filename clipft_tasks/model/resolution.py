"""Picture size: a model made for one side is made to take another. Weights that depend on it follow, once, outside autograd."""

import torch
from open_clip.model import resize_pos_embed
from torch import nn

from ..errors import ClipftError
from .clip import Clip


def set_side(clip: Clip, side: int) -> Clip:
    """Let `clip` take pictures of `side` pixels; its configuration says so from then on.

    Convolutional towers take any size. Transformers have their position embeddings resampled (bicubic), so call this before
    an optimiser is made.

    Raises:
        ClipftError: the side is no multiple of the patch, or the tower's positions cannot be resized.
    """
    visual = clip.model.visual
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        if hasattr(trunk, "set_input_size"):
            try:
                trunk.set_input_size(img_size=(side, side))
            except (AssertionError, ValueError, RuntimeError) as error:
                raise _impossible(clip, side, str(error)) from error
        elif getattr(trunk, "pos_embed", None) is not None:
            raise _impossible(clip, side, "its positions cannot be resized")
    elif isinstance(getattr(visual, "positional_embedding", None), nn.Parameter) and hasattr(visual, "patch_size"):
        patch = visual.patch_size[0]
        if side % patch:
            raise _impossible(clip, side, f"it is no multiple of the patch of {patch}", (side // patch or 1) * patch)
        visual.grid_size = (side // patch, side // patch)
        state = {"visual.positional_embedding": visual.positional_embedding.detach()}
        with torch.no_grad():
            resize_pos_embed(state, clip.model, interpolation="bicubic", antialias=True)
        visual.positional_embedding = nn.Parameter(state["visual.positional_embedding"].contiguous())
    elif hasattr(visual, "attnpool") and side != clip.config["model_cfg"]["vision_cfg"].get("image_size"):
        raise _impossible(clip, side, "its attention pool has positions of one size")
    visual.image_size = (side, side)
    clip.config["model_cfg"]["vision_cfg"]["image_size"] = side
    return clip


def _impossible(clip: Clip, side: int, why: str, instead: int | None = None) -> ClipftError:
    size = clip.config["model_cfg"]["vision_cfg"].get("image_size", 224)
    return ClipftError(f"side {side} for {clip.source}", why, f"Use {instead or size}.")

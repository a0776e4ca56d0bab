"""Image size, patch size and text length, changed for good: once, outside autograd, before an optimizer is made.

For images of another side now and then, nothing needs to change: see `positions`.
"""

import open_clip
import torch
from open_clip.model import resize_pos_embed
from torch import nn
from torch.nn import functional

from ..core.errors import ClipftError
from .clip import Clip


def set_side(clip: Clip, side: int) -> Clip:
    """Let `clip` be a model for images of `side` pixels; its configuration says so from then on.

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
        visual.positional_embedding = nn.Parameter(
            state["visual.positional_embedding"].contiguous(), requires_grad=visual.positional_embedding.requires_grad
        )
    elif hasattr(visual, "attnpool") and side != clip.side:
        raise _impossible(clip, side, "its attention pool has positions of one size")
    visual.image_size = (side, side)
    clip.config["model_cfg"]["vision_cfg"]["image_size"] = side
    return clip


def set_patch(clip: Clip, patch: int) -> Clip:
    """Cut images into patches of another size, at the same side: fewer, larger ones are cheaper.

    The patch weights are resampled so that they give what they gave on the resampled patch (the pseudo-inverse of FlexiViT,
    Beyer et al. 2023, https://arxiv.org/abs/2212.08013), the positions to the new grid.

    Raises:
        ClipftError: the image tower has no patches, or the side is no multiple of the new one.
    """
    from timm.layers import resample_patch_embed

    visual, side = clip.model.visual, clip.side
    trunk = getattr(visual, "trunk", None)
    if trunk is not None and hasattr(trunk, "set_input_size") and hasattr(getattr(trunk, "patch_embed", None), "proj"):
        if side % patch:
            raise _impossible(clip, side, f"it is no multiple of the patch of {patch}", side // patch * patch)
        trunk.set_input_size(img_size=(side, side), patch_size=(patch, patch))
        return clip
    if not (hasattr(visual, "conv1") and hasattr(visual, "patch_size")):
        raise ClipftError(
            f"patch {patch} for {clip.source}",
            "its image tower has no patches",
            "Leave model.patch empty.",
            code="model.no_patches",
        )
    weight = resample_patch_embed(visual.conv1.weight.detach(), [patch, patch])
    visual.conv1.weight = nn.Parameter(weight.contiguous(), requires_grad=visual.conv1.weight.requires_grad)
    visual.conv1.kernel_size = visual.conv1.stride = (patch, patch)
    visual.patch_size = (patch, patch)
    clip.config["model_cfg"]["vision_cfg"]["patch_size"] = patch
    return set_side(clip, side)


def set_context(clip: Clip, length: int) -> Clip:
    """Let texts be `length` tokens long. The first twenty positions, which nearly every caption uses, stay as they are; the
    others are stretched (LongCLIP, Zhang et al. 2024, https://arxiv.org/abs/2403.15378) or cut off.

    Raises:
        ClipftError: the text tower has fewer positions and they cannot be stretched.
    """
    text = clip.config["model_cfg"]["text_cfg"]
    if "hf_model_name" in text:
        most = getattr(clip.model.text.transformer.config, "max_position_embeddings", length)
        if length > most:
            raise ClipftError(
                f"{length} tokens for {clip.source}",
                f"its text tower has {most} positions",
                f"Use {most}.",
                code="model.impossible_context",
            )
    else:
        tower = clip.model if type(clip.model) is open_clip.CLIP else clip.model.text
        if type(clip.model) not in (open_clip.CLIP, open_clip.CustomTextCLIP) or text.get("embed_cls"):
            raise ClipftError(
                f"{length} tokens for {clip.source}",
                "its positions cannot be stretched",
                "Leave it empty.",
                code="model.impossible_context",
            )
        old = tower.positional_embedding.detach()
        kept = min(20, len(old), length)
        rest = old[kept:] if length <= len(old) else functional.interpolate(
            old[kept:].T[None], size=length - kept, mode="linear", align_corners=True
        )[0].T  # fmt: skip
        tower.positional_embedding = nn.Parameter(torch.cat([old[:kept], rest])[:length].contiguous())
        tower.context_length = length
        if tower.attn_mask is not None:
            tower.attn_mask = torch.full((length, length), -torch.inf, device=old.device).triu_(1)
    clip.tokenizer.context_length = length
    text["context_length"] = length
    return clip


def _impossible(clip: Clip, side: int, why: str, instead: int | None = None) -> ClipftError:
    return ClipftError(f"side {side} for {clip.source}", why, f"Use {instead or clip.side}.", code="model.impossible_side")

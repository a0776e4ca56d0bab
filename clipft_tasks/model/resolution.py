"""Image size, patch size and text length, changed for good: once, outside autograd, before an optimizer is made.

For images of another side now and then, nothing needs to change: see `image_tower`.
"""

import open_clip
import torch
from torch import nn
from torch.nn import functional

from ..core.errors import ClipftError
from .clip import Clip


def set_side(clip: Clip, side: int) -> Clip:
    """Let `clip` be a model for images of `side` pixels; its configuration says so from then on.

    A tower that keeps its grid keeps its configuration too: what is written down must open again.

    Raises: ClipftError for a side that the tower cannot take.
    """
    clip.tower.resize(side)
    if clip.tower.keeps_grid:
        clip.made_for = side
    else:
        clip.config["model_cfg"]["vision_cfg"]["image_size"] = side
    return clip


def set_patch(clip: Clip, patch: int) -> Clip:
    """Cut images into patches of another size, at the same side: fewer, larger ones are cheaper.

    Raises: ClipftError when the image tower has no patches that can be changed, or the side is no multiple of the new one.
    """
    if clip.side % patch:
        fix = f"Use a patch that divides {clip.side}."
        raise ClipftError(
            f"a patch of {patch}", f"the side {clip.side} is no multiple of it", fix, code="model.impossible_side"
        )
    clip.tower.set_patch(patch, clip.side)
    clip.config["model_cfg"]["vision_cfg"]["patch_size"] = patch
    return clip


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
